"""The command `musicgen-mlx-serve`, with the demo model."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile

from audiocraft_mlx.cli import generate, serve
from tests.live_server import eventually

pytestmark = pytest.mark.alone

PROGRAM = "import sys; from audiocraft_mlx.cli.serve import main; sys.exit(main())"
UNINTERRUPTIBLE = f"""
import mlx.core as mx
from audiocraft_mlx.clips.making import RunningClips

def step(self):
    while True:
        mx.eval(mx.random.normal((1000, 1000)) @ mx.random.normal((1000, 1000)))
    yield

RunningClips.step = step
{PROGRAM}
"""


@contextmanager
def started(
    *options: str, program: str = PROGRAM, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "-m", "demo", "--port", "0", "--no-open", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"musicgen-mlx-serve: (http://\S+) \(Ctrl-C ends it\)\n", line)
        assert match, line + process.stdout.read()
        yield process, match[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> float:
    """Seconds until it has ended."""
    begin = time.monotonic()
    process.send_signal(number)
    status, seconds = process.wait(10), time.monotonic() - begin
    assert process.stdout is not None
    assert status == 0, process.stdout.read()
    return seconds


def message_of(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """The exit status, and the one line on standard error."""
    status = serve.main([*options, "--no-open"])
    (line,) = capsys.readouterr().err.splitlines()
    return status, line.removeprefix("musicgen-mlx-serve: error: ")


def test_it_ends_in_the_middle_of_what_cannot_be_interrupted(tmp_path: Path) -> None:
    with started("--data", str(tmp_path), program=UNINTERRUPTIBLE) as (process, url):
        assert httpx.post(f"{url}api/jobs", json={"prompt": "a piano"}).status_code == 202
        assert eventually(lambda: httpx.get(f"{url}api/jobs").json()["jobs"][0]["status"] == "running", 20)
        time.sleep(0.2)
        end(process)
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_openai_client_gets_the_samples_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "command.wav"
    words = ["happy piano", "-m", "demo", "--seed", "5", "-d", "2", "-o", str(path), "--no-open"]
    assert generate.main(words) == 0
    expected, rate = soundfile.read(path, dtype="int16")
    with started("--data", str(tmp_path / "data")) as (process, url):
        client = openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0)
        for name in ("wav", "flac"):
            answer = client.audio.speech.create(
                model="tts-1",
                voice="alloy",
                input="happy piano",
                response_format=name,
                extra_body={"seed": 5, "duration": 2},
            )
            audio, given = soundfile.read(io.BytesIO(answer.read()), dtype="int16")
            assert given == rate
            np.testing.assert_array_equal(audio, expected)
        assert httpx.get(f"{url}health").json()["hint"].startswith("This is the small demo model")
        assert end(process) < 2


def test_ctrl_c_ends_it_whatever_is_connected(tmp_path: Path) -> None:
    with started("--data", str(tmp_path / "data")) as (process, url), httpx.Client(base_url=url) as client:
        streams = [client.send(client.build_request("GET", "/api/events"), stream=True) for _ in range(3)]
        body = {"input": "x", "response_format": "wav", "duration": 300}
        request = client.build_request("POST", "/v1/audio/speech", json=body)
        streams.append(client.send(request, stream=True))  # while it is generated, and nobody reads
        half = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/"))))
        half.sendall(b"POST /api/audio HTTP/1.1\r\nHost: localhost\r\nContent-Type: audio/wav\r\n")
        half.sendall(b"Content-Length: 1000\r\n\r\nRIFF")
        assert end(process) < 2
        assert process.stdout is not None
        assert process.stdout.read() == ""
        for stream in streams:
            stream.close()
        half.close()


def test_sigterm_ends_it_as_well(tmp_path: Path) -> None:
    with started("--data", str(tmp_path / "data")) as (process, _):
        assert end(process, signal.SIGTERM) < 2


def test_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, line = message_of(capsys, "--port", port, "--data", str(tmp_path / "data"))
    assert (status, line) == (
        1,
        f"port {port} is in use; stop the program that uses it, or choose another one with --port",
    )
    assert not (tmp_path / "data").exists()


def test_data_folder_in_use_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with started("--data", str(tmp_path)):
        status, line = message_of(capsys, "-m", "demo", "--port", "0", "--data", str(tmp_path))
    assert status == 2
    assert "is in use by another server" in line


def test_a_model_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, expected in {
        "/no/such": "/no/such: no such folder; check its path",
        "smal": "no model 'smal': did you mean small?",
    }.items():
        status, line = message_of(capsys, "-m", name, "--port", "0", "--data", str(tmp_path / "data"))
        assert status == 1
        assert line.startswith(expected)
    assert not (tmp_path / "data").exists()


def test_missing_packages_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else name)
    status, line = message_of(capsys)
    assert (status, line) == (
        2,
        "fastapi is missing; install the server with: pip install 'musicgen-mlx[serve]'",
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--port", "70000"], "an integer from 0 to 65535"),
        (["--port", "x"], "--port"),
        (["--host", "nowhere.invalid", "--port", "0"], "is no address of this machine"),
        (["--host", "192.0.2.1", "--port", "0"], "can't be used"),
        (["--token", "short"], "--token"),
        (["--token", "with spaces in it"], "--token"),
        (["--allowed-host", "a b"], "--allowed-host"),
        (["--max-duration", "0"], "--max-duration"),
        (["--data", ""], "--data"),
        (["-q", "3"], "-q"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], options: list[str], part: str) -> None:
    status, line = message_of(capsys, *options)
    assert status == 2
    assert part in line


def access(*options: str) -> serve.Access:
    return serve.make_access(serve.make_parser().parse_args(options))


def test_only_this_machines_own_addresses_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert access("--host", host).token is None
        assert not access("--host", host).any_address
    for host in ("0.0.0.0", "::", "192.168.1.5"):
        token = access("--host", host).token
        assert token is not None
        assert len(token) >= 32
        assert token != access("--host", host).token
        assert access("--host", host).any_address
    assert access("--allowed-host", "music.example").token is not None
    assert "music.example" in access("--allowed-host", "Music.Example.").names
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "of-the-environment")
    assert access("--host", "0.0.0.0").token == "of-the-environment"
    assert access("--token", "of-the-option").token == "of-the-option"


def test_printed_address_has_the_token(tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--data", str(tmp_path / "data"))
    with started(*options, MUSICGEN_MLX_TOKEN="a-token-of-the-tests") as (process, url):
        assert url.endswith("/?token=a-token-of-the-tests")
        port = httpx.URL(url).port
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 401
        assert httpx.get(f"http://127.0.0.1:{port}/?token=a-token-of-the-tests").status_code == 303
        assert end(process) < 2


def test_browser_is_opened_only_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with serve._open_page(access(), 1):
        pass
    monkeypatch.setenv("DISPLAY", ":0")
    with serve._open_page(access(), 2):
        assert eventually(lambda: opened)
    assert opened == ["http://127.0.0.1:2/"]


def test_token_isnt_on_the_browsers_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    with serve._open_page(access("--token", "a-token-of-the-tests"), 8000):
        assert eventually(lambda: opened)
        (url,) = opened
        assert "a-token" not in url
        path = Path(url.removeprefix("file://"))
        assert path.stat().st_mode & 0o777 == 0o600
        assert "url=http://127.0.0.1:8000/?token=a-token-of-the-tests" in path.read_text()
    assert not path.exists()

"""The server's own interface, on a service without a model."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.server import event_stream
from audiocraft_mlx.server.app import create_app
from audiocraft_mlx.server.schema import Audio, ErrorAnswer, Status
from audiocraft_mlx.server.security import SecuritySettings
from audiocraft_mlx.server.service import BusyError
from tests.fake_service import RATE, FakeService, tone
from tests.live_server import eventually, running

NOBODY = "A" * 22


@pytest.fixture
def service(tmp_path: Path) -> FakeService:
    return FakeService(tmp_path)


@pytest.fixture
def client(service: FakeService) -> Iterator[httpx.Client]:
    with running(service) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def make(client: httpx.Client, **fields: object) -> dict:
    answer = client.post("/api/jobs", json={"prompt": "a piano", "duration": 1.0, "seed": 1} | fields)
    assert answer.status_code == 202, answer.text
    return answer.json()


def clip_of(job: dict) -> str:
    return job["clips"][0]["id"]


def error_of(answer: httpx.Response) -> dict:
    return ErrorAnswer.model_validate_json(answer.content).model_dump()["error"]


def wav_bytes(seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(1, seconds).T, RATE, format="WAV")
    return file.getvalue()


def pcm_of(seed: int, seconds: float) -> bytes:
    return np.clip(np.rint(tone(seed, seconds) * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()


# Jobs


def test_job_is_made_listed_changed_removed_and_restored(client: httpx.Client) -> None:
    answer = client.post("/api/jobs", json={"prompt": "a piano", "duration": 1, "takes": 2, "seed": 7})
    assert answer.status_code == 202
    job = answer.json()
    path = f"/api/jobs/{job['id']}"
    assert answer.headers["location"] == path
    assert [clip["seed"] for clip in job["clips"]] == [7, 8]
    assert client.get(path).json()["id"] == job["id"]
    assert client.patch(path, json={"favourite": True, "title": "T"}).json()["title"] == "T"
    assert [each["id"] for each in client.get("/api/jobs?favourite=true").json()["jobs"]] == [job["id"]]
    assert client.get("/api/jobs?q=violin").json()["jobs"] == []
    assert client.delete(path).json()["id"] == job["id"]
    assert client.get(path).status_code == 404
    assert client.post(f"{path}/restore").json()["id"] == job["id"]
    assert client.get(path).status_code == 200


def test_pages_of_jobs_follow_each_other(client: httpx.Client) -> None:
    made = [make(client)["id"] for _ in range(5)]
    page = client.get("/api/jobs?limit=3").json()
    rest = client.get("/api/jobs", params={"limit": 3, "before": page["before"]}).json()
    assert [job["id"] for job in page["jobs"] + rest["jobs"]] == made[::-1]
    assert rest["before"] is None


def test_continue_is_a_field_under_its_own_name(client: httpx.Client) -> None:
    answer = client.post("/api/jobs", json={"prompt": "x", "continue": NOBODY})
    assert error_of(answer)["param"] == "continue"
    assert "continue" in make(client)["recipe"]
    assert "source" not in make(client)["recipe"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "loudness": 3}, "loudness"),
        ({"prompt": "x", "takes": "many"}, "takes"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x", "duration": 1e9}, "duration"),
        ({"prompt": "x", "takes": 1000}, "takes"),
        ({"prompt": "x", "model": "../../etc/passwd"}, "model"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
    ],
)
def test_wrong_fields_are_named(client: httpx.Client, body: dict, param: str) -> None:
    answer = client.post("/api/jobs", json=body)
    error = error_of(answer)
    assert answer.status_code == 422
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]


@pytest.mark.parametrize("name", ["\n", "\x1b[31m", "x" * 5000])
def test_a_wrong_name_is_shown_short_and_printable(client: httpx.Client, name: str) -> None:
    error = error_of(client.post("/api/jobs", json={"prompt": "x", name: 3}))
    assert error["param"] == name
    assert error["message"].isprintable()
    assert len(error["message"]) < 300


def test_a_long_value_is_shown_short(client: httpx.Client) -> None:
    error = error_of(client.post("/api/jobs", json={"prompt": "x", "normalize": "x" * 5000}))
    assert error["message"].startswith("normalize must be one of none, peak, loudness, not 'xxx")
    assert len(error["message"]) < 1100


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000]
)
def test_what_is_no_request_is_a_clients_error(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert error_of(answer)["type"] == "invalid_request_error"


def test_numbers_beyond_json_are_a_clients_error(client: httpx.Client) -> None:
    for number in ("NaN", "Infinity", "1" * 400, "1e999"):
        body = f'{{"prompt": "x", "duration": {number}}}'
        answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), number


# Errors


def full(message: str, cause: Exception | None = None) -> OutputError:
    error = OutputError(message)
    error.__cause__ = cause or OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BusyError("200 jobs wait", 7), 429, "rate_limit_error"),
        (OutputError("the disk is full"), 507, "server_error"),
        (full("/secret/a.wav can't be written"), 507, "server_error"),
        (full("/secret/a can't be written: gone", FileNotFoundError(2, "gone")), 507, "server_error"),
        (full("/secret/a.sqlite3 can't be written", sqlite3.OperationalError("locked")), 507, "server_error"),
        (ZeroDivisionError("secret"), 500, "server_error"),
    ],
)
def test_errors_have_one_shape(
    client: httpx.Client, service: FakeService, error: Exception, status: int, kind: str
) -> None:
    service.error = error
    answer = client.post("/api/jobs", json={"prompt": "x"})
    assert (answer.status_code, error_of(answer)["type"]) == (status, kind)
    assert "secret" not in answer.text
    assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_bug_is_logged_with_its_traceback(
    client: httpx.Client, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = ZeroDivisionError("why")
    client.get("/api/models")
    assert any("ZeroDivisionError: why" in (record.exc_text or "") for record in caplog.records)


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing", "/api/jobs/x/y", "/docs", "/redoc", "/page/"])
def test_unknown_addresses_are_errors_of_the_same_shape(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, error_of(answer)["type"]) == (404, "not_found_error")


def test_wrong_methods_are_errors_that_name_the_right_ones(client: httpx.Client) -> None:
    answer = client.put("/health", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
    assert error_of(answer)["message"] == "PUT /health: method not allowed"


@pytest.mark.parametrize(
    "id",
    [
        *("..%2f..%2fetc%2fpasswd", "%2e%2e", "x", "A" * 21, "A" * 23),
        *("A" * 21 + "/", "A" * 21 + "%00", NOBODY),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/{}",
        "/api/clips/{}/audio",
        "/api/clips/{}/stream",
        "/api/clips/{}/peaks",
        "/api/clips/{}/stems/drums",
        "/api/models/{}/load",
    ],
)
def test_ids_that_dont_exist_or_lead_elsewhere_are_not_found(
    client: httpx.Client, path: str, id: str
) -> None:
    answer = client.request("POST" if path.endswith("load") else "GET", path.format(id))
    assert answer.status_code == 404
    assert error_of(answer)["code"] in ("not_found", None)


def test_stems_have_plain_names_only(client: httpx.Client) -> None:
    clip = clip_of(make(client, stems=True))
    assert client.get(f"/api/clips/{clip}/stems/drums").status_code == 200
    for name in ("..%2f..%2fx", "%2e%2e", "drums%00", "Drums", "nothing"):
        assert client.get(f"/api/clips/{clip}/stems/{name}").status_code == 404


def test_openapi_declares_errors_of_every_route(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) >= 18
    for path, methods in paths.items():
        for method, operation in methods.items():
            for code in ("4XX", "5XX"):
                schema = operation["responses"][code]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/ErrorAnswer"), (path, method)
            assert "422" not in operation["responses"]


# Files


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg"])
def test_audio_comes_in_every_format(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/api/clips/{clip_of(make(client))}/audio?format={name}")
    audio, rate = soundfile.read(io.BytesIO(answer.content))
    assert (len(audio), rate) == (RATE, RATE)
    assert answer.headers["content-type"].startswith("audio/")
    assert "immutable" in answer.headers["cache-control"]


def test_files_dont_wait_for_uploads_that_are_decoded(
    client: httpx.Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(make(client, stems=True, format="flac"))
    decoding, may_end = threading.Semaphore(0), threading.Event()

    def add_audio(path: Path, name: str | None = None) -> Audio:
        decoding.release()
        may_end.wait(20)
        raise UsageError("this is no audio file")

    monkeypatch.setattr(service, "add_audio", add_audio)

    def upload() -> None:
        audio = {"content": wav_bytes(), "headers": {"content-type": "audio/wav"}}
        httpx.post(client.base_url.join("/api/audio"), **audio, timeout=20)

    uploads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in uploads:
        thread.start()
    try:
        assert all(decoding.acquire(timeout=5) for _ in uploads)
        for path in (
            "audio",
            "audio?format=flac",
            "audio?download=1",
            "stems/drums",
            "stems/drums?format=flac",
        ):
            assert client.get(f"/api/clips/{clip}/{path}", timeout=5).status_code == 200, path
        with pytest.raises(httpx.ReadTimeout):  # a conversion is such work itself
            client.get(f"/api/clips/{clip}/audio?format=ogg", timeout=0.2)
    finally:
        may_end.set()
        for thread in uploads:
            thread.join()
    assert client.get(f"/api/clips/{clip}/audio?format=ogg").status_code == 200


def test_ranges_of_files(client: httpx.Client) -> None:
    url = f"/api/clips/{clip_of(make(client))}/audio"
    whole = client.get(url)
    part = client.get(url, headers={"range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole.content[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    same = {"range": "bytes=0-1", "if-range": whole.headers["etag"]}
    assert client.get(url, headers=same).status_code == 206
    other = {"range": "bytes=0-1", "if-range": '"other"'}
    assert client.get(url, headers=other).status_code == 200
    for behind in ("bytes=99999999-", "bytes=99999998-99999999", "bytes=-0"):
        answer = client.get(url, headers={"range": behind})
        assert (answer.status_code, error_of(answer)["type"]) == (416, "invalid_request_error")
        assert answer.headers["content-range"] == f"bytes */{len(whole.content)}"
        assert "immutable" not in answer.headers["cache-control"]
        assert client.get(url, headers={"range": behind, "if-range": '"other"'}).status_code == 200
    for ignored in ("bytes=5-3", "bytes=99999999-3", "bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes", "="):
        answer = client.get(url, headers={"range": ignored})
        assert (answer.status_code, answer.content) == (200, whole.content), ignored
    assert client.get(url, headers={"range": "bytes=-10"}).content == whole.content[-10:]
    assert client.get(url, headers={"range": "Bytes=1-99999999"}).content == whole.content[1:]
    head = client.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(whole.content)))


def test_download_has_a_name_of_the_prompt_and_the_seed(client: httpx.Client) -> None:
    clip = clip_of(make(client, prompt='Naïve "jazz"/../\r\nSet-Cookie: x', seed=42))
    answer = client.get(f"/api/clips/{clip}/audio?format=flac&download=1")
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith(
        "attachment; filename*=utf-8''Na%C3%AFve%20jazz%20Set%20Cookie%20x%2042.flac"
    )
    assert "set-cookie" not in answer.headers
    assert "content-disposition" not in client.get(f"/api/clips/{clip}/audio").headers


# Streams


@pytest.mark.parametrize("speed", [1e9, 10.0])
def test_stream_has_its_length_and_all_samples(tmp_path: Path, speed: float) -> None:
    with running(FakeService(tmp_path, speed)) as url, httpx.Client(base_url=url) as client:
        stream = f"/api/clips/{clip_of(make(client, duration=2.0))}/stream"
        answer = client.get(f"{stream}?format=pcm")
        assert answer.content == pcm_of(1, 2.0)
        assert answer.headers["content-length"] == str(2 * RATE * 2)
        assert answer.headers["content-type"] == "audio/pcm;rate=32000;channels=1"
        wav, rate = soundfile.read(io.BytesIO(client.get(stream).content), dtype="int16")
        assert (wav.tobytes(), rate) == (pcm_of(1, 2.0), RATE)


def test_stream_begins_before_the_clip_is_done(tmp_path: Path) -> None:
    service = FakeService(tmp_path, speed=2.0)
    with running(service) as url, httpx.Client(base_url=url) as client:
        job = make(client, duration=3.0)
        with client.stream("GET", f"/api/clips/{clip_of(job)}/stream?format=pcm") as answer:
            first = next(answer.iter_raw())
            assert service.job(job["id"]).status is Status.RUNNING
            assert 0 < len(first) < 2 * RATE * 3
        answer = client.get(f"/api/clips/{clip_of(job)}/audio")
        assert answer.status_code == 404


def test_ranges_of_streams_also_of_what_is_still_to_come(tmp_path: Path) -> None:
    with running(FakeService(tmp_path, speed=4.0)) as url, httpx.Client(base_url=url) as client:
        stream = f"/api/clips/{clip_of(make(client, duration=1.0))}/stream"
        late = client.get(stream, headers={"range": "bytes=60001-"})
        probe = client.get(stream, headers={"range": "bytes=0-1"})
        end = client.get(stream, headers={"range": "bytes=-10"})
        whole = client.get(stream)
        assert (probe.status_code, probe.content) == (206, b"RI")
        assert late.content == whole.content[60001:]
        assert end.content == whole.content[-10:]
        size = len(whole.content)
        assert late.headers["content-range"] == f"bytes 60001-{size - 1}/{size}"
        assert whole.headers["accept-ranges"] == "bytes"
        assert client.get(stream, headers={"range": f"bytes={size}-"}).status_code == 416
        for ignored in ("bytes=5-2", "bytes=99999999-3", "bytes=0-1,4-5", "lines=0-1", "bytes=-"):
            assert client.get(stream, headers={"range": ignored}).status_code == 200
        assert client.head(stream).headers["content-length"] == str(size)


def test_ranges_of_a_stream_arent_mixed_with_those_of_the_file(tmp_path: Path) -> None:
    service = FakeService(tmp_path, speed=1.0)
    with running(service) as url, httpx.Client(base_url=url) as client:
        job = make(client, duration=1.0)
        stream = f"/api/clips/{clip_of(job)}/stream"
        live = client.get(stream, headers={"range": "bytes=0-1"})
        assert service.job(job["id"]).status is Status.RUNNING
        same = {"range": "bytes=2-3", "if-range": live.headers["etag"]}
        assert client.get(stream, headers=same).content == b"FF"
        assert eventually(lambda: service.job(job["id"]).status is Status.DONE)
        whole = client.get(stream, headers=same)
        assert (whole.status_code, whole.content[:4]) == (200, b"RIFF")
        assert whole.headers["etag"] != live.headers["etag"]
        same = {"range": "bytes=2-3", "if-range": whole.headers["etag"]}
        assert client.get(stream, headers=same).content == b"FF"
        assert client.head(stream).headers["etag"] == whole.headers["etag"]


def test_stream_starts_at_a_second(client: httpx.Client) -> None:
    stream = f"/api/clips/{clip_of(make(client))}/stream?format=pcm"
    assert client.get(f"{stream}&start=0.25").content == pcm_of(1, 1.0)[RATE // 2 :]
    assert client.get(f"{stream}&start=5").content == b""
    for wrong in ("-1", "nan", "inf", "x"):
        assert client.get(f"{stream}&start={wrong}").status_code == 422


def test_streamed_mp3_has_the_clips_length(tmp_path: Path) -> None:
    with running(FakeService(tmp_path, speed=5.0)) as url, httpx.Client(base_url=url) as client:
        answer = client.get(f"/api/clips/{clip_of(make(client))}/stream?format=mp3")
        audio, rate = soundfile.read(io.BytesIO(answer.content))
        assert (len(audio), rate) == (RATE, RATE)
        assert np.corrcoef(audio, tone(1, 1.0)[0])[0, 1] > 0.99


def test_stream_of_a_job_that_ends_early_is_visibly_cut_off(tmp_path: Path) -> None:
    with running(FakeService(tmp_path, speed=1.0)) as url, httpx.Client(base_url=url) as client:
        for name in ("pcm", "mp3"):
            job = make(client, duration=60.0)
            threading.Timer(0.3, httpx.delete, [f"{url}/api/jobs/{job['id']}"]).start()
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(f"/api/clips/{clip_of(job)}/stream?format={name}")


def test_slow_reader_holds_nobody_up(tmp_path: Path) -> None:
    with running(FakeService(tmp_path, speed=1e9)) as url, httpx.Client(base_url=url) as client:
        clip = clip_of(make(client, duration=200.0))
        with client.stream("GET", f"/api/clips/{clip}/stream?format=pcm") as slow:
            next(slow.iter_raw())
            start = time.monotonic()
            with httpx.Client(base_url=url) as other:
                assert other.get("/health").status_code == 200
                assert len(other.get(f"/api/clips/{clip}/stream?format=pcm").content) == 200 * RATE * 2
            assert time.monotonic() - start < 5


# Events


def read_events(lines: Iterator[str], count: int) -> list[dict]:
    events: list[dict] = []
    event: dict = {}
    for line in lines:
        if line:
            key, _, value = line.partition(":")
            event[key] = value.strip()
            continue
        if "event" in event:
            events.append(event | {"data": json.loads(event["data"])})
            if len(events) == count:
                return events
        event = {}
    raise AssertionError("the events ended")


def test_events_come_as_they_happen_and_again_after_the_last_one(
    client: httpx.Client, service: FakeService
) -> None:
    with client.stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == "retry: 1000"
        service.emit("removed", {"id": "line\nbreak"})
        service.emit("removed", {"id": "b"})
        first, second = read_events(lines, 2)
    assert first["data"] == {"id": "line\nbreak"}
    with client.stream("GET", "/api/events", headers={"last-event-id": first["id"]}) as answer:
        assert read_events(answer.iter_lines(), 1) == [second]


def test_events_of_jobs_have_public_names(client: httpx.Client, service: FakeService) -> None:
    with client.stream("GET", "/api/events", headers={"last-event-id": "0"}) as answer:
        service.emit("job", service.job(make(client)["id"]))
        (event,) = read_events(answer.iter_lines(), 1)
    assert "continue" in event["data"]["recipe"]


def test_quiet_event_streams_get_comments(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream.event_stream, "__defaults__", (0.02,))
    with client.stream("GET", "/api/events") as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert [next(lines) for _ in range(3)] == ["retry: 1000", ": keep-alive", ": keep-alive"]


def test_event_streams_end_with_the_server(tmp_path: Path) -> None:
    with running(FakeService(tmp_path)) as url, httpx.Client(base_url=url) as client:
        stream = client.send(client.build_request("GET", "/api/events"), stream=True)
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    stream.close()


# Uploads


def test_uploaded_audio_is_decoded_and_its_file_removed(
    client: httpx.Client, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))
    answer = client.post(
        "/api/audio?name=C:%5Cme%5C../song.wav", content=wav_bytes(), headers={"content-type": "audio/wav"}
    )
    assert answer.status_code == 201
    assert {**answer.json(), "id": ""} == {"id": "", "duration": 0.5, "sample_rate": RATE, "channels": 1}
    assert service.names == ["song.wav"]
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"RIFF", b"<html>", bytes(100_000)])
@pytest.mark.parametrize("path", ["/api/audio", "/api/recipe"])
def test_uploads_that_are_no_audio_are_refused(client: httpx.Client, path: str, content: bytes) -> None:
    answer = client.post(path, content=content, headers={"content-type": "audio/wav"})
    assert answer.status_code == 422
    assert error_of(answer)["type"] == "invalid_request_error"


def test_recipe_of_an_uploaded_file(client: httpx.Client) -> None:
    answer = client.post("/api/recipe", content=wav_bytes(), headers={"content-type": "audio/wav"})
    assert answer.json() == {"recipe": None, "command": None}


def test_upload_that_breaks_off_leaves_nothing(
    client: httpx.Client, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spool"))

    def broken() -> Iterator[bytes]:
        yield b"RIFF"
        assert eventually(lambda: any((tmp_path / "spool").iterdir()))
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        client.post("/api/audio", content=broken(), headers={"content-type": "audio/wav"})
    assert eventually(lambda: not any((tmp_path / "spool").iterdir()))
    assert service.names == []


# The rest


def test_models_are_listed_and_loaded_also_with_a_slash_in_their_names(client: httpx.Client) -> None:
    names = [model["name"] for model in client.get("/api/models").json()]
    assert "small" in names
    for name in names:
        answer = client.post(f"/api/models/{name}/load")
        assert (answer.status_code, answer.json()["name"]) == (202, name)


def test_health_and_peaks(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"
    peaks = client.get(f"/api/clips/{clip_of(make(client))}/peaks").json()
    assert (peaks["per_second"], len(peaks["peaks"])) == (50, 50)


def test_service_is_started_and_closed_with_the_server(tmp_path: Path) -> None:
    service = FakeService(tmp_path)
    with running(service):
        assert service.started
        assert not service.closed
    assert service.closed


def test_end_of_the_service_takes_its_time_only_once(tmp_path: Path) -> None:
    may_end = threading.Event()
    service = FakeService(tmp_path)
    service.close = lambda: may_end.wait(20)  # type: ignore[method-assign]
    app = create_app(service, SecuritySettings())

    async def seconds() -> float:
        async with app.router.lifespan_context(app):
            begin = time.monotonic()
            app.state.context.stop()
            await asyncio.sleep(0.9)  # answers that end
        return time.monotonic() - begin

    try:
        assert asyncio.run(seconds()) < 1.6
    finally:
        may_end.set()


def test_too_many_requests_at_a_time_are_refused_but_health_is_told(tmp_path: Path) -> None:
    with (
        running(FakeService(tmp_path), SecuritySettings(connections=2)) as url,
        httpx.Client(base_url=url) as client,
    ):
        streams = [client.send(client.build_request("GET", "/api/events"), stream=True) for _ in range(2)]
        answer = client.get("/api/jobs")
        assert (answer.status_code, error_of(answer)["type"]) == (503, "server_error")
        assert answer.headers["retry-after"]
        assert client.get("/health").status_code == 200
        streams[0].close()
        assert eventually(lambda: client.get("/api/jobs").status_code == 200)
        streams[1].close()

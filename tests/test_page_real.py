"""The page and the server together: `musicgen-mlx-serve` as it is started, in a real Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.cli import generate
from tests.conftest import add_to_hub_cache
from tests.page_server import free_port
from tests.test_page import (
    CARD,
    DONE,
    EMPTY_ICONS,
    LIVE,
    RATE,
    expect,
    gaps,
    launched,
    make,
    opened,
    record_melody,
    wait_until,
)
from tests.test_server_command import end, started

pytestmark = pytest.mark.alone

MODELS = {
    "facebook/musicgen-melody": "melody",
    "facebook/musicgen-style": "style",
    "adefossez/HTDemucs": "htdemucs",
    "m-a-p/MERT-v1-95M": "mert",
    "t5-base": "t5",
    "facebook/encodec_32khz": "encodec_32khz",
}
LONG = 300
"""Seconds of a clip that isn't done before a test has stopped it."""


@dataclass
class RealServer:
    process: subprocess.Popen[str]
    url: str
    data: Path

    def jobs(self) -> list[dict[str, Any]]:
        """The newest first."""
        return httpx.get(f"{self.url}api/jobs").json()["jobs"]

    def files(self, job: dict[str, Any], stem: str = "") -> list[Path]:
        """Those of its takes."""
        return [self.data / "clips" / job["id"] / f"{clip['id']}{stem}.wav" for clip in job["clips"]]


@contextmanager
def serving(data: Path, *options: str, **environment: str) -> Iterator[RealServer]:
    with started("--data", str(data), *options, **environment) as (process, url):
        yield RealServer(process, url, data)


def heard(page: Any, pieces: int) -> np.ndarray:
    """The samples of the first pieces that the page has scheduled, in 16 bits."""
    script = "count => pieces.slice(0, count).flatMap(({ buffer }) => [...buffer.getChannelData(0)])"
    return np.array(page.evaluate(script, pieces)) * 2**15


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


@pytest.fixture(scope="module")
def hub(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of Hugging Face's with small random models under the released names."""
    home = tmp_path_factory.mktemp("hub")
    for repository, folder in MODELS.items():
        add_to_hub_cache(home / "hub", repository, goldens / "goldens" / folder)
    return home


@pytest.fixture(scope="module")
def hum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears: six notes."""
    path = tmp_path_factory.mktemp("hum") / "hum.wav"
    notes = np.repeat([262, 330, 392, 523, 392, 330], 24_000)
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * np.cumsum(notes) / 48_000), 48_000)
    return path


@pytest.fixture(scope="module")
def browser(hum: Path) -> Iterator[Any]:
    with launched(f"--use-file-for-fake-audio-capture={hum}") as browser:
        yield browser


@pytest.fixture(scope="module")
def server(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with serving(tmp_path_factory.mktemp("data"), HF_HOME=str(hub), MUSICGEN_MLX_DEMUCS="") as server:
        yield server


@pytest.fixture
def page(browser: Any, server: RealServer) -> Iterator[Any]:
    with opened(browser, server) as page:
        yield page
        assert page.evaluate(EMPTY_ICONS) == []


def test_it_is_heard_before_it_is_done_without_a_gap_and_is_the_file(page: Any, server: RealServer) -> None:
    make(page, "slow happy piano", duration=10, takes=2)
    wait_until(page, "pieces.length > 0")
    assert page.locator(LIVE).count() == 1
    expect(page.locator(DONE)).to_have_count(1, timeout=30_000)
    wait_until(page, f"pieces.reduce((sum, piece) => sum + piece.length, 0) >= 10 * {RATE}")
    pieces = page.evaluate("pieces.map(({ buffer, ...piece }) => piece)")
    assert len(pieces) > 5
    assert {piece["context"] for piece in pieces} == {RATE}  # no resampling piece by piece
    job = server.jobs()[0]
    first, second = map(samples, server.files(job))
    np.testing.assert_array_equal(heard(page, len(pieces)), first)
    assert len(first) == len(second) == 10 * RATE
    assert not np.array_equal(first, second)
    assert min(gaps(pieces)) > -1e-3
    if job["speed"] > 4:  # else this machine may have been slower than the music for a while
        assert max(gaps(pieces)) < 1e-3
    page.locator(".clip").nth(1).get_by_role("button", name="Play").click()
    expect(page.locator("#now-title")).to_have_text("slow happy piano · take 2")
    wait_until(page, "parseFloat(document.getElementById('seek').value) > 0.2")


def test_stop_in_the_middle_leaves_nothing_behind(page: Any, server: RealServer) -> None:
    make(page, "fast sad guitar", duration=LONG, takes=2)
    wait_until(page, "pieces.length > 0")
    page.dblclick("#stop")
    card = page.locator(CARD).first
    expect(card).to_have_attribute("data-status", "cancelled")
    expect(card).to_contain_text("Stopped")
    expect(page.locator("#player")).to_be_hidden()
    job = server.jobs()[0]
    assert (job["status"], job["recipe"]["prompt"]) == ("cancelled", "fast sad guitar")
    wait_until(page, "document.getElementById('stop').disabled")
    make(page, "slow happy piano", duration=0.5, takes=1)  # when it is done, what was before it is gone
    expect(card).to_have_attribute("data-status", "done")
    assert not (server.data / "clips" / job["id"]).exists()
    assert not any((server.data / "making").iterdir())
    # The server may end the stream before Chromium has heard that the page doesn't want it any more.
    page.problems[:] = [line for line in page.problems if "ERR_CONTENT_LENGTH_MISMATCH" not in line]


def test_a_job_goes_on_while_the_page_is_loaded_again(page: Any, server: RealServer) -> None:
    make(page, "marimba with a dance beat", duration=20, takes=2)
    wait_until(page, "pieces.length > 0")
    page.reload()
    card = page.locator(CARD).first
    expect(card).to_contain_text("marimba with a dance beat")
    card.locator(".clip .play").nth(1).click()
    wait_until(page, "pieces.length > 0")
    expect(card).to_have_attribute("data-status", "done", timeout=30_000)
    wait_until(page, f"pieces.reduce((sum, piece) => sum + piece.length, 0) >= 20 * {RATE}")
    # The second take is played from its beginning: a stream gives what was made before it was asked for, too.
    begin = heard(page, 3)
    made = samples(server.files(server.jobs()[0])[1])
    assert len(made) == 20 * RATE
    np.testing.assert_array_equal(begin, made[: len(begin)])


def test_a_recording_is_the_melody_that_the_command_would_take(
    page: Any, server: RealServer, hub: Path, tmp_path: Path
) -> None:
    record_melody(page, "melody", 1500)
    page.click("#more summary")
    make(page, "a choir", duration=1, seed=5, takes=2)
    expect(page.locator(CARD).first).to_have_attribute("data-status", "done", timeout=30_000)
    job = server.jobs()[0]
    upload = server.data / "audio" / job["recipe"]["melody"]
    heard, rate = soundfile.read(upload, always_2d=True)
    assert len(heard) > rate
    spectrum = np.abs(np.fft.rfft(heard[:, 0]))
    loudest = np.argmax(spectrum) * rate / len(heard)
    assert min(abs(loudest - note) for note in (262, 330, 392, 523)) < 5  # Hz
    command = [*("a choir", "-m", "melody", "-d", "1", "--seed", "5", "-n", "2"), "--melody", str(upload)]
    by_command(hub, *command, "-o", str(tmp_path / "choir.wav"))
    for number, path in enumerate(server.files(job), 1):
        np.testing.assert_array_equal(samples(path), samples(tmp_path / f"choir-{number}.wav"))


def by_command(hub: Path, *arguments: str) -> None:
    program = "import sys; from audiocraft_mlx.cli.generate import main; sys.exit(main())"
    environment = os.environ | {"HF_HOME": str(hub), "MUSICGEN_MLX_DEMUCS": ""}
    command = [sys.executable, "-c", program, *arguments, "--no-open"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def test_two_models_a_style_and_stems_in_one_session(
    page: Any, server: RealServer, hub: Path, tmp_path: Path
) -> None:
    make(page, "slow happy piano", duration=2, takes=1)
    card = page.locator(CARD).first
    expect(card).to_contain_text("slow happy piano")  # not what was made before
    expect(card).to_have_attribute("data-status", "done", timeout=30_000)
    (source,) = server.files(server.jobs()[0])
    page.select_option("#model", "style")
    page.click("#load")
    expect(page.locator("#model option:checked")).to_have_text("style — loaded", timeout=30_000)
    card.get_by_role("button", name="Download and more").click()
    page.get_by_role("menuitem", name="Use its style").click()
    page.click("#more summary")
    page.check("#stems")
    make(page, "like it", duration=1, seed=3, takes=1, style_coef=4)
    expect(card).to_contain_text("like it")
    expect(card).to_have_attribute("data-status", "done", timeout=30_000)
    card.get_by_role("button", name="Download and more").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Stem: bass").click()
    assert download.value.suggested_filename == "like it 3 bass.wav"
    command = ("like it", "-m", "style", "-d", "1", "--seed", "3", "--stems", "--style-coef", "4")
    by_command(hub, *command, "--style", str(source), "-o", str(tmp_path / "like.wav"))
    (job, _) = server.jobs()[:2]
    np.testing.assert_array_equal(samples(server.files(job)[0]), samples(tmp_path / "like.wav"))
    np.testing.assert_array_equal(samples(Path(download.value.path())), samples(tmp_path / "like-bass.wav"))

    page.uncheck("#stems")
    page.select_option("#model", "demo")
    expect(page.locator(".reference")).to_have_count(0)
    make(page, "fast sad guitar", duration=1, seed=4)
    expect(card).to_contain_text("fast sad guitar")
    expect(card).to_have_attribute("data-status", "done", timeout=30_000)
    demo = tmp_path / "demo.wav"
    assert generate.main(["fast sad guitar", "-m", "demo", "-d", "1", "--seed", "4", "-o", str(demo)]) == 0
    np.testing.assert_array_equal(samples(server.files(server.jobs()[0])[0]), samples(demo))


@pytest.mark.parametrize("killed", [False, True])
def test_the_page_outlives_the_server(browser: Any, tmp_path: Path, killed: bool) -> None:
    """As docs/SERVER.md says: what was being made has failed, what waited is made next time."""
    port = str(free_port())
    with ExitStack() as servers:
        server = servers.enter_context(serving(tmp_path, "--port", port))
        page = servers.enter_context(opened(browser, server))
        make(page, "slow happy piano", duration=1, takes=2)
        expect(page.locator(DONE)).to_have_count(1)
        (kept,) = server.jobs()
        # As many takes as a client has at a time, so that the next one waits.
        make(page, "sad strings", duration=LONG, takes=8)
        expect(page.locator(LIVE)).to_have_count(1)
        make(page, "fast sad guitar", duration=1, takes=1)
        expect(page.locator(CARD)).to_have_count(3, timeout=20_000)
        if killed:
            server.process.kill()
            server.process.wait()
        else:
            end(server.process)
        expect(page.locator("#gone")).to_contain_text("be reached. Trying again")
        again = servers.enter_context(serving(tmp_path, "--port", port))
        expect(page.locator("#gone")).to_be_hidden(timeout=20_000)
        expect(page.locator(DONE)).to_have_count(2, timeout=20_000)
        failed = page.locator(".card[data-status=failed]")
        expect(failed).to_contain_text(re.compile("sad strings.*the server stopped while", re.DOTALL))
        assert [job["recipe"]["prompt"] for job in again.jobs()] == page.locator(
            ".card-title"
        ).all_inner_texts()
        assert again.jobs()[-1]["clips"] == kept["clips"]
        # Nothing that was heard of the failed job is in the way of what is heard now.
        page.locator(DONE).last.locator(".clip .play").first.click()
        expect(page.locator("#now-title")).to_have_text("slow happy piano · take 1")
        wait_until(page, "parseFloat(document.getElementById('seek').value) > 0.2")
        assert page.evaluate(EMPTY_ICONS) == []
        # Chromium itself reports what broke off, and each failed try.
        page.context.close()
        assert not [line for line in page.problems if "net::ERR" not in line]
        page.problems.clear()

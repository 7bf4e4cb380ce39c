"""The page, in a real Chromium, against a server that makes sine tones (`page_server.py`)."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.server import schema
from tests.page_server import PAGE, RATE, FakeServer, dump, running, tone

pytestmark = pytest.mark.alone

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""None: Playwright's own, if it is installed."""

CARD = ".card"
DONE = ".card[data-status=done]"
LIVE = ".card[data-status=running]"

RECORD_SCHEDULE = """
window.pieces = [];
window.start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when = 0) {
  const { length, sampleRate: rate } = this.buffer;
  const { currentTime: asked, sampleRate: context } = this.context;
  pieces.push({ buffer: this.buffer, when, length, rate, asked, context, wall: performance.now() });
  return start.call(this, when);
};
"""
"""Notes each piece of audio that the page schedules."""

EMPTY_ICONS = """
[...document.querySelectorAll("svg:not([hidden])")]
  .filter((svg) => svg.checkVisibility() && !svg.querySelector("use").getBBox().width)
  .map((svg) => svg.parentNode.outerHTML)
"""
"""Those that can be seen and have nothing in them."""

RENDER = """
async () => {
  const last = pieces.at(-1);
  const length = Math.ceil((last.when + 0.1) * last.rate) + last.length;
  const context = new OfflineAudioContext(1, length, last.rate);
  for (const { buffer, when } of pieces) {
    const node = new AudioBufferSourceNode(context, { buffer });
    node.connect(context.destination);
    start.call(node, when);
  }
  return [...(await context.startRendering()).getChannelData(0)];
}
"""
"""What the browser makes of these pieces, without the time that it takes."""


@contextmanager
def launched(*options: str) -> Iterator[Any]:
    """A browser with a microphone that anybody may use."""
    with sync_api.sync_playwright() as playwright:
        if CHROMIUM is None and not Path(playwright.chromium.executable_path).exists():
            reason = "no Chromium: apt install chromium, or playwright install chromium"
            pytest.fail(reason) if os.environ.get("REQUIRE_BROWSERS") else pytest.skip(reason)
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # A container's root has no sandbox.
            args=[
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                *options,
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: FakeServer) -> Iterator[Any]:
    with opened(browser, server) as page:
        yield page


class opened:
    """A page in a context of its own. At its end: no error in the console, no request to another host."""

    def __init__(self, browser: Any, server: Any, **options: Any) -> None:
        """`server` has the `url`."""
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.page.add_init_script(RECORD_SCHEDULE)
        self.problems: list[str] = []
        self.page.on(
            "console", lambda line: line.type in ("error", "warning") and self.problems.append(line.text)
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._check(request.url, server.url))
        self.page.goto(server.url)
        wait_until(self.page, "!document.getElementById('device').hidden")

    def _check(self, url: str, base: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            self.problems.append(f"a request to {url}")

    def __enter__(self) -> Any:
        self.page.problems = self.problems
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if not any(error):
            assert self.problems == []


DRAWN = """
((canvas) => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, width, height);
  const pixel = (i) => `(${data[4 * i]}, ${data[4 * i + 1]}, ${data[4 * i + 2]})`;
  return Array.from({ length: width * height }, (_, i) => pixel(i));
})(document.querySelector(".wave canvas"))
"""
"""The colours of a waveform's pixels."""


def make(page: Any, prompt: str, **numbers: Any) -> None:
    page.fill("#prompt", prompt)
    for name, value in numbers.items():
        page.fill(f"#{name}", str(value))
    page.click("#make-button")


def wait_until(page: Any, expression: str, seconds: float = 15) -> None:
    """As `wait_for_function`, which the page's Content-Security-Policy forbids."""
    wait_for(page, lambda: page.evaluate(expression), seconds, expression)


def wait_for(page: Any, condition: Callable[[], object], seconds: float = 15, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        page.wait_for_timeout(20)


def gaps(pieces: list[dict[str, float]]) -> list[float]:
    """Samples between the end of a piece and the start of the next one."""
    found = []
    for one, other in itertools.pairwise(pieces):
        found.append((other["when"] - one["when"]) * one["rate"] - one["length"])
    return found


def test_a_click_makes_clips_that_are_in_the_history(page: Any, server: FakeServer) -> None:
    make(page, "slow piano", duration=2)
    expect(page.locator(DONE)).to_have_count(1)
    assert server.requests == [
        {
            "prompt": "slow piano",
            "model": "demo",
            "duration": 2,
            "takes": 2,
            "format": "wav",
            "normalize": "none",
        }
    ]
    expect(page.locator(".card-title")).to_have_text("slow piano")
    expect(page.locator(".clip")).to_have_count(2)


def test_it_is_heard_before_it_is_done_without_a_gap(page: Any, server: FakeServer) -> None:
    server.speed = 4
    page.evaluate("byClick = 0; addEventListener('click', () => byClick = performance.now(), true)")
    make(page, "slow piano", duration=8)
    wait_until(page, "pieces.length > 0")
    assert page.locator(LIVE).count() == 1
    wait_until(page, "pieces.reduce((sum, piece) => sum + piece.length, 0) >= 8 * 32000")
    pieces = page.evaluate("pieces.map(({ buffer, ...piece }) => piece)")
    assert len(pieces) >= 4
    assert max(map(abs, gaps(pieces))) < 1e-3
    # No resampling piece by piece, and each was scheduled before its time.
    assert {piece["rate"] for piece in pieces} == {piece["context"] for piece in pieces} == {RATE}
    assert all(piece["when"] >= piece["asked"] for piece in pieces)
    assert pieces[0]["wall"] - page.evaluate("byClick") < 3000  # ms, on a busy machine


def test_what_is_heard_is_what_was_made(page: Any, server: FakeServer) -> None:
    server.speed = 1.5
    page.click("#more summary")
    make(page, "slow piano", duration=4, seed=7, takes=1)
    wait_until(page, "pieces.reduce((sum, piece) => sum + piece.length, 0) >= 4 * 32000")
    heard, made = np.array(page.evaluate(RENDER), np.float32), tone(7, 4)
    begin = round(page.evaluate("pieces[0].when") * RATE)
    np.testing.assert_allclose(heard[begin : begin + len(made)], made, atol=1e-4)


def test_a_stream_that_runs_dry_waits_and_goes_on_where_it_was(page: Any, server: FakeServer) -> None:
    server.speed = 0.7
    make(page, "slow piano", duration=5, takes=1)
    expect(page.locator(DONE)).to_have_count(1, timeout=15_000)
    wait_until(page, "pieces.reduce((sum, piece) => sum + piece.length, 0) >= 5 * 32000")
    pieces = page.evaluate("pieces.map(({ buffer, ...piece }) => piece)")
    assert sum(piece["length"] for piece in pieces) == 5 * RATE  # nothing twice, nothing left out
    assert min(gaps(pieces)) > -1e-3
    pauses = [gap for gap in gaps(pieces) if gap > 1]
    assert len(pauses) <= 1


def test_on_a_slow_machine_the_first_sound_comes_soon_and_the_pauses_are_few(
    page: Any, server: FakeServer
) -> None:
    server.speed = 0.5
    page.evaluate("byClick = 0; addEventListener('click', () => byClick = performance.now(), true)")
    make(page, "slow piano", duration=8, takes=1)
    wait_until(page, "pieces.length > 0")
    first = page.evaluate("pieces[0].wall + 1000 * (pieces[0].when - pieces[0].asked) - byClick")
    assert first < 1500  # ms: 930 and the answer to the click
    made = page.evaluate("pieces[0].length") / RATE
    assert made < 0.6  # not after more than there was by then
    wait_until(page, "document.querySelector('#play svg').classList.contains('waiting')")
    page.wait_for_timeout(1000)
    assert page.locator("#play svg.waiting").count() == 1  # the next pieces don't end the pause
    expect(page.locator(DONE)).to_have_count(1, timeout=25_000)
    wait_until(page, "pieces.reduce((sum, piece) => sum + piece.length, 0) >= 8 * 32000")
    pieces = page.evaluate("pieces.map(({ buffer, ...piece }) => piece)")
    assert sum(piece["length"] for piece in pieces) == 8 * RATE
    pauses = [gap / RATE for gap in gaps(pieces) if gap > 1]
    assert 1 <= len(pauses) <= 2
    assert pauses[0] > 3


def test_on_a_machine_that_is_just_fast_enough_it_starts_when_it_will_not_stop(
    page: Any, server: FakeServer
) -> None:
    server.speed = 1.25
    make(page, "slow piano", duration=8, takes=1)
    wait_until(page, "pieces.length > 0")
    started = server.jobs[next(iter(server.jobs))].progress
    assert started is not None
    assert started.done < 2 * 50  # not after more than is needed
    wait_until(page, "pieces.reduce((sum, piece) => sum + piece.length, 0) >= 8 * 32000")
    pieces = page.evaluate("pieces.map(({ buffer, ...piece }) => piece)")
    assert max(map(abs, gaps(pieces))) < 1e-3


def test_what_is_asked_for_before_the_list_is_there_is_heard(page: Any, server: FakeServer) -> None:
    server.speed = 1.5
    page.add_init_script("""
        const wait = (address) => (String(address).startsWith("api/jobs?") ? 2000 : 0);
        const { fetch } = window;
        window.fetch = (address, options) =>
          new Promise((done) => setTimeout(() => done(fetch(address, options)), wait(address)));
    """)
    page.reload()
    wait_until(page, "document.querySelector('#model').selectedOptions.length")
    make(page, "slow piano", duration=8)
    assert page.locator(CARD).count() == 0
    wait_until(page, "pieces.length > 0", 8)
    assert page.locator(LIVE).count() == 1


def test_space_pauses_and_plays_what_is_made(page: Any, server: FakeServer) -> None:
    server.speed = 1.5
    make(page, "slow piano", duration=6, takes=1)
    wait_until(page, "pieces.length > 0")
    play = page.locator("#play")
    expect(play).to_have_attribute("aria-label", "Pause")
    # The focus is on Make, which was clicked: it isn't pressed once more.
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Play")
    time = page.inner_text("#now-time")
    page.wait_for_timeout(400)
    assert page.inner_text("#now-time") == time
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Pause")
    assert len(server.requests) == 1


def test_stop_cancels_what_is_made(page: Any, server: FakeServer) -> None:
    server.speed = 1
    expect(page.locator("#stop")).to_be_disabled()
    make(page, "slow piano", duration=20)
    expect(page.locator(LIVE)).to_have_count(1)
    wait_until(page, "pieces.length > 0")
    page.click("#stop")
    expect(page.locator(".card[data-status=cancelled]")).to_contain_text("Stopped")
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#stop")).to_be_disabled()


def test_a_second_click_on_stop_does_not_remove_the_job(page: Any, server: FakeServer) -> None:
    server.speed = 1
    make(page, "slow piano", duration=20)
    expect(page.locator(LIVE)).to_have_count(1)
    expect(page.locator("#player")).to_be_visible()
    tell = server.tell
    server.tell = lambda event, data: None  # type: ignore[method-assign]
    page.click("#stop")
    wait_until(page, "document.getElementById('player').hidden")
    page.wait_for_timeout(300)  # it was answered, but the event isn't there yet
    page.click("#stop")
    page.wait_for_timeout(300)
    server.tell = tell  # type: ignore[method-assign]
    (job,) = server.jobs.values()
    server.change(job.id)
    expect(page.locator(".card[data-status=cancelled]")).to_contain_text("Stopped")
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(CARD)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(CARD)).to_have_count(1)


def test_the_waveform_of_a_done_clip_is_that_of_its_file(page: Any, server: FakeServer) -> None:
    page.click("#more summary")
    page.select_option("#normalize", "peak")
    make(page, "slow piano", duration=2, takes=1)
    expect(page.locator(DONE)).to_have_count(1)
    wait_until(page, "Math.max(...document.querySelector('.wave').waveform.peaks.values) >= 254", 5)


def test_peaks_that_were_missed_are_read_after_a_reset(page: Any, server: FakeServer) -> None:
    server.speed = 4
    make(page, "slow piano", duration=30, takes=1)
    wait_until(page, "pieces.length > 0")
    tell = server.tell
    server.tell = lambda event, data: None if event == "peaks" else tell(event, data)  # type: ignore[method-assign]
    page.wait_for_timeout(700)
    server.tell = tell  # type: ignore[method-assign]
    values = "document.querySelector('.wave').waveform.peaks.values"
    wait_until(page, f"{values}.includes(undefined)", 5)
    server.tell("reset", None)
    wait_until(page, f"!{values}.includes(undefined)", 2)
    assert page.locator(LIVE).count() == 1


def test_take_2_of_2_plays(page: Any, server: FakeServer) -> None:
    server.add("slow piano", takes=2)
    page.reload()
    page.locator(".clip").nth(1).get_by_role("button", name="Play").click()
    expect(page.locator("#now-title")).to_have_text("slow piano · take 2")
    expect(page.locator(".clip").nth(1).locator(".play")).to_have_attribute("aria-label", "Pause")
    wait_until(page, "parseFloat(document.getElementById('seek').value) > 0.2")
    page.keyboard.press("p")
    expect(page.locator("#now-title")).to_have_text("slow piano · take 1")


def test_nothing_is_lost_when_the_page_is_loaded_again_in_the_middle(page: Any, server: FakeServer) -> None:
    server.speed = 2
    make(page, "slow piano", duration=5)
    wait_until(page, "pieces.length > 0")
    page.fill("#prompt", "what comes next")
    page.reload()
    expect(page.locator(LIVE)).to_have_count(1)
    expect(page.locator("#prompt")).to_have_value("what comes next")
    # What was made before is drawn, and it can be heard.
    expect(page.locator(".clip .play").first).to_be_enabled()
    page.locator(".clip .play").first.click()
    wait_until(page, "pieces.length > 0")
    expect(page.locator(DONE)).to_have_count(1)
    assert len(server.requests) == 1


def test_the_page_says_that_the_server_is_gone_and_finds_it_again(page: Any, server: FakeServer) -> None:
    server.add("slow piano")
    page.reload()
    expect(page.locator(DONE)).to_have_count(1)
    server.stop()
    expect(page.locator("#gone")).to_contain_text("be reached. Trying again")
    server.add("made meanwhile")
    server.start()
    expect(page.locator("#gone")).to_be_hidden(timeout=20_000)
    expect(page.locator(DONE)).to_have_count(2)
    assert page.problems  # Chromium itself reports each failed try
    page.problems.clear()


def scroll_to(page: Any, cards: int) -> None:
    for _ in range(40):
        page.mouse.move(800, 500)
        page.mouse.wheel(0, 8000)
        page.wait_for_timeout(60)
        if page.locator(CARD).count() == cards:
            break
    expect(page.locator(CARD)).to_have_count(cards)


def test_many_jobs_made_while_the_server_was_gone_are_all_read(page: Any, server: FakeServer) -> None:
    for number in range(30):
        server.add(f"before {number}", age=2000 - number)
    page.reload()
    expect(page.locator(CARD).first).to_contain_text("before 29")
    scroll_to(page, 30)
    server.stop()
    expect(page.locator("#gone")).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    for number in range(45):
        server.add(f"meanwhile {number}", age=1000 - number)
    server.start()
    expect(page.locator(CARD).first).to_contain_text("meanwhile 44", timeout=20_000)
    scroll_to(page, 75)
    page.problems.clear()  # Chromium itself reports each failed try


def test_200_jobs_come_as_one_scrolls(page: Any, server: FakeServer) -> None:
    for number in range(200):
        server.add(f"number {number}", age=1000 - number)
    page.reload()
    expect(page.locator(CARD).first).to_contain_text("number 199")
    assert page.locator(CARD).count() < 100
    scroll_to(page, 200)
    titles = page.locator(".card-title").all_inner_texts()
    assert titles == [f"number {number}" for number in range(199, -1, -1)]


def test_search_and_favourites(page: Any, server: FakeServer) -> None:
    for prompt in ("slow piano", "fast guitar", "slow strings"):
        server.add(prompt)
    page.reload()
    expect(page.locator(CARD)).to_have_count(3)
    page.fill("#search", "slow")
    expect(page.locator(CARD)).to_have_count(2)
    page.fill("#search", "tuba")
    expect(page.locator("#empty")).to_contain_text("Nothing found")
    page.fill("#search", "")
    expect(page.locator(CARD)).to_have_count(3)
    card = page.locator(CARD).filter(has_text="fast guitar")
    card.get_by_role("button", name="Favourite").click()
    expect(card.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    page.click("#only-favourites")
    expect(page.locator(CARD)).to_have_count(1)
    expect(page.locator(CARD)).to_contain_text("fast guitar")


def test_what_the_search_has_found_stays_when_it_changes(page: Any, server: FakeServer) -> None:
    found, other = server.add("slow grand piano"), server.add("slow guitar")
    page.reload()
    page.fill("#search", "piano  slow")
    expect(page.locator(CARD)).to_have_count(1)
    page.get_by_role("button", name="Favourite", exact=True).click()
    expect(page.locator(CARD).get_by_role("button", name="Favourite")).to_have_attribute(
        "aria-pressed", "true"
    )
    server.change(found.id, title="The slow one")
    server.change(other.id, title="Not a piano player's, slower")
    expect(page.locator(CARD)).to_have_count(2)


def test_delete_and_undo(page: Any, server: FakeServer) -> None:
    job = server.add("slow piano")
    page.reload()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(CARD)).to_have_count(0)
    expect(page.locator("#empty")).to_contain_text("No clips yet")
    assert job.id not in server.jobs
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(CARD)).to_have_count(1)
    assert job.id in server.jobs


def test_a_stream_without_a_sample_is_not_looped(page: Any, server: FakeServer) -> None:
    page.route("**/stream?*", lambda route: route.fulfill(status=404))
    # The button for it is in the player, which is hidden as long as nothing plays.
    page.evaluate("document.getElementById('loop').click()")
    make(page, "slow piano", duration=2)
    expect(page.locator("#now-title")).to_contain_text("slow piano")
    expect(page.locator(DONE)).to_have_count(1)
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    assert all("404" in problem for problem in page.problems), page.problems
    page.problems.clear()
    page.click("#play")  # now there is a file
    wait_until(page, "parseFloat(document.getElementById('seek').value) > 0.2")


def test_a_file_that_failed_to_load_is_loaded_at_the_next_click(page: Any, server: FakeServer) -> None:
    server.add("slow piano")
    page.reload()
    page.route("**/audio", lambda route: route.abort())
    play = page.locator(".clip .play")
    play.click()
    wait_until(page, "document.getElementById('play').ariaLabel === 'Play'")
    play.click()
    page.wait_for_timeout(200)
    expect(play).to_have_attribute("aria-label", "Play")
    page.unroute("**/audio")
    play.click()
    wait_until(page, "parseFloat(document.getElementById('seek').value) > 0.2")
    assert page.problems  # Chromium itself reports each failed try
    page.problems.clear()


def test_a_job_that_is_done_before_it_could_be_stopped_can_be_undeleted(
    page: Any, server: FakeServer
) -> None:
    server.speed = 1
    make(page, "slow piano", duration=20)
    expect(page.locator(LIVE)).to_have_count(1)
    (id,) = server.jobs

    def finish_first(route: Any) -> None:
        # Without an event: the page doesn't know yet.
        server.jobs[id] = server.jobs[id].model_copy(update={"status": schema.Status.DONE, "progress": None})
        route.continue_()

    page.route(f"**/api/jobs/{id}", finish_first)
    page.locator(LIVE).get_by_role("button", name="Stop").click()
    expect(page.locator(CARD)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(DONE)).to_have_count(1)


def test_a_list_that_was_read_before_events_changes_nothing_that_they_told(
    page: Any, server: FakeServer
) -> None:
    changed, removed = server.add("slow piano", title="slow"), server.add("sad strings")
    page.reload()
    expect(page.locator(CARD)).to_have_count(2)
    held: list[tuple[Any, Any]] = []
    page.route("**/api/jobs?*", lambda route: held.append((route, route.fetch())))
    unseen = server.add("marimba")
    server.tell("reset", None)
    wait_for(page, lambda: held)
    server.change(changed.id, title="slower")
    server.tell("removed", {"id": server.jobs.pop(removed.id).id})
    server.tell("job", dump(server.add("fast guitar")))
    titles = page.locator(".card-title")
    expect(titles).to_have_text(["fast guitar", "slower"])
    ((route, answer),) = held
    route.fulfill(response=answer)
    expect(page.locator(f"[data-id='{unseen.id}']")).to_have_count(1)
    expect(titles).to_have_text(["fast guitar", "marimba", "slower"])


def test_again_and_vary(page: Any, server: FakeServer) -> None:
    server.add("slow piano", takes=2, seed=40)
    page.reload()
    page.get_by_role("button", name="Again").click()
    expect(page.locator(CARD)).to_have_count(2)
    page.locator(DONE).last.get_by_role("button", name="Vary").first.click()
    expect(page.locator(CARD)).to_have_count(3)
    again, vary = server.requests
    assert (again["prompt"], again["takes"], again["seed"]) == ("slow piano", 2, 40)
    assert vary == again | {"seed": 42}


def record_melody(page: Any, model: str, milliseconds: int) -> None:
    page.select_option("#model", model)
    page.get_by_role("radio", name="Its melody").check(force=True)
    page.click("#record")
    expect(page.locator("#record")).to_contain_text("Stop")
    page.wait_for_timeout(milliseconds)
    page.click("#record")
    expect(page.locator(".reference")).to_contain_text("Recording")


def test_a_recording_becomes_a_melody(page: Any, server: FakeServer) -> None:
    record_melody(page, "facebook/musicgen-melody", 1200)
    (audio,) = server.audio.values()
    assert audio.sample_rate == RATE
    assert audio.duration > 0.5
    make(page, "a choir", duration=1)
    expect(page.locator(DONE)).to_have_count(1)
    assert server.requests[0]["melody"] == audio.id


def test_a_recording_is_kept_when_the_microphone_goes(page: Any, server: FakeServer) -> None:
    page.evaluate(
        """
        const { mediaDevices } = navigator;
        const ask = mediaDevices.getUserMedia.bind(mediaDevices);
        mediaDevices.getUserMedia = async (options) => (window.microphone = await ask(options));
        null  // Playwright would call a function
        """
    )
    page.click("#record")
    expect(page.locator("#record")).to_contain_text("Stop")
    page.wait_for_timeout(1000)
    page.evaluate("microphone.getTracks().forEach((track) => track.stop())")
    expect(page.locator(".reference")).to_contain_text("Recording")
    expect(page.locator("#record")).to_have_text("Record")
    assert len(server.audio) == 1


def test_a_midi_file_becomes_a_melody(page: Any, server: FakeServer, tmp_path: Path) -> None:
    midi = tmp_path / "tune.mid"
    midi.write_bytes(b"MThd, which is all that the server of this test reads")
    drop(page, "#drop", midi)
    expect(page.locator("#reference-state")).to_contain_text("follow a melody. Choose one that can.")
    page.select_option("#model", "facebook/musicgen-melody")
    drop(page, "#drop", midi)
    expect(page.locator(".reference[data-kind=melody]")).to_contain_text("tune.mid")
    page.click("#more summary")
    page.click("#commands summary")
    expect(page.get_by_label("Remove drums and bass")).to_be_hidden()
    expect(page.get_by_label("Chords")).to_be_hidden()
    page.get_by_label("Track").fill("2")
    expect(page.locator("#shell")).to_contain_text("--midi-track 2 -n 2 --melody tune.mid")
    make(page, "a choir", duration=1)
    expect(page.locator(DONE)).to_have_count(1)
    assert server.requests[0]["melody"] in server.audio
    assert server.requests[0]["midi_track"] == 2


def test_chords_are_asked_for_of_models_that_follow_a_melody(page: Any, server: FakeServer) -> None:
    chords = page.get_by_label("Chords")
    expect(chords).to_be_hidden()
    page.select_option("#model", "facebook/musicgen-melody")
    expect(page.get_by_label("Beats per minute")).to_be_hidden()
    chords.fill("| C Am | F G/B |")
    page.get_by_label("Beats per minute").fill("96")
    page.click("#commands summary")
    expect(page.locator("#shell")).to_contain_text("--chords '| C Am | F G/B |' --bpm 96")
    make(page, "", duration=1)
    expect(page.locator(DONE)).to_have_count(1)
    expect(page.locator(".card-title")).to_have_text("| C Am | F G/B |")
    assert server.requests[0]["chords"] == "| C Am | F G/B |"
    assert server.requests[0]["bpm"] == 96
    page.select_option("#model", "demo")
    make(page, "piano", duration=1)
    expect(page.locator(CARD)).to_have_count(2)
    assert not {"chords", "bpm"} & {*server.requests[1]}


def test_a_loop_is_as_long_as_its_bars_and_repeats(page: Any, server: FakeServer) -> None:
    bars = page.get_by_label("Bars")
    expect(bars).to_be_hidden()
    page.get_by_label("Loop: its end goes on").check()
    page.get_by_label("Beats per minute").fill("120")
    bars.fill("2")
    expect(page.locator("#duration")).to_have_value("4")
    expect(page.locator("#duration")).to_be_disabled()
    page.click("#commands summary")
    expect(page.locator("#shell")).to_have_text("musicgen-mlx -m demo --bars 2 --bpm 120 --loop -n 2")
    make(page, "piano")
    expect(page.locator(DONE)).to_have_count(1)
    (request,) = server.requests
    assert (request["loop"], request["bars"], request["bpm"], request["duration"]) == (True, 2, 120, 4)
    bars.fill("")
    expect(page.locator("#duration")).to_be_enabled()
    page.get_by_label("Loop: its end goes on").uncheck()
    expect(bars).to_be_hidden()
    expect(page.locator("#shell")).to_have_text("musicgen-mlx 'piano' -m demo -d 4 -n 2")
    job = server.add("piano", loop=True, bars=1, bpm=480.0, duration=0.5)
    page.reload()
    expect(page.get_by_label("Loop: its end goes on")).not_to_be_checked()
    expect(page.locator(DONE)).to_have_count(2)
    page.locator(DONE).first.get_by_role("button", name="Play").first.click()
    page.wait_for_timeout(1000)  # two rounds
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    drop(page, "#list", server.clip_file(job.clips[0].id, "wav"))
    expect(page.get_by_role("dialog")).to_contain_text("Loopyes")


def test_a_model_that_may_not_be_downloaded_says_so(page: Any, server: FakeServer) -> None:
    page.select_option("#model", "facebook/musicgen-style")
    expect(page.locator("#model-state")).to_contain_text("start the server with --allow-downloads")
    server.downloads = True
    page.reload()
    expect(page.locator("#model-state")).to_contain_text("It is downloaded when it is first used.")


def test_conditions_are_offered_only_by_models_that_have_them(page: Any, server: FakeServer) -> None:
    expect(page.locator("#kinds")).to_be_hidden()
    page.select_option("#model", "facebook/musicgen-style")
    expect(page.get_by_text("Its style")).to_be_visible()
    expect(page.get_by_text("Its melody")).to_be_hidden()


def test_a_model_that_fills_masks_has_other_fields(page: Any, server: FakeServer) -> None:
    server.models.append(
        server.models[0].model_copy(update={"name": "magnet-small-10s", "fills_masks": True})
    )
    page.reload()
    page.click("#more summary")
    page.fill("#cfg_coef", "4")
    expect(page.locator("#max_cfg_coef")).to_be_hidden()
    page.select_option("#model", "magnet-small-10s")
    for hidden in ("#cfg_coef", "#negative", "#add-section"):
        expect(page.locator(hidden)).to_be_hidden()
    page.fill("#max_cfg_coef", "8")
    page.fill("#decoding_steps", "5, 2,2,1")
    page.select_option("#span_arrangement", "stride1")
    make(page, "piano", takes=1, duration=2)
    expect(page.locator(CARD)).to_have_count(1)
    (request,) = server.requests
    assert "cfg_coef" not in request
    assert (request["max_cfg_coef"], request["span_arrangement"]) == (8, "stride1")
    assert request["decoding_steps"] == [5, 2, 2, 1]
    page.reload()
    expect(page.locator("#decoding_steps")).to_have_value("5,2,2,1")


def test_continue_from_the_cursor(page: Any, server: FakeServer) -> None:
    job = server.add("slow piano")
    page.reload()
    wave = page.locator(".wave")
    expect(wave).to_have_attribute("aria-disabled", "false")
    width = wave.bounding_box()["width"]
    wave.click(position={"x": width / 2, "y": 20})
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    wait_until(page, "parseFloat(document.getElementById('seek').value) > 3.9")
    page.click("#play")
    page.get_by_role("button", name="Continue").click()
    make(page, "now with drums", duration=2)
    expect(page.locator(DONE)).to_have_count(2)
    request = server.requests[0]
    assert request["continue"] == job.clips[0].id
    assert 3.9 < request["continue_at"] < 6


def test_a_part_of_a_clip_is_replaced(page: Any, server: FakeServer) -> None:
    job = server.add("slow piano")
    page.reload()
    page.get_by_role("button", name="Download and more").click()
    page.get_by_role("menuitem", name="Replace a part …").click()
    times = page.locator("[name=replace]")
    expect(times.first).to_be_focused()
    times.first.fill("1.5")
    times.last.fill("3")
    times.last.blur()
    page.locator("#commands summary").click()
    expect(page.locator("#shell")).to_contain_text("--replace 1.5-3 --edit 'slow piano'")
    expect(page.locator("#shell")).not_to_contain_text(" -d ")
    page.reload()  # the draft has it
    make(page, "a drum fill")
    expect(page.locator(DONE)).to_have_count(2)
    request = server.requests[0]
    assert (request["edit"], request["replace"]) == (job.clips[0].id, "1.5-3")
    assert "continue" not in request


def drop(page: Any, target: str, path: Path) -> None:
    data = page.evaluate_handle(
        """([name, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "audio/wav" }));
            return data;
        }""",
        [path.name, list(path.read_bytes())],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(target, event, {"dataTransfer": data})


def test_a_file_that_is_dropped_shows_how_it_was_made(page: Any, server: FakeServer, tmp_path: Path) -> None:
    job = server.add("slow piano", seed=40)
    drop(page, "#list", server.clip_file(job.clips[0].id, "wav"))
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("slow piano")
    expect(dialog).to_contain_text(job.command)
    dialog.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#prompt")).to_have_value("slow piano")
    expect(page.locator("#seed")).to_have_value("40")

    soundfile.write(tmp_path / "other.wav", np.zeros(100), RATE)
    drop(page, "#list", tmp_path / "other.wav")
    expect(page.get_by_role("dialog")).to_contain_text("Nothing in its tags")


def test_a_file_that_is_dropped_on_its_box_is_continued(
    page: Any, server: FakeServer, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "riff.wav", np.zeros(RATE), RATE)
    drop(page, "#drop", tmp_path / "riff.wav")
    expect(page.locator(".reference")).to_contain_text("riff.wav")
    assert server.names == ["riff.wav"]
    (tmp_path / "text.wav").write_text("no audio")
    drop(page, "#drop", tmp_path / "text.wav")
    expect(page.locator("#reference-state")).to_contain_text("no audio file")
    page.problems.clear()  # Chromium reports the answer 422


def test_html_in_a_prompt_is_text(page: Any, server: FakeServer) -> None:
    prompt = "<img src=x onerror=alert(1)><b>piano</b> & 'strings'"
    make(page, prompt, duration=1)
    expect(page.locator(DONE)).to_have_count(1)
    assert page.locator(".card-title").inner_text() == prompt
    assert page.locator(".card-title *, .card img").count() == 0


def test_a_job_that_fails_says_why(page: Any, server: FakeServer) -> None:
    make(page, "fail", duration=2)
    expect(page.locator(".card[data-status=failed]")).to_contain_text("The disk is full: 0.1 GB are free.")


def test_what_is_left_of_a_failed_job_is_heard_once(page: Any, server: FakeServer) -> None:
    server.speed = 4
    make(page, "slow piano", duration=30, takes=1)
    wait_until(page, "pieces.length > 0")
    (id,) = server.jobs
    server.change(id, status=schema.Status.FAILED, error="The disk is full.", clips=[])
    expect(page.locator(".card[data-status=failed]")).to_contain_text("The disk is full.")
    expect(page.locator("#player")).to_be_visible()
    expect(page.locator("#player")).to_be_hidden(timeout=15_000)


def test_icons_need_no_request(page: Any, server: FakeServer) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    make(page, "slow piano", duration=1)
    expect(page.locator(DONE)).to_have_count(1)
    assert not [url for url in asked if url.endswith(".svg") and not url.endswith("/icon.svg")]
    assert page.evaluate(EMPTY_ICONS) == []


def test_a_wrong_field_is_marked(page: Any, server: FakeServer) -> None:
    page.click("#make-button")
    expect(page.locator("#make-error")).to_contain_text("the prompt is empty")
    expect(page.locator("#prompt")).to_be_focused()
    page.click("#more summary")
    page.fill("#temperature", "-1")
    page.click("#more summary")
    make(page, "piano")
    expect(page.locator("#temperature")).to_be_focused()
    expect(page.locator("#temperature")).to_have_attribute("aria-invalid", "true")
    page.problems.clear()  # Chromium reports each answer 422


def test_what_is_no_number_is_marked(page: Any, server: FakeServer) -> None:
    page.click("#more summary")
    page.fill("#seed", "abc")
    make(page, "piano")
    expect(page.locator("#make-error")).to_contain_text("seed")
    expect(page.locator("#seed")).to_be_focused()
    page.fill("#seed", "7")
    page.locator("#temperature").press_sequentially("1e")  # whose value is ""
    page.click("#make-button")
    expect(page.locator("#make-error")).to_have_text("temperature: this is no number")
    expect(page.locator("#temperature")).to_be_focused()
    page.fill("#temperature", "1")
    make(page, "piano")
    expect(page.locator(DONE)).to_have_count(1)
    assert [(body["seed"], body.get("temperature")) for body in server.requests[-1:]] == [(7, 1)]
    page.problems.clear()  # Chromium reports each answer 422


def test_make_stays_where_it_is_when_the_form_grows(page: Any, server: FakeServer) -> None:
    before = page.locator("#make-button").bounding_box()
    page.click("#more summary")
    page.locator("#fade_out").scroll_into_view_if_needed()
    page.mouse.move(900, 500)  # over what isn't the form
    page.mouse.wheel(0, 500)
    page.wait_for_timeout(200)
    assert page.evaluate("scrollY") == 0
    after = page.locator("#make-button").bounding_box()
    assert after["y"] + after["height"] <= 900
    assert abs(after["y"] - before["y"]) < 1


def test_make_stays_where_it_is_when_music_begins(page: Any, server: FakeServer) -> None:
    page.set_viewport_size({"width": 1280, "height": 700})  # less than the form
    before = page.locator("#make-button").bounding_box()
    expect(page.locator("#player")).to_be_hidden()
    make(page, "slow piano", duration=2)
    expect(page.locator("#player")).to_be_visible()
    assert page.locator("#make-button").bounding_box() == before


def test_sections_and_what_it_shall_not_be_are_asked_for(page: Any, server: FakeServer) -> None:
    page.click("#commands summary")
    page.fill("#duration", "8")
    page.fill("#prompt", "calm piano")
    texts = page.get_by_label("What it plays then")
    page.get_by_role("button", name="Then …").click()
    expect(texts.first).to_be_focused()
    page.keyboard.type("full orchestra")
    page.get_by_label("From").first.fill("6")
    page.get_by_label("fade").first.fill("1.5")
    page.get_by_role("button", name="Then …").click()
    # Half of what is left.
    expect(page.get_by_label("From").nth(1)).to_have_value("7")
    page.get_by_label("From").nth(1).fill("3")
    texts.nth(1).fill("drums come in")
    page.get_by_role("button", name="Then …").click()
    page.get_by_role("button", name="Remove this section").nth(2).click()
    expect(page.get_by_role("button", name="Then …")).to_be_focused()
    page.click("#more summary")
    page.get_by_label("Not", exact=True).fill("-vocals, noise")
    expect(page.locator("#shell")).to_have_text(
        "musicgen-mlx 'calm piano' -m demo --section '3: drums come in' --section '6~1.5: full orchestra'"
        " '--negative=-vocals, noise' -n 2"
    )
    page.click("#make-button")
    expect(page.locator(CARD)).to_have_count(1)
    (request,) = server.requests
    assert request["sections"] == [
        {"start": 3, "text": "drums come in", "fade": 0},
        {"start": 6, "text": "full orchestra", "fade": 1.5},
    ]
    assert request["negative"] == "-vocals, noise"
    page.reload()
    expect(page.get_by_label("What it plays then").nth(1)).to_have_value("full orchestra")
    page.fill("#search", "ORCHESTRA")
    expect(page.locator(CARD)).to_have_count(1)


def test_a_section_that_does_not_fit_is_marked(page: Any, server: FakeServer) -> None:
    page.get_by_role("button", name="Then …").click()
    page.get_by_label("From").fill("50")
    page.get_by_label("What it plays then").fill("drums")
    make(page, "piano")
    expect(page.locator("#make-error")).to_contain_text("beyond the end of the clip")
    expect(page.get_by_label("What it plays then")).to_be_focused()
    page.problems.clear()  # Chromium reports each answer 422


def test_settings_of_a_clip_with_sections_are_used_again(page: Any, server: FakeServer) -> None:
    sections = [schema.JobSection(start=2.0, text="drums come in", fade=0.5)]
    job = server.add("slow piano", seed=40, sections=sections, negative="strings")
    drop(page, "#list", server.clip_file(job.clips[0].id, "wav"))
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 s: drums come in")
    expect(dialog).to_contain_text("strings")
    dialog.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("What it plays then")).to_have_value("drums come in")
    expect(page.get_by_label("From")).to_have_value("2")
    expect(page.locator("#section-list [data-part=fade]")).to_have_value("0.5")
    expect(page.locator("#negative")).to_have_value("strings")


def test_the_keyboard_is_enough(page: Any, server: FakeServer) -> None:
    server.speed = 3
    page.keyboard.press("m")
    page.keyboard.type("slow piano")
    page.keyboard.press("Control+Enter")
    wait_until(page, "pieces.length > 0")
    expect(page.locator(DONE)).to_have_count(1)
    # By Tab from the search, never by a pointer.
    page.locator("#prompt").press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    names = []
    for _ in range(20):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText"
            )
        )
    wanted = [
        "Only favourites",
        "Favourite",
        "Delete",
        "More",
        "Pause",
        "Position",
        "Vary",
        "Continue",
        "Download and more",
    ]
    positions = [names.index(name) for name in wanted]
    assert positions == sorted(positions)
    # A menu: arrows, Escape, and the focus is where it was.
    menu = page.locator(".clip").first.get_by_role("button", name="Download and more")
    menu.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="WAV")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("menuitem", name="FLAC")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".menu")).to_have_count(0)
    expect(menu).to_be_focused()
    # A waveform: a second with an arrow.
    wave = page.locator(".wave").first
    wave.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert 0.9 <= float(wave.get_attribute("aria-valuenow") or 0) < 3
    page.keyboard.press("Shift+?")
    expect(page.get_by_role("dialog")).to_contain_text("Next, previous clip")


def test_a_clip_can_be_downloaded_in_every_format(page: Any, server: FakeServer) -> None:
    server.add("slow piano")
    page.reload()
    for name in ("WAV", "FLAC", "MP3", "Ogg"):
        page.get_by_role("button", name="Download and more").click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=name).click()
        audio, rate = soundfile.read(download.value.path())
        assert (rate, len(audio) / rate) == (RATE, pytest.approx(8, abs=0.1))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_accessible_and_fits(browser: Any, server: FakeServer, scheme: str, width: int) -> None:
    from axe_playwright_python.sync_playwright import Axe

    server.speed = 1
    server.hint = "The demo model makes simple loops."
    server.add("long " * 300, takes=2)
    server.add("Donaudampfschifffahrtsgesellschaft" * 10)
    job = server.add("failed")
    server.change(job.id, status=schema.Status.FAILED, error="The disk is full.", clips=[])
    viewport = {"width": width, "height": 844}
    with opened(browser, server, viewport=viewport, color_scheme=scheme) as page:
        page.select_option("#model", "facebook/musicgen-melody")
        page.fill("#chords", "C Am F G")
        make(page, "slow piano", duration=20)
        page.click("#add-section")
        page.click("#more summary")
        page.click("#commands summary")
        wait_until(page, "pieces.length > 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        result = Axe().run(page)
        found = [
            f"{v['id']}: {v['nodes'][0]['html']}"
            for v in result.response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert found == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        levels = [int(number) for number in re.findall(r"\d+", background)]
        assert (max(levels) < 60) if scheme == "dark" else (min(levels) > 200)


def test_light_or_dark_is_remembered(page: Any) -> None:
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")


def test_a_waveform_has_the_colours_of_the_theme(page: Any, server: FakeServer) -> None:
    server.add("slow piano")
    page.reload()
    expect(page.locator(".wave")).to_have_attribute("aria-disabled", "false")
    for colour in ((201, 194, 182), (87, 82, 74)):  # --wave, light and dark
        wait_until(page, f"{DRAWN}.some((pixel) => pixel === '{colour}')")
        page.click("#theme")


def test_screen_readers_are_told_of_a_job(page: Any, server: FakeServer) -> None:
    make(page, "slow piano", duration=1)
    expect(page.locator("#said")).to_have_text("Done: slow piano")
    expect(page.locator("#said")).to_have_attribute("aria-live", "polite")


def test_the_commands_are_what_the_form_says(page: Any, server: FakeServer) -> None:
    page.click("#more summary")
    page.click("#commands summary")
    page.fill("#prompt", "it's slow")
    page.fill("#temperature", "0.9")
    page.fill("#seed", "7")
    expect(page.locator("#shell")).to_have_text(
        "musicgen-mlx 'it'\\''s slow' -m demo --seed 7 --temperature 0.9 -n 2"
    )
    curl = page.inner_text("#curl")
    address, body = re.fullmatch(r"curl (\S+) --json '(.*)'", curl.replace("'\\''", "")).groups()  # type: ignore[union-attr]
    assert address == f"{server.url}api/jobs"
    schema.JobRequest.model_validate(json.loads(body))
    server.token = True
    page.reload()
    expect(page.locator("#curl")).to_contain_text('/api/jobs -H "Authorization: Bearer $TOKEN" --json')


TYPEDEF = re.compile(r"@typedef \{Object\} (\w+)\n(.*?)\*/", re.DOTALL)
PROPERTY = re.compile(r"@property \{(.+)\} (\w+)$", re.MULTILINE)


def declared() -> dict[str, dict[str, str]]:
    """Type → field → type, of `api.js`."""
    text = (PAGE / "api.js").read_text(encoding="utf-8")
    return {name: {f: t for t, f in PROPERTY.findall(body)} for name, body in TYPEDEF.findall(text)}


def js_type(field: dict[str, Any]) -> str:
    """A JSON schema as `api.js` writes it."""
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[1]
    if "const" in field:
        return json.dumps(field["const"])
    if "enum" in field:
        return "|".join(map(json.dumps, field["enum"]))
    if "anyOf" in field:
        kinds = [js_type(kind) for kind in field["anyOf"]]
        return "?" + next(kind for kind in kinds if kind != "null")
    if field["type"] == "array":
        item = js_type(field["items"])
        return f"({item})[]" if "|" in item else f"{item}[]"
    if field["type"] == "object":
        return f"Object<string, {js_type(field['additionalProperties'])}>"
    return {"integer": "number"}.get(field["type"], field["type"])


def test_the_page_has_the_types_of_the_schema() -> None:
    types = declared()
    assert {"Job", "JobRequest", "Clip", "ModelInfo", "Health", "Peaks"} <= types.keys()
    for name, fields in types.items():
        model = getattr(schema, name).model_json_schema(by_alias=True, mode="serialization")
        statuses = {"Status": js_type(model.get("$defs", {}).get("Status", {"const": None}))}
        wanted = {field: js_type(value) for field, value in model["properties"].items()}
        assert fields == {field: statuses.get(kind, kind) for field, kind in wanted.items()}, name


def test_the_form_sends_only_fields_of_a_request(page: Any, server: FakeServer) -> None:
    names = set(page.eval_on_selector_all("#make [name]", "fields => fields.map(field => field.name)"))
    assert names - {"kind"} <= declared()["JobRequest"].keys()


def test_the_page_is_small_and_has_nothing_inline() -> None:
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 150_000
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", html)
    for path in PAGE.glob("*.js"):
        assert "innerHTML" not in path.read_text(encoding="utf-8"), path

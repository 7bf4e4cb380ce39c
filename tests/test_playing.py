"""When playing starts, and what is played; with a stand-in for the sound card."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocraft_mlx.cli import playing
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.cli.playing import Player, required_buffer
from audiocraft_mlx.errors import UsageError

from .fake_model import FakeModel, install, raiser

RATE = 1000


class Card(ModuleType):
    """The module `sounddevice`, and all of it that is used."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.played: list[np.ndarray] = []
        self.calls: list[str] = []
        self.options: dict[str, Any] = {}

    def OutputStream(self, **options: Any) -> Card:
        self.options = options
        return self

    def write(self, audio: np.ndarray) -> None:
        assert audio.flags.c_contiguous
        self.played.append(audio)

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def abort(self) -> None:
        self.calls.append("abort")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    monkeypatch.setattr(playing, "find_spec", lambda name: name)
    return card


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(playing.time, "perf_counter", lambda: self.now)


def second(value: float) -> np.ndarray:
    return np.full((1, RATE), value, np.float32)


@pytest.mark.parametrize("speed", [0.1, 0.5, 0.9, 1.0, 1.2, 3.0])
@pytest.mark.parametrize("seconds", [3, 30, 300])
def test_the_buffer_is_never_empty_at_the_measured_speed(speed: float, seconds: int) -> None:
    # Chunks of a second come every 1 / speed seconds; it is played as soon as that is allowed.
    made, start = 2, None
    while start is None and made < seconds:
        if made >= required_buffer(seconds - made, speed):
            start = made / speed
        else:
            made += 1
    if start is None:
        start = seconds / speed
    for chunk in range(seconds):
        assert (chunk + 1) / speed <= start + chunk + 1e-9, f"chunk {chunk} isn't there yet"


def test_no_more_is_buffered_than_needed() -> None:
    assert required_buffer(100, 2.0) == pytest.approx(1 / 1.8)
    assert required_buffer(9, 0.5) == pytest.approx(1 + 9 * (1 / 0.45 - 1))
    assert required_buffer(0.5, 0.5) == pytest.approx(0.5 / 0.45)
    assert required_buffer(0, 0.01) == 0


def test_it_begins_when_there_is_enough_and_says_so(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reported = Clock(monkeypatch), []
    player = Player(10, RATE, 1, reported.append)
    starts = []
    for chunk in range(10):
        clock.now += 1.25  # 0.8x real time
        player.write(second(chunk / 10))
        starts.append(bool(reported))
    player.finish()
    assert starts.index(True) == 3
    assert reported == ["playing, with 4.0 s ahead: it is made at 0.80x real time"]
    np.testing.assert_allclose(np.concatenate(card.played)[::RATE, 0], np.arange(10) / 10)
    assert card.calls == ["start", "stop", "close"]
    assert (card.options["samplerate"], card.options["channels"], card.options["dtype"]) == (
        RATE,
        1,
        "float32",
    )


def test_a_short_clip_is_played_when_it_is_done(card: Card) -> None:
    reported: list[str] = []
    player = Player(1, RATE, 1, reported.append)
    player.write_prompt(second(2.0))
    player.write(second(0.5))
    assert card.played == []
    player.finish()
    assert reported == ["playing"]
    # First the prompt, and nothing beyond full scale.
    np.testing.assert_array_equal(np.concatenate(card.played), [[1.0]] * RATE + [[0.5]] * RATE)


def test_it_can_be_stopped_at_once(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    player = Player(3, RATE, 1, lambda text: None)
    player.stop()
    assert card.calls == []
    player = Player(3, RATE, 1, lambda text: None)
    monkeypatch.setattr(card, "write", lambda audio: setattr(player, "_stopped", True))
    for _ in range(3):
        clock.now += 0.1
        player.write(second(0.5))
    player.finish()
    assert card.calls == ["start", "abort", "close"]


@pytest.mark.parametrize("error", [Card.PortAudioError("Error querying device -1"), OSError("no PortAudio")])
def test_without_a_device_one_line_says_so(
    card: Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(card, "OutputStream", raiser(error))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.warns(RuntimeWarning) as warned:
        player = Player(3, RATE, 1, print)
    (warning,) = warned
    assert str(warning.message) == f"nothing is played: no audio device can be used ({error})"
    for _ in range(3):
        player.write(second(0.5))
    player.finish()
    player.stop()
    assert capsys.readouterr() == ("", "")


def test_a_device_that_goes_away_is_no_failure(card: Card) -> None:
    card.write = raiser(Card.PortAudioError("device\nunplugged"))  # type: ignore[method-assign]
    player = Player(1, RATE, 1, lambda text: None)
    player.write(second(0.5))
    with pytest.warns(RuntimeWarning, match="^playing has ended: device unplugged$"):
        player.finish()


def test_without_sounddevice_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "find_spec", lambda name: util.find_spec("no_such_module"))
    with pytest.raises(UsageError, match=r"musicgen-mlx\[play\]"):
        playing.require_sounddevice()


# The command


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def test_what_is_played_is_what_is_written(
    fake: FakeModel, card: Card, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--normalize", "peak", "--bit-depth", "32", "-o", "out.wav"]
    assert main(["piano", "-d", "1", "--play", *options]) == 0
    played = np.concatenate(card.played)
    assert played.shape == (32000, 2)
    written, _ = soundfile.read("out.wav")
    np.testing.assert_allclose(written, played * 10 ** (-1 / 20) / 0.5, atol=1e-5)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "--normalize needs the whole clip: off in what is played, not in the file"


def test_several_clips_are_played_one_after_the_other(fake: FakeModel, card: Card) -> None:
    assert main(["piano", "-n", "2", "-d", "0.1", "--play", "--seed", "3"]) == 0
    assert fake.seeds == [3, 4]
    assert card.calls == ["start", "stop", "close"] * 2
    assert len(np.concatenate(card.played)) == 6400


def test_without_a_device_the_file_is_written(
    fake: FakeModel, card: Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(card, "OutputStream", raiser(Card.PortAudioError("no default output device")))
    assert main(["piano", "-d", "0.1", "--play"]) == 0
    assert Path("musicgen_output.wav").exists()
    error = "nothing is played: no audio device can be used (no default output device)"
    assert capsys.readouterr().err == f"musicgen-mlx: warning: {error}\n"


def test_without_portaudio_it_says_what_to_install(
    fake: FakeModel, card: Card, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(card, "OutputStream", raiser(OSError("PortAudio library not found")))
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["piano", "-d", "0.1", "--play"]) == 0
    error = "nothing is played: no audio device can be used (PortAudio library not found)"
    hint = "install PortAudio: apt install libportaudio2"
    assert capsys.readouterr().err == f"musicgen-mlx: warning: {error}; {hint}\n"


def test_without_sounddevice_nothing_is_made(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(playing, "find_spec", lambda name: None)
    assert main(["piano", "--play"]) == 2
    assert "--play needs sounddevice" in capsys.readouterr().err
    assert not fake.loaded


def test_ctrl_c_stops_the_sound_and_keeps_what_was_made(fake: FakeModel, card: Card) -> None:
    fake.during = raiser(KeyboardInterrupt())
    assert main(["piano", "-d", "0.3", "--play", "-o", "out.wav"]) == 130
    assert soundfile.info("out.wav").frames == 6400
    assert card.calls in ([], ["start", "abort", "close"])

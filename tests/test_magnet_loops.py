"""Loops of a model that fills masks: their join is a hole, filled with both sides in view."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from audiocraft_mlx.audio.loop import Loop, cut_loop, fill_join
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.making import Chunk, Finished, Progress, generate_clips
from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.models.loop_join import JoinHole, closing_seed, join_hole, seen_frames
from audiocraft_mlx.models.magnet import MAGNeT

from .test_loops import RATE, music, pads

STEPS = (3, 2, 1, 1)
HOP = 320  # of music at `RATE`: 50 frames per second


@pytest.fixture(scope="module")
def loaded(goldens: Path, hub_cache: Path) -> MAGNeT:
    return MAGNeT.get_pretrained(str(goldens / "goldens" / "magnet"))


@pytest.fixture
def model(loaded: MAGNeT) -> MAGNeT:
    loaded.set_generation_params(decoding_steps=STEPS, duration=1.0, seed=3)
    return loaded


@pytest.fixture
def cuts(model: MAGNeT, monkeypatch: pytest.MonkeyPatch) -> list[Loop]:
    """The loops of the model as they are cut, before their join is filled."""
    cuts: list[Loop] = []
    close = model.close_loop

    def record(loop: Loop, *given: object) -> Loop:
        cuts.append(loop)
        return close(loop, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "close_loop", record)
    return cuts


def places(loop: Loop) -> np.ndarray:
    """Which samples are in the part that was made anew: it may go around the end."""
    inside = np.zeros(loop.audio.shape[1], bool)
    inside[np.arange(*loop.join) % len(inside)] = True
    return inside


# The hole


@pytest.mark.parametrize("bpm", [120, 90])
def test_a_hole_is_two_beats_long_and_its_edges_are_before_beats(bpm: float) -> None:
    beat = 60 / bpm
    loop = cut_loop(music(bpm, 8 * beat + 3), RATE, round(8 * beat * RATE))
    assert loop.beat is not None
    hole = join_hole(loop, RATE, HOP, seen_frames(loop.audio.shape[1], HOP, 1500, 3), 3)
    assert hole.frames == int(2 * beat * 50)
    middle = sum(loop.join) / 2
    assert hole.start < middle - 0.1 * RATE
    assert hole.start + hole.frames * HOP > middle + 0.1 * RATE
    for edge in (hole.start, hole.start + hole.frames * HOP):
        # A loop begins on a beat.
        assert 0.08 < -(edge / RATE) % beat < 0.13


def test_without_a_beat_a_hole_has_a_second_around_the_join() -> None:
    loop = cut_loop(pads(7), RATE, 4 * RATE)
    assert loop.beat is None
    hole = join_hole(loop, RATE, HOP, 198, 3)
    assert (hole.frames, hole.seen, hole.before) == (50, 198, 72)
    assert hole.start + 25 * HOP == sum(loop.join) // 2


@pytest.mark.parametrize("samples", [16 * HOP, 40 * HOP + 7, 4 * RATE + 1])
@pytest.mark.parametrize("longest", [12, 48, 1500])
def test_a_quarter_of_what_is_seen_stays_on_either_side(samples: int, longest: int) -> None:
    loop = cut_loop(pads(7), RATE, samples)
    seen = seen_frames(samples, HOP, longest, 3)
    assert seen <= longest
    assert seen * HOP <= samples
    hole = join_hole(loop, RATE, HOP, seen, 3)
    assert hole.before % 3 == seen % 3 == 0
    assert hole.before >= seen / 4 - 3
    assert hole.before >= 3
    assert seen - hole.before - hole.frames >= seen / 4 - 1
    assert hole.start <= sum(loop.join) / 2 <= hole.start + hole.frames * HOP


def test_what_is_seen_goes_around_the_end() -> None:
    hole = JoinHole(start=-20, frames=4, before=3, seen=10, hop=10)
    view = hole.view(np.arange(1000.0)[None])
    np.testing.assert_array_equal(view[0], [*range(950, 1000), *range(50)])


def test_a_loop_too_short_for_a_hole_keeps_its_cross_fade(model: MAGNeT) -> None:
    assert seen_frames(11 * HOP, HOP, 1500, 3) == 0
    assert seen_frames(12 * HOP, HOP, 1500, 3) == 12
    model.set_generation_params(decoding_steps=STEPS, duration=0.2, seed=3)
    assert model.closing_steps(6400, model.params) == 0
    (loop,) = model.generate_loop(["piano"])
    assert loop.audio.shape == (1, 6400)
    assert not loop.is_filled


# What fills it


@pytest.mark.parametrize("audio", [music(120, 7), pads(7)], ids=["beat", "pads"])
def test_new_music_is_cross_faded_within_its_hole(audio: np.ndarray) -> None:
    loop = cut_loop(audio, RATE, 4 * RATE)
    new = cut_loop(music(120, 7, seed=5), RATE, RATE).audio
    filled = fill_join(loop, RATE, loop.join[0] - RATE // 2, new)
    inside = places(filled)
    assert inside.sum() == RATE
    np.testing.assert_array_equal(filled.audio[:, ~inside], loop.audio[:, ~inside])
    middle = (filled.join[0] + RATE // 4 + np.arange(RATE // 2)) % (4 * RATE)
    np.testing.assert_array_equal(filled.audio[:, middle], new[:, RATE // 4 : RATE // 4 + RATE // 2])
    assert filled.is_filled
    assert not filled.measure.join.clicks
    # At the hole's edges nothing has changed yet, so there is no step either.
    around = np.arange(-5, 5)
    for edge in filled.join:
        at = (edge + around) % (4 * RATE)
        np.testing.assert_array_equal(filled.audio[:, at], loop.audio[:, at])


def test_greedy_codes_are_those_of_an_infill(model: MAGNeT, cuts: list[Loop]) -> None:
    model.set_generation_params(use_sampling=False, decoding_steps=STEPS, duration=2.01, seed=3)
    (loop,) = model.generate_loop(["piano"])
    cut, inside = cuts[0], places(loop)
    assert loop.audio.shape == (1, 64320)
    assert loop.is_filled
    np.testing.assert_array_equal(loop.audio[:, ~inside], cut.audio[:, ~inside])
    assert not loop.measure.join.clicks
    # The same by hand: turned, so that the hole is in the middle of all whole spans of the loop.
    frames, before = (loop.join[1] - loop.join[0]) // 640, 24
    turned = np.roll(cut.audio, before * 640 - loop.join[0], axis=1)[:, : 99 * 640]
    hole = before / 50, (before + frames) / 50
    _, codes = model.generate_infill(turned, 32000, [hole], ["piano"], return_tokens=True)
    new = np.array(model.generate_audio(codes))[0][:, before * 640 : (before + frames) * 640]
    middle = np.arange(new.shape[1] // 4, 3 * new.shape[1] // 4)
    filled = loop.audio[:, (loop.join[0] + middle) % loop.audio.shape[1]]
    np.testing.assert_allclose(filled, new[:, middle], atol=1e-5)
    assert (np.abs(filled - cut.audio[:, (loop.join[0] + middle) % 64320]) > 1e-3).mean() > 0.9


def test_drawn_codes_have_a_seed_of_their_own(model: MAGNeT, cuts: list[Loop]) -> None:
    (loop,) = model.generate_loop(["piano"])
    (again,) = model.generate_loop(["piano"])
    np.testing.assert_array_equal(loop.audio, again.audio)
    other = model.close_loop(cuts[0], "piano", 4, model.params)
    assert (other.audio != loop.audio).any()
    assert closing_seed(2**32 - 1) not in (2**32 - 1, closing_seed(3))


def test_a_loop_longer_than_a_window_is_closed_within_one(model: MAGNeT, cuts: list[Loop]) -> None:
    model.max_duration = 1.0
    try:
        model.set_generation_params(
            decoding_steps=STEPS, duration=2.0, extend_stride=0.6, seed=1, span_arrangement="stride1"
        )
        (loop,) = model.generate_loop(["piano"])
    finally:
        model.max_duration = 4
    assert loop.audio.shape == (1, 64000)
    assert loop.is_filled
    assert loop.join[1] - loop.join[0] == 24 * 640  # half of the 48 whole frames that are seen
    inside = places(loop)
    np.testing.assert_array_equal(loop.audio[:, ~inside], cuts[0].audio[:, ~inside])


def test_loops_of_a_batch_are_those_that_come_alone(model: MAGNeT) -> None:
    batch = model.generate_loop(["piano", None])
    for row, text in enumerate(("piano", None)):
        model.set_generation_params(decoding_steps=STEPS, duration=1.0, seed=3 + row)
        (alone,) = model.generate_loop([text])
        assert alone.join == batch[row].join
        np.testing.assert_allclose(alone.audio, batch[row].audio, atol=1e-5)


def test_a_filled_join_that_would_stand_out_is_not_taken(
    model: MAGNeT, cuts: list[Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(loop: Loop, rate: int, start: int, new: np.ndarray) -> Loop:
        filled = fill_join(loop, rate, start, new)
        join = replace(filled.measure.join, flux=1.01, beat_flux=1.0)
        return replace(filled, measure=replace(filled.measure, join=join))

    monkeypatch.setattr("audiocraft_mlx.models.magnet.fill_join", fill)
    (loop,) = model.generate_loop(["piano"])
    assert loop is cuts[0]


# Progress


def test_steps_are_counted_to_the_end(model: MAGNeT) -> None:
    told: list[tuple[int, int]] = []
    model.set_custom_progress_callback(lambda *step: told.append(step))
    try:
        model.generate_loop(["piano", "drums"], progress=True)
    finally:
        model.set_custom_progress_callback()
    # Of two clips, then of two holes.
    assert told == [(done, 4 * sum(STEPS)) for done in range(1, 4 * sum(STEPS) + 1)]


def test_clips_are_closed_while_progress_is_counted(model: MAGNeT) -> None:
    told: list[Progress] = []
    requests = [ClipRequest("piano", seed, 0.6, decoding_steps=STEPS, loop=True) for seed in (1, 2)]
    events = [*generate_clips(model, requests, on_progress=told.append)]
    finished = [event for event in events if isinstance(event, Finished)]
    assert told == [Progress(done, 14, first) for first in range(2) for done in range(1, 15)]
    for index, event in enumerate(finished):
        made = sum(e.audio.shape[1] for e in events if isinstance(e, Chunk) and e.index == index)
        assert made == int(3.6 * 50) * 640
        assert event.loop is not None
        assert event.loop.audio.shape == (1, 19200)
        model.set_generation_params(decoding_steps=STEPS, duration=0.6, seed=index + 1)
        (loop,) = model.generate_loop(["piano"])
        assert loop.join == event.loop.join
        np.testing.assert_allclose(event.loop.audio, loop.audio, atol=1e-5)


def test_a_cancellation_while_a_loop_is_closed_comes_through(model: MAGNeT) -> None:
    class CancelledError(Exception):
        pass

    def on_progress(progress: Progress) -> None:
        if progress.done > 7:
            raise CancelledError

    request = ClipRequest("piano", 1, 0.6, decoding_steps=STEPS, loop=True)
    with pytest.raises(CancelledError):
        list(generate_clips(model, [request], on_progress=on_progress))


# On the command line


def test_of_several_takes_the_best_is_kept_and_made_again_by_its_command(
    goldens: Path,
    hub_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["-m", str(goldens / "goldens" / "magnet"), "--decoding-steps", "3,2,1,1", "--no-open"]
    loop = ["--loop", "--bars", "1", "--bpm", "120.1", "-n", "2", "--keep-best", "1", "--seed", "7"]
    assert main(["piano", *options, *loop, "-o", "best.wav"]) == 0
    printed = capsys.readouterr().out
    assert "made anew from " in printed
    assert "at whose edges the sound changes" in printed
    made, rate = soundfile.read("best.wav")
    assert len(made) == round(4 * 60 / 120.1 * rate) == 63947
    assert np.abs(np.diff(np.tile(made, 2)))[63946] <= np.abs(np.diff(made)).max()
    assert main(["--info", "best.wav"]) == 0
    again = next(line for line in capsys.readouterr().out.splitlines() if "--loop" in line)
    words = shlex.split(again[again.index("musicgen-mlx ") :])[1:]
    assert main([*words, "-o", "again.wav", "--no-open"]) == 0
    np.testing.assert_array_equal(soundfile.read("again.wav")[0], made)


def test_memory_stays_flat(model: MAGNeT) -> None:
    model.generate_loop(["piano"])
    before = mx.get_active_memory()
    for _ in range(5):
        model.generate_loop(["piano"])
    assert mx.get_active_memory() <= before + 2**16

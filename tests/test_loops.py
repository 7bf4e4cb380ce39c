"""Loops: exactly as long as asked for, with an end that goes on at the beginning, for samplers to read."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiocraft_mlx import UsageError
from audiocraft_mlx.audio.beat import find_beat, first_beat
from audiocraft_mlx.audio.flux import log_spectra, onset_strength
from audiocraft_mlx.audio.loop import Loop, cut_loop, measure_loop
from audiocraft_mlx.audio.read import read_audio
from audiocraft_mlx.audio.stretch import stretch_loop
from audiocraft_mlx.cli.arguments import GenerateClips, parse
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.cli.loop_takes import LoopTakes
from audiocraft_mlx.clips.finishing import finish_audio, separate_stems
from audiocraft_mlx.clips.loops import LoopShape, around_loop
from audiocraft_mlx.clips.metadata import describe_request, read_metadata
from audiocraft_mlx.clips.requests import ClipRequest, FieldError, ModelOptions, OutputOptions
from audiocraft_mlx.clips.saving import save_clip
from audiocraft_mlx.clips.source import AudioInput
from audiocraft_mlx.conditioning.tempo import with_tempo
from audiocraft_mlx.models import memory
from audiocraft_mlx.models.magnet import MAGNeT
from audiocraft_mlx.models.musicgen import MusicGen

from .fake_model import FakeModel, install

RATE = 16_000


def music(bpm: float, seconds: float, first: float = 0.15, seed: int = 0) -> np.ndarray:
    """A plucked note on each beat, of a random pitch, with a burst of noise, float32 `[1, samples]`."""
    audio = np.zeros((1, round(seconds * RATE)), np.float32)
    draw = np.random.default_rng(seed)
    length = round(60 / bpm * RATE)
    time = np.arange(length) / RATE
    for at in np.arange(first, seconds, 60 / bpm):
        hertz = 220 * 2 ** (draw.integers(0, 12) / 12)
        note = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in (1, 2, 3)) * np.exp(-4 * time)
        note[:400] += 0.3 * draw.normal(size=400) * np.exp(-np.arange(400) / 100)
        place = round(at * RATE)
        audio[0, place : place + length] += 0.2 * note[: audio.shape[1] - place].astype(np.float32)
    return audio


def pads(seconds: float, seed: int = 0) -> np.ndarray:
    """Three tones that come and go: there is no beat."""
    time, draw = np.arange(round(seconds * RATE)) / RATE, np.random.default_rng(seed)
    tones = [
        np.sin(2 * np.pi * hertz * time) * (1 + np.sin(2 * np.pi * draw.uniform(0.6, 1.2) * time))
        for hertz in draw.uniform(100, 800, 3)
    ]
    return (0.1 * np.sum(tones, axis=0, dtype=np.float32))[None]


def steps(audio: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(audio, axis=1)).max(axis=0)


# A loop


@pytest.mark.parametrize("audio", [music(120, 7), music(117, 7), pads(7)], ids=["as asked", "slower", "pads"])
def test_a_loop_goes_on_at_its_beginning(audio: np.ndarray) -> None:
    loop = cut_loop(audio, RATE, 4 * RATE)
    assert loop.audio.shape == (1, 4 * RATE)
    assert loop.audio.dtype == np.float32
    twice = steps(np.tile(loop.audio, 2))
    within = steps(loop.audio).max()
    assert twice[4 * RATE - 1] <= within
    start, end = loop.join
    assert 0 < end - start <= 0.5 * RATE
    assert not loop.measure.join.clicks
    assert loop.measure.score < 1
    cut = measure_loop(audio[:, : 4 * RATE], RATE, (0, 0), find_beat(log_spectra(audio, RATE)))
    assert loop.measure.score < cut.score


def test_music_at_the_tempo_is_unchanged_but_for_the_cross_fade() -> None:
    audio = music(120, 7)
    loop = cut_loop(audio, RATE, 4 * RATE)
    assert loop.stretch == 0
    assert loop.beats == 8
    start, end = loop.join
    turned = np.roll(loop.audio, -end, axis=1)[:, : 4 * RATE - (end - start)]
    windows = np.lib.stride_tricks.sliding_window_view(audio[0], turned.shape[1])
    (begins,) = np.nonzero(windows[:, 0] == turned[0, 0])
    assert any(np.array_equal(windows[begin], turned[0]) for begin in begins)


@pytest.mark.parametrize(("bpm", "beats"), [(117, 8), (107, 7), (126, 8)])
def test_music_at_another_tempo_is_stretched_to_whole_beats(bpm: float, beats: int) -> None:
    loop = cut_loop(music(bpm, 7), RATE, 4 * RATE)
    assert loop.beats == beats
    assert loop.stretch == pytest.approx(4 / (beats * 60 / bpm) - 1, abs=0.003)
    assert loop.measure.beat_error is not None
    assert abs(loop.measure.beat_error) < 0.02
    # Three rounds have one beat throughout, and the loop begins on it.
    spectra = log_spectra(np.tile(loop.audio, 3), RATE)
    found = find_beat(spectra)
    assert found is not None
    assert found.period == pytest.approx(4 / beats, rel=2e-3)
    first = first_beat(onset_strength(spectra), spectra.seconds, 4 / beats)
    assert min(first, 4 / beats - first) < 0.02


def test_a_stretched_loop_has_its_pitch_and_still_loops() -> None:
    seconds, hertz = 2.0, 440.0
    tone = np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)[None]
    for samples in (round(1.93 * RATE), round(2.08 * RATE)):
        stretched = stretch_loop(tone, RATE, samples)
        assert stretched.shape == (1, samples)
        spectrum = np.abs(np.fft.rfft(np.tile(stretched[0], 2)))
        assert np.argmax(spectrum) / (2 * samples / RATE) == pytest.approx(hertz, abs=0.6)
        assert np.sqrt(np.mean(stretched**2)) == pytest.approx(np.sqrt(0.5), rel=0.05)
        assert steps(np.tile(stretched, 2)).max() < 1.3 * steps(tone).max()
    assert stretch_loop(tone, RATE, tone.shape[1]) is tone


@pytest.mark.parametrize("samples", [1, 100, 3000, RATE])
def test_any_length_can_be_cut(samples: int) -> None:
    for audio in (music(120, 2), np.zeros((2, 2 * RATE), np.float32)):
        loop = cut_loop(audio, RATE, samples)
        assert loop.audio.shape == (len(audio), samples)
        assert np.isfinite(loop.measure.score)


def test_what_is_shorter_than_the_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="no loop of 100 samples"):
        cut_loop(np.zeros((1, 99), np.float32), RATE, 100)


# What is asked for


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("techno", "techno, 120 bpm"),
        ("techno.", "techno, 120 bpm"),
        ("techno at 90 BPM", "techno at 90 BPM"),
        ("techno, 128bpm", "techno, 128bpm"),
        ("100 beats per minute, jazz", "100 beats per minute, jazz"),
        ("bpm music", "bpm music, 120 bpm"),
        (" ", " "),
    ],
)
def test_the_tempo_is_added_unless_it_is_there(prompt: str, wanted: str) -> None:
    assert with_tempo(prompt, 120.0) == wanted
    assert with_tempo(prompt, None) == prompt


@pytest.mark.parametrize(
    ("bars", "bpm", "beats_per_bar", "seconds"),
    [(4, 120, None, 8.0), (2, 90, 3, 4.0), (3, 97.5, 7, 21 * 60 / 97.5)],
)
def test_bars_say_how_long_it_is(bars: int, bpm: float, beats_per_bar: int | None, seconds: float) -> None:
    request = ClipRequest("jazz", loop=True, bars=bars, bpm=bpm, beats_per_bar=beats_per_bar)
    assert request.duration == pytest.approx(seconds, rel=1e-12)
    assert request.description == f"jazz, {bpm:g} bpm"
    shape = LoopShape.of(request)
    assert shape is not None
    audio = np.zeros((1, round((seconds + 3) * 8000)), np.float32)
    assert shape.cut(audio, 8000).audio.shape[1] == round(seconds * 8000)


def test_how_it_was_made_has_the_prompt_as_it_was_given() -> None:
    request = ClipRequest("jazz", 3, loop=True, bars=4, bpm=120)
    metadata = describe_request(request, OutputOptions(), ModelOptions("demo"))
    assert metadata.to_command() == "musicgen-mlx jazz --model demo --seed 3 --loop --bars 4 --bpm 120"
    command = parse(metadata.to_command().split()[1:])
    assert isinstance(command, GenerateClips)
    assert command.requests == (request,)
    assert ClipRequest.from_dict(request.to_dict()) == request
    assert "loop" not in ClipRequest("jazz", 3).to_dict()
    # A clip that is no loop has its prompt alone.
    assert ClipRequest("jazz", 3).description == "jazz"


def test_a_melody_comes_around_before_and_after() -> None:
    ramp = AudioInput(np.arange(500, dtype=np.float32)[None], 100)
    around = around_loop(ramp, 4.0)
    assert around.shape == (1, 700)
    np.testing.assert_array_equal(around[0, 100:500], np.arange(400))
    np.testing.assert_array_equal(around[0, :100], np.arange(300, 400))
    np.testing.assert_array_equal(around[0, 500:], np.arange(200))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loop": "yes"}, "loop must be true or false"),
        ({"bars": 4, "bpm": 120}, "bars are those of a loop; they need loop"),
        ({"loop": True, "bars": 4}, "bars need bpm, which say how long they are"),
        ({"loop": True, "bars": 0, "bpm": 120}, "bars must be an integer from 1"),
        ({"loop": True, "sections": [(1, "a")]}, "loop and sections don't go together"),
        ({"loop": True, "source": "a.wav"}, "loop and source don't go together"),
    ],
)
def test_a_request_that_cannot_loop_is_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ClipRequest("a", **values)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-best", "1"], "--keep-best is for loops; it needs --loop"),
        (["--loop", "--bars", "4"], "--bars need --bpm"),
        (["--loop", "--bars", "4", "--bpm", "0"], "argument --bpm: must be a number of beats per minute"),
        (["--loop", "--bars", "4", "--bpm", "90", "-d", "3"], "--bars and --duration don't go together"),
        (["--loop", "--bars", "4", "--bpm", "90", "-d", "8"], "--bars and --duration don't go together"),
        (["--loop", "-o", "-"], "a loop is cut when all of it is made, and can't be streamed"),
        (["--loop", "--play"], "leave --play out"),
        (["--loop", "--continue", "a.wav"], "--loop and --continue don't go together"),
        (["--loop", "--edit", "a.wav", "--replace", "1-2"], "--loop and --edit don't go together"),
        (["--loop", "--section", "1: a"], "--loop and --section don't go together"),
        (["--loop", "--fade-out", "1"], "--loop and --fade-out: a loop's end goes on at its beginning"),
        (["--loop", "-o", "a.mp3"], "--loop: MP3 has silence at its ends; choose --format wav"),
        (["--loop", "-n", "2", "--keep-best", "3"], "--keep-best 3 are more than the takes"),
    ],
)
def test_options_that_do_not_go_with_a_loop_are_one_line(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["piano", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not fake.loaded


def test_a_melody_is_as_long_as_what_is_made(fake: FakeModel) -> None:
    import soundfile

    fake.condition_types = frozenset({"text", "melody"})
    soundfile.write("a.wav", np.sin(np.arange(8000) * 0.1), 8000)
    assert main(["a", "--melody", "a.wav", "-m", "melody", "--loop", "-d", "0.5", "-o", "b.wav"]) == 0
    assert fake.condition_inputs["melody_wavs"][0].shape == (1, 28_000)


# Several takes


def test_the_best_takes_of_each_prompt_come_first() -> None:
    takes: LoopTakes[str] = LoopTakes()
    first, second = range(3), range(3, 6)
    assert takes.add(0, 0.5, "a", first, 2) == []
    assert takes.add(3, 0.1, "d", second, 3) == []
    assert takes.add(2, 0.7, "c", first, 2) == []
    assert [(r.place, r.take) for r in takes.add(1, 0.2, "b", first, 2)] == [(0, "b"), (1, "a"), (None, "c")]
    assert [(r.place, r.take) for r in takes.rest()] == [(3, "d")]
    assert takes.rest() == []


def test_files_are_numbered_by_how_well_they_loop(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = iter([0.4, 0.3, 0.2, 0.1, 0.5, 0.6])

    def cut(audio: np.ndarray, rate: int, samples: int) -> Loop:
        assert audio.shape[1] == round(4 * rate)  # the lead-in and the lead-out, too
        loop = cut_loop(audio[:, : rate // 2], rate, 8000)
        join = replace(loop.measure.join, flux=next(seeds), beat_flux=1.0, step=0.0)
        return replace(loop, audio=audio[:, :samples], measure=replace(loop.measure, join=join))

    monkeypatch.setattr("audiocraft_mlx.clips.loops.cut_loop", cut)
    options = ["-d", "1", "--loop", "-n", "3", "--keep-best", "2", "--seed", "7", "-o", "a.wav"]
    assert main(["one", "two", *options]) == 0
    assert sorted(path.name for path in Path().glob("*.wav")) == [f"a-{n}.wav" for n in (1, 2, 3, 4)]
    made = [read_metadata(Path(f"a-{n}.wav")) for n in (1, 2, 3, 4)]
    assert [(m.prompt, m.seed) for m in made if m] == [("one", 9), ("one", 8), ("two", 10), ("two", 11)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wrote a-1.wav: stereo, 1.00 s, 32000 Hz, seed 9")
    assert lines[1].startswith("joined at ")
    assert "changes 0.20 times as much as at its strongest " in lines[1]


def test_an_interruption_keeps_the_takes_that_are_there(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "max_batch_size", lambda *values: 0 if values[4] else 1)

    def interrupt() -> None:
        if len(fake.batches) == 2:
            raise KeyboardInterrupt

    fake.during = interrupt
    assert main(["one", "-d", "0.5", "--loop", "-n", "2", "-o", "a.wav"]) == 130
    first = read_audio("a-1.wav")[0]
    assert first.shape[1] == 16000  # the one that is complete, as a loop


# Files


def chunks_of(path: Path) -> dict[bytes, bytes]:
    data = path.read_bytes()
    assert data[:4] == b"RIFF"
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    chunks, position = {}, 12
    while position < len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        chunks[name] = data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2
    assert position == len(data)
    return chunks


@pytest.fixture
def loop_file(tmp_path: Path) -> Callable[..., Path]:
    def write(output: OutputOptions, **values: object) -> Path:
        request = ClipRequest("jazz", 3, duration=2.0, loop=True, **values)  # type: ignore[arg-type]
        shape = LoopShape.of(request)
        assert shape is not None
        audio = music(120, 5)
        finished = finish_audio(audio, RATE, output, loop=shape.cut(audio, RATE), shape=shape)
        metadata = describe_request(request, output, ModelOptions("demo"))
        path = tmp_path / f"a.{output.audio_format}"
        save_clip(path, finished, metadata)
        return path

    return write


@pytest.mark.parametrize("with_mutagen", [True, False])
@pytest.mark.parametrize("bits", [16, 24])
def test_samplers_find_the_loop_and_its_tempo(
    loop_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, with_mutagen: bool, bits: int
) -> None:
    if not with_mutagen:
        monkeypatch.setitem(__import__("sys").modules, "mutagen", None)
    path = loop_file(OutputOptions(bit_depth=bits), bpm=90, beats_per_bar=3)
    chunks = chunks_of(path)
    sampler = struct.unpack("<9I6I", chunks[b"smpl"])
    assert sampler == (0, 0, 62500, 60, 0, 0, 0, 1, 0, 0, 0, 0, 2 * RATE - 1, 0, 0)
    flags, note, _, _, beats, denominator, numerator, tempo = struct.unpack("<IHHfIHHf", chunks[b"acid"])
    assert (flags, note, beats, denominator, numerator) == (4, 60, 3, 4, 3)
    assert tempo == pytest.approx(90)
    assert (b"id3 " in chunks) == with_mutagen
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata.options["loop"] is True
    audio, rate = read_audio(path)
    assert (audio.shape, rate) == ((1, 2 * RATE), RATE)


def test_without_a_tempo_the_beats_are_those_that_were_found(loop_file: Callable[..., Path]) -> None:
    chunks = chunks_of(loop_file(OutputOptions()))
    assert struct.unpack("<IHHfIHHf", chunks[b"acid"])[4] == 4
    # 3.33 beats say nothing.
    assert b"acid" not in chunks_of(loop_file(OutputOptions(), bpm=100))


@pytest.mark.parametrize("name", ["flac", "ogg"])
def test_other_formats_have_the_exact_length(loop_file: Callable[..., Path], name: str) -> None:
    assert read_audio(loop_file(OutputOptions(name)))[0].shape == (1, 2 * RATE)


def test_the_stems_of_a_loop_are_loops(loop_file: Callable[..., Path]) -> None:
    class Separator:
        sample_rate, channels, sources = RATE, 1, ("drums",)

        def separate(self, mix: object) -> list[list[np.ndarray]]:
            self.mix = np.array(mix)
            return [[self.mix[0]]]

    separator = Separator()
    audio, shape = music(120, 5), LoopShape(2.0)
    finished = finish_audio(audio, RATE, OutputOptions(), loop=shape.cut(audio, RATE), shape=shape)
    ((name, stem),) = separate_stems(finished, 1.0, separator)  # type: ignore[arg-type]
    assert name == "drums"
    np.testing.assert_array_equal(stem.as_array(), finished.as_array())
    np.testing.assert_array_equal(separator.mix[0], np.tile(finished.as_array(), 3))
    assert stem.loop == finished.loop


def test_the_plot_marks_the_join(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from audiocraft_mlx.audio.plot import save_plot

    audio = pads(1)
    red = []
    for join in (None, (15800, 16400)):
        save_plot(tmp_path / "a.png", audio, RATE, "", None, join)
        picture = imread(tmp_path / "a.png")[:180, :, :3]
        red.append((picture[..., 0] > picture[..., 2] + 0.2).any(axis=0))
    assert not red[0].any()
    # What goes around the end is at the beginning, too.
    width = red[1].size
    assert red[1][: width // 2].any()
    assert red[1][width // 2 :].any()


# With models


def test_a_loop_of_the_demo_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", "demo", "piano", "--loop", "-d", "0.00001"]) == 2
    assert "duration must be at least one frame, 0.02 s" in capsys.readouterr().err
    options = ["-m", "demo", "--loop", "--bars", "1", "--bpm", "160", "--seed", "1"]
    assert main(["fast happy piano", *options, "-o", "a.wav"]) == 0
    audio = read_audio("a.wav")[0]
    assert audio.shape == (1, 48000)
    assert steps(np.tile(audio, 2))[47999] <= steps(audio).max()
    metadata = read_metadata(Path("a.wav"))
    assert metadata is not None
    assert metadata.prompt == "fast happy piano"
    model = MusicGen.get_pretrained("demo")
    model.set_generation_params(seed=1)
    (loop,) = model.generate_loop(["fast happy piano"], bars=1, bpm=160)
    assert np.abs(loop.audio - audio).max() < 1e-3
    with pytest.raises(UsageError, match="bars need bpm"):
        model.generate_loop(["a"], bars=1)
    with pytest.raises(UsageError, match="without sections"):
        model.generate_loop([[(0, "a")]])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="must be a list of texts"):
        model.generate_loop(None)  # type: ignore[arg-type]


def test_models_that_fill_masks_make_loops(goldens: Path, hub_cache: Path) -> None:
    model = MAGNeT.get_pretrained(str(goldens / "goldens" / "magnet"))
    model.set_generation_params(decoding_steps=(2, 1, 1, 1), duration=0.5, seed=1)
    (loop,) = model.generate_loop(["piano"])
    assert loop.audio.shape == (1, model.sample_rate // 2)


def test_a_field_that_is_refused_has_its_name_in_json() -> None:
    with pytest.raises(FieldError) as error:
        ClipRequest("a", loop=True, source=Path("a.wav"))
    assert error.value.describe(lambda name: name.upper()).startswith("LOOP and SOURCE")
    assert json.dumps(ClipRequest("a", 1, loop=True).to_dict())

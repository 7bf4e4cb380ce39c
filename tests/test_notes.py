"""Notes in place of audio: MIDI files and chords, to chroma, into a model and through the command."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import mido
import mlx.core as mx
import numpy as np
import pytest

from audiocraft_mlx import MusicGen, Notes, UsageError, chord_notes, read_midi
from audiocraft_mlx.cli.generate import main
from audiocraft_mlx.clips.metadata import read_metadata
from audiocraft_mlx.clips.requests import ClipRequest, FieldError
from audiocraft_mlx.conditioning.chords import parse_chords
from audiocraft_mlx.conditioning.chroma import ChromaConfig, melody_chroma
from audiocraft_mlx.conditioning.midi import MAX_BYTES, parse_midi
from audiocraft_mlx.conditioning.note_chroma import chroma_of_notes
from audiocraft_mlx.conditioning.notes import Sound

from .fake_model import FakeModel, install

CONFIG = ChromaConfig()
HOP = 4096 / 32000
SCALE = [60, 62, 64, 65, 67, 69, 71, 72]
PITCHES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


def track(*events: tuple[float, str, dict[str, int]], name: str | None = None) -> mido.MidiTrack:
    """Messages at their beats, in order."""
    made = mido.MidiTrack([] if name is None else [mido.MetaMessage("track_name", name=name)])
    before = 0
    for beat, kind, values in events:
        tick = round(beat * 480)
        message = mido.MetaMessage if kind == "set_tempo" else mido.Message
        made.append(message(kind, time=tick - before, **values))
        before = tick
    return made


def notes(
    *pitches: int | None, beats: float = 1.0, channel: int = 0, start: float = 0.0, name: str | None = None
) -> mido.MidiTrack:
    """One note after the other; None is a rest. They end as most files have it: a note with velocity 0."""
    events = []
    for number, pitch in enumerate(pitches):
        if pitch is not None:
            for index, velocity in ((number, 64), (number + 1, 0)):
                values = {"note": pitch, "velocity": velocity, "channel": channel}
                events.append((start + index * beats, "note_on", values))
    return track(*events, name=name)


def midi(*tracks: mido.MidiTrack, **options: int) -> bytes:
    data = io.BytesIO()
    mido.MidiFile(type=options.pop("type", 1), ticks_per_beat=480, tracks=[*tracks], **options).save(
        file=data
    )
    return data.getvalue()


def pitch_at(got: Notes, second: float) -> int | None:
    return next((sound.pitches[0] for sound in got.sounds if sound.start <= second < sound.end), None)


def classes_at(frames: np.ndarray, second: float) -> set[str]:
    return {PITCHES[index] for index in np.flatnonzero(frames[round(second / HOP)])}


# MIDI


def test_the_chroma_of_a_scale_is_its_notes_frame_by_frame() -> None:
    """With a track that has the tempo alone, a tempo that changes, and running status."""
    tempi = track((0, "set_tempo", {"tempo": 610_000}), (4, "set_tempo", {"tempo": 430_000}))
    data = midi(tempi, notes(*SCALE, name="Lead"))
    assert data.count(b"\x90") == 1, "no running status"
    got = parse_midi(data, "scale.mid")
    assert got.duration == pytest.approx(4 * 0.61 + 4 * 0.43)
    borders = np.cumsum([0.61] * 4 + [0.43] * 4)
    times = np.arange(CONFIG.length) * HOP % got.duration
    wanted = np.array(SCALE)[np.searchsorted(borders, times, side="right")] % 12
    np.testing.assert_array_equal(chroma_of_notes(got, CONFIG), np.eye(12)[wanted])


@pytest.mark.parametrize(("beat", "rest"), [(0.5, 0.0), (0.25, 0.0), (0.4, 0.3), (0.8, 1.2)])
def test_frames_are_those_of_audio_in_which_the_notes_sound(beat: float, rest: float) -> None:
    random = np.random.default_rng(1)
    sounds, time = [], 0.0
    while time < 12:
        sounds.append(Sound(time, time + beat, (int(random.integers(57, 80)),)))
        time += beat + rest
    seconds = np.arange(int(time * 32000)) / 32000
    wav = np.zeros_like(seconds)
    for sound in sounds:
        heard = (sound.start <= seconds) & (seconds < sound.end)
        frequency = 440 * 2 ** ((sound.pitches[0] - 69) / 12)
        for overtone in (1, 2, 3):
            tone = np.sin(2 * np.pi * frequency * overtone * (seconds[heard] - sound.start))
            wav[heard] += tone / overtone**2
    frames = int(time / HOP)
    of_audio = np.array(melody_chroma(mx.array(wav[None].astype(np.float32)), CONFIG))[0, :frames]
    of_notes = chroma_of_notes(Notes(tuple(sounds), time), CONFIG)[:frames]
    # Where two notes are as strong, overtones and the weights of octaves decide.
    assert (of_audio == of_notes).all(axis=1).mean() > 0.95
    assert of_audio.dtype == of_notes.dtype


def test_a_chroma_that_is_not_one_hot_has_all_that_sounds_relative_to_the_strongest() -> None:
    frames = chroma_of_notes(chord_notes("C F", 60), ChromaConfig(one_hot=False, length=32))
    assert classes_at(frames, 2) == {"C", "E", "G"}
    middle = frames[31]  # at 3.97 s, the border is at 4 s
    assert middle.max() == middle[0] == 1  # C is in both
    assert 0.3 < middle[5] < middle[4] < 1


def test_silence_is_as_in_the_chroma_of_silence() -> None:
    got = Notes((Sound(1.0, 2.0, (67,)),), 8.0)
    frames = chroma_of_notes(got, CONFIG)
    assert classes_at(frames, 0) == {"C"}
    assert classes_at(frames, 1.5) == {"G"}
    assert not chroma_of_notes(got, ChromaConfig(one_hot=False, length=5)).any()


def test_notes_are_repeated_in_time_and_cut_after_the_last_frame() -> None:
    got = parse_midi(midi(notes(60, 67)), "x.mid")  # 1 s, no multiple of a frame
    frames = chroma_of_notes(got, CONFIG).argmax(axis=1)
    times = np.arange(235) * HOP % 1
    np.testing.assert_array_equal(frames, np.where(times < 0.5, 0, 7))
    longer = parse_midi(midi(notes(*SCALE * 20)), "x.mid")  # 80 s
    np.testing.assert_array_equal(
        chroma_of_notes(longer, CONFIG), chroma_of_notes(parse_midi(midi(notes(*SCALE)), ""), CONFIG)
    )
    np.testing.assert_array_equal(
        chroma_of_notes(longer, CONFIG, start=30.5)[:100].argmax(axis=1),
        [pitch_at(longer, 30.5 + frame * HOP) % 12 for frame in range(100)],
    )


def test_the_melody_is_the_highest_note_and_never_the_drums() -> None:
    got = parse_midi(
        midi(
            notes(48, 52, 55, 48, name="Bass"),
            notes(72, None, 60, None, name="Lead"),
            notes(99, 99, 99, 99, channel=9, name="Drums"),
        ),
        "song.mid",
    )
    assert [pitch_at(got, second) for second in (0.2, 0.7, 1.2, 1.7)] == [72, 52, 60, 48]
    assert got.duration == 2


def test_a_low_note_that_is_held_goes_on_after_a_high_one() -> None:
    held = track(
        (0, "note_on", {"note": 60}),
        (1, "note_on", {"note": 72}),
        (2, "note_off", {"note": 72}),
        (4, "note_off", {"note": 60}),
    )
    got = parse_midi(midi(held), "x.mid")
    assert [(sound.start, sound.end, sound.pitches) for sound in got.sounds] == [
        (0, 0.5, (60,)),
        (0.5, 1, (72,)),
        (1, 2, (60,)),
    ]


def test_a_track_is_chosen_among_those_that_have_notes() -> None:
    tempo = track((0, "set_tempo", {"tempo": 500_000}))
    drums = notes(40, channel=9, name="Drums")
    data = midi(tempo, notes(72, name="Lead"), drums, notes(48, name="Ba\x1bss"))
    assert pitch_at(parse_midi(data, "x", 2), 0) == 48
    with pytest.raises(UsageError, match=r"x has no track 3 with notes; it has 1 \(Lead\), 2 \(Ba ss\)"):
        parse_midi(data, "x", 3)
    merged = mido.MidiTrack(
        mido.Message("note_on", note=note, channel=channel, time=0) for note, channel in ((70, 2), (50, 5))
    )
    merged.append(mido.Message("note_off", note=70, channel=2, time=480))
    assert pitch_at(parse_midi(midi(merged, type=0), "x", 2), 0.1) == 50


def test_a_note_that_does_not_end_does_with_its_track() -> None:
    hanging = track(
        (0, "note_on", {"note": 64}), (1, "note_on", {"note": 62}), (1.5, "note_off", {"note": 62})
    )
    got = parse_midi(midi(hanging), "x.mid")
    assert got.sounds == (Sound(0, 0.75, (64,)),)


def test_time_may_be_in_frames_of_film() -> None:
    data = midi(notes(60, 62))
    # 25 frames per second, 40 ticks per frame: 1000 ticks per second.
    data = data[:12] + struct.pack(">bB", -25, 40) + data[14:]
    assert parse_midi(data, "x.mid").duration == pytest.approx(0.96)


def test_the_time_before_an_event_of_an_unknown_kind_counts() -> None:
    data = midi(notes(60, 62))
    at = data.index(b"\x90")
    chunk = data[22 : at - 1] + b"\x83\x60\xff\x4b\x01\x00" + data[at - 1 :]
    got = parse_midi(data[:18] + struct.pack(">L", len(chunk)) + chunk, "x.mid")
    assert (got.sounds[0].start, got.duration) == (0.5, 1.5)


def test_midi_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = midi(notes(*SCALE))
    tempo = track((0, "set_tempo", {"tempo": 500_000}))
    endless = whole[:22] + b"\xff" * 100_000
    key = whole.replace(b"\x00\x90", b"\x00\xff\x59\x02\x63\x07\x00\x90", 1)
    for data, reason in (
        (midi(tempo), "has no notes; give MIDI with a melody"),
        (midi(notes(40, channel=9)), "has no notes but drums; give MIDI with a melody"),
        (midi(notes(60, 60, beats=0)), "has no notes; give MIDI"),
        (midi(), "has no notes"),
        (whole[:-9], "damaged"),
        (whole[:12] + b"\0\0" + whole[14:], "its beats have no ticks"),
        (endless, "a number in it has no end"),
        (key, "damaged"),
        (midi(notes(60), notes(62), type=2), "type 2"),
        (midi(notes(60, start=200_000)), "longer than a day"),
        (b"MThd" + bytes(MAX_BYTES), "1 MiB"),
    ):
        path = tmp_path / "tune.mid"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=reason) as error:
            read_midi(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="No such file or directory; give a MIDI file"):
        read_midi(tmp_path / "missing.mid")


def test_damaged_midi_is_nothing_but_refused() -> None:
    whole = midi(track((0, "set_tempo", {"tempo": 500_000})), notes(*SCALE, name="Lead"))
    random = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(8, len(data), 3):
            data[place] = random.integers(256)
        try:
            chroma_of_notes(parse_midi(bytes(data), "x.mid"), ChromaConfig(length=2))
        except UsageError as error:
            assert str(error).startswith("x.mid ")  # noqa: PT017


# Chords


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("C", "C E G"),
        ("Bb", "Bb D F"),
        ("F#m", "F# A C#"),
        ("A♭-", "Ab B Eb"),
        ("Cmin7", "C Eb G Bb"),
        ("Cmaj7", "C E G B"),
        ("CΔ", "C E G B"),
        ("CM9", "C E G B D"),
        ("CmMaj7", "C Eb G B"),
        ("G7", "G B D F"),
        ("G7sus4", "G C D F"),
        ("Dsus2", "D E A"),
        ("D9", "D F# A C E"),
        ("D11", "D F# A C E G"),
        ("D13", "D F# A C E B"),
        ("G7b9", "G B D F Ab"),
        ("G7(#9,b13)", "G B D F Bb Eb"),
        ("G7#5", "G B Eb F"),
        ("Bdim", "B D F"),
        ("B°7", "B D F Ab"),
        ("Bm7b5", "B D F A"),
        ("Bø7", "B D F A"),
        ("Caug", "C E Ab"),
        ("C+7", "C E Ab Bb"),
        ("C5", "C G"),
        ("C6/9", "C E G A D"),
        ("Am6", "A C E F#"),
        ("Cadd9", "C E G D"),
        ("Cmadd9", "C Eb G D"),
        ("C7no5", "C E Bb"),
        ("C/E", "E C G"),
        ("Am7/G", "G A C E"),
        ("Dm7/C#", "C# D F A C"),
    ],
)
def test_a_chord_has_its_pitch_classes(name: str, wanted: str) -> None:
    (((bass, *others),),) = parse_chords(name)
    assert {PITCHES[pitch % 12] for pitch in (bass, *others)} == {*wanted.split()}
    assert PITCHES[bass % 12] == wanted.split()[0]
    assert bass < min(others)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("C Am F G", "C|A|F|G"),
        ("C, Am\nF", "C|A|F"),
        ("| C Am | F |", "C A|F"),
        ("C F|G", "C F|G"),
        ("| C . . F | % | . |", "C C C F|C C C F|F"),
        ("|: C G :| Am", "C G|C G|A"),
        ("|: C | G :| x3 |: F :|", "C|G|C|G|C|G|F|F"),
        ("C G :|x2", "C G|C G"),
        ("C N.C. G", "C|-|G"),
        ("C % G", "C|C|G"),
    ],
)
def test_bars_and_repeats(text: str, wanted: str) -> None:
    bars = [[PITCHES[chord[0] % 12] if chord else "-" for chord in bar] for bar in parse_chords(text)]
    assert "|".join(" ".join(bar) for bar in bars) == wanted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("C H", "'H' is no chord; write them as C, Am"),
        ("C am", "'am' is no chord"),
        ("Cfoo", "'Cfoo' is no chord"),
        ("C7add8", "no chord"),
        ("C/9", "no chord"),
        ("-C", "'-C' is no chord"),
        ("", "there is no chord; give some, such as 'C Am F G'"),
        ("| | NC |", "there is no chord"),
        ("%", "'%' is the bar before again"),
        ("| C % |", "put it alone into a bar"),
        (". C", "'.' is the chord before again"),
        (":| C", "repeats nothing"),
        ("|: C :|x0", "repeats nothing"),
        ("|: C :|x999999999999", "more than 10000 bars"),
        ("C" * 10_001, "give at most 10000"),
    ],
)
def test_what_is_no_chord_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_chords(text)
    assert reason in str(error.value)
    with pytest.raises(FieldError, match=r"^chords: "):
        ClipRequest("piano", chords=text, bpm=100)


def test_chords_are_several_ones_in_a_frame() -> None:
    got = chord_notes("| C Am7/G | F |", 120, 3)  # 1.5 s a bar
    assert got.duration == 3
    frames = chroma_of_notes(got, CONFIG)
    assert {*np.unique(frames)} == {0, 1}
    assert classes_at(frames, 0.25) == {"C", "E", "G"}
    assert classes_at(frames, 1.15) == {"A", "C", "E", "G"}
    assert classes_at(frames, 2.3) == {"F", "A", "C"}
    assert classes_at(frames, 3.33) == {"C", "E", "G"}, "again"
    assert chord_notes("C", 90).duration == pytest.approx(4 * 60 / 90)


def test_notes_are_checked() -> None:
    for sounds, duration, reason in (
        ((), 1.0, "at least one"),
        ((Sound(0, 2, (60,)),), 1.0, "beyond the duration"),
        ((Sound(0, 1, (60,)), Sound(0.5, 1, (62,))), 1.0, "in order"),
        ((Sound(1, 1, (60,)),), 1.0, "a length and a pitch"),
        ((Sound(0, 1, ()),), 1.0, "a length and a pitch"),
        ((Sound(-1, 1, (60,)),), 1.0, "0 or more"),
        ((Sound(0, 1, (60,)),), float("nan"), "above 0"),
    ):
        with pytest.raises(UsageError, match=reason):
            Notes(sounds, duration)
    with pytest.raises(UsageError, match="has 7 classes, and notes need 12"):
        chroma_of_notes(chord_notes("C", 100), ChromaConfig(n_chroma=7))


# Models


@pytest.fixture(scope="module")
def model(hub_cache: Path, goldens: Path) -> MusicGen:
    loaded = MusicGen.get_pretrained(str(goldens / "goldens" / "melody"))
    loaded.set_generation_params(use_sampling=False, duration=0.4)
    return loaded


def test_notes_condition_a_model_as_their_chroma_without_separation(
    model: MusicGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioner = model.audio_conditioner
    got = chord_notes("C Am F G", 100)
    (tokens, none, again) = conditioner.encode([got, None, got])
    wanted = conditioner.output_proj(mx.array(chroma_of_notes(got, conditioner.config)))
    np.testing.assert_array_equal(tokens, wanted)
    assert again is tokens
    np.testing.assert_array_equal(none, conditioner.null_tokens())

    def codes(descriptions: list[str], melodies: object) -> np.ndarray:
        return np.array(model.generate_with_chroma(descriptions, melodies, return_tokens=True)[1])

    alone = codes(["piano"], got)
    np.testing.assert_array_equal(codes(["piano", "jazz"], [got, None])[0], alone[0])
    assert (codes(["piano"], chord_notes("Ebm Db", 100)) != alone).any()


def test_each_window_has_its_own_part_of_the_notes(model: MusicGen, monkeypatch: pytest.MonkeyPatch) -> None:
    conditioner = model.audio_conditioner
    own = MusicGen("melody", model._bundle)
    own.max_duration = 0.4
    own.set_generation_params(use_sampling=False, duration=0.7, extend_stride=0.2)
    starts, encode = [], conditioner.encode

    def encoded(melodies: object, separate: bool, start: float) -> object:
        starts.append(start)
        return encode(melodies, separate, start)

    monkeypatch.setattr(conditioner, "encode", encoded)
    own.generate_with_chroma(["piano"], [chord_notes("C Am", 1000, 1)])
    assert starts == pytest.approx([0, 0.2, 0.4])


def test_models_without_a_melody_refuse_notes(hub_cache: Path, goldens: Path) -> None:
    style = MusicGen.get_pretrained(str(goldens / "goldens" / "style"))
    with pytest.raises(UsageError, match="takes a style, which notes have none of"):
        style.generate_with_chroma(["piano"], chord_notes("C", 100))
    for types in ({"text"}, {"text", "style"}):
        with pytest.raises(FieldError, match="chords: the model x can't follow chords; choose one"):
            ClipRequest("a", chords="C", bpm=100).require_supported(frozenset(types), "x")


# The command


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    return install(monkeypatch, tmp_path)


def test_a_midi_file_reaches_the_model_and_the_tags(fake: FakeModel) -> None:
    fake.condition_types = frozenset({"text", "melody"})
    Path("tune.mid").write_bytes(midi(notes(72), notes(48)))
    options = ["-m", "melody", "--melody", "tune.mid", "--midi-track", "2", "-d", "0.1", "-o", "a.wav"]
    assert main(["piano", "jazz", *options]) == 0
    first, second = fake.condition_inputs["melody_wavs"]
    assert first is second
    assert first.sounds == (Sound(0, 0.5, (48,)),)
    assert "melody_sample_rate" not in fake.condition_inputs
    metadata = read_metadata(Path("a-1.wav"))
    assert metadata is not None
    assert metadata.options == {"melody": "tune.mid", "midi-track": 2}


def test_chords_reach_the_model_and_the_tags(fake: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    fake.condition_types = frozenset({"text", "melody"})
    options = ["--chords", "| C Am |", "--bpm", "100", "--beats-per-bar", "3", "-m", "melody", "-d", "0.1"]
    assert main([*options, "-n", "2", "--seed", "7"]) == 0
    first, second = fake.condition_inputs["melody_wavs"]
    assert first is second
    assert first == chord_notes("| C Am |", 100, 3)
    assert fake.prompts == [None, None]
    capsys.readouterr()
    assert main(["--info", "musicgen_output-1.wav"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "make it again: musicgen-mlx '' --model melody --duration 0.1 --seed 7 --chords '| C Am |' --bpm 100"
        " --beats-per-bar 3"
    )


def test_clips_with_and_without_notes_do_not_share_a_batch(fake: FakeModel) -> None:
    from audiocraft_mlx.clips.planning import WaitingClips, plan_clips

    fake.condition_types = frozenset({"text", "melody"})
    requests = [
        ClipRequest("a", chords=chords, bpm=bpm) for chords, bpm in (("C", 90), (None, None), ("G", 80))
    ]
    waiting = WaitingClips(plan_clips(fake, requests))
    assert [[plan.index for plan in waiting.take(fake)] for _ in range(2)] == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chords", "C"], "--chords needs --bpm"),
        (["--chords", "C H", "--bpm", "100"], "--chords: 'H' is no chord"),
        (["--chords", "C", "--bpm", "0"], "argument --bpm: must be a number of beats per minute from 10"),
        (["--bpm", "100"], "--bpm needs --chords"),
        (["--beats-per-bar", "3"], "--beats-per-bar needs --bpm"),
        (["--chords", "C", "--bpm", "100", "--melody", "tune.mid"], "--chords and --melody: a model follows"),
        (["--chords", "C", "--bpm", "100", "--style", "a.wav"], "--chords and --style: a model follows one"),
        (["--midi-track", "1"], "--midi-track needs --melody"),
        (
            ["--midi-track", "0", "--melody", "tune.mid"],
            "argument --midi-track: must be an integer of at least",
        ),
        (
            ["--melody", "tune.mid", "--melody-separation", "off"],
            "--melody-separation is for audio, and --melody",
        ),
        (["--melody", "tune.wav", "--midi-track", "1"], "--midi-track is for MIDI, and --melody is audio"),
        (["--melody", "tune.mid", "--midi-track", "2"], "tune.mid has no track 2 with notes; it has 1"),
        (["--continue", "tune.mid"], "tune.mid is MIDI, which has notes and no sound"),
        (["--chords", "C", "--bpm", "100", "-m", "style"], "the model style can't follow chords"),
        (["--chords", "C", "--bpm", "100", "-m", "small"], "the model small can't follow chords"),
    ],
)
def test_options_of_notes_that_cannot_be_are_one_line(
    fake: FakeModel, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    import soundfile

    Path("tune.mid").write_bytes(midi(notes(*SCALE)))
    soundfile.write("tune.wav", np.sin(np.arange(8000) * 0.1), 32000)
    assert main(["piano", "-m", "melody", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not fake.loaded

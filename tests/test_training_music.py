"""The composer of the demo model's training music: what a song is said to be, its notes are."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import mido
import pytest

TRAINING = Path(__file__).parent.parent / "training"
SONGS = 200


@pytest.fixture(scope="module")
def training() -> Iterator[SimpleNamespace]:
    """The training scripts' modules, which aren't a package: they import each other by their bare names."""
    known = set(sys.modules)
    sys.path.insert(0, str(TRAINING))
    try:
        import arrange
        import attributes
        import draw
        import melody
        import song
        import songs
        import styles
        import targets
        import theory

        yield SimpleNamespace(
            arrange=arrange,
            attributes=attributes,
            draw=draw,
            melody=melody,
            song=song,
            songs=songs,
            styles=styles,
            targets=targets,
            theory=theory,
        )
    finally:
        sys.path.remove(str(TRAINING))
        for name in set(sys.modules) - known:
            if str(TRAINING) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.fixture(scope="module")
def many(training: SimpleNamespace) -> list:
    return [training.songs.song(number) for number in range(SONGS)]


def chord_at(song, seconds: float):
    return [chord for start, chord in song.chords if start <= seconds + 0.05][-1]


def test_all_styles_have_songs(training: SimpleNamespace) -> None:
    assert set(training.styles.STYLES) == set(training.attributes.STYLES)
    for style in training.attributes.STYLES:
        song = training.songs.song(1, style=style)
        assert song.attributes.style == style
        assert {note.part for note in song.notes} == set(song.parts)
        assert 8 <= len(song.bars) <= 16


def test_every_pattern_and_progression_of_the_styles_can_be_read(training: SimpleNamespace) -> None:
    from patterns import read_pattern

    for style in training.styles.STYLES.values():
        assert set(style.modes) == set(style.progressions) <= set(style.cadences)
        for mode, progressions in style.progressions.items():
            for text in (*progressions, style.cadences[mode]):
                training.theory.read_progression(text, 0, 16)
        for meter in style.meters:
            steps = training.song.STEPS[meter]
            patterns = [*style.rhythms[meter]]
            if style.bass:
                patterns += style.bass_patterns[meter]
            patterns += style.comping_patterns[meter]
            for groove in style.grooves[meter] if style.drums else ():
                patterns += groove.values()
            for pattern in patterns:
                assert len(pattern) % steps == 0, pattern
                read_pattern(pattern)
            for fill in style.fills.get(meter, ()):
                assert len({len(pattern) for pattern in fill.values()}) == 1
                assert all(len(pattern) < steps for pattern in fill.values())


def test_a_number_always_gives_the_same_song(training: SimpleNamespace) -> None:
    assert training.songs.song(3) == training.songs.song(3)
    assert training.songs.song(3) != training.songs.song(4)


def test_held_out_songs_never_are_training_songs(training: SimpleNamespace, many: list, monkeypatch) -> None:
    held_out = [training.songs.song(number, held_out=True) for number in range(20)]
    tunes = {(song.attributes.style, song.notes) for song in many}
    assert not tunes & {(song.attributes.style, song.notes) for song in held_out}
    drawn = []
    monkeypatch.setattr(training.songs, "arrange", lambda attributes, material, *_: (attributes, material))
    for number in range(300):
        for is_held_out in (False, True):
            attributes, material = training.songs.song(number, is_held_out)
            assert training.songs.is_held_out(attributes.style, attributes.mode, material) == is_held_out
    for number in range(1000):
        random_ = random.Random(number)
        attributes = training.draw.draw_attributes(random_)
        material = training.arrange.invent(attributes, random_)
        drawn.append(training.songs.is_held_out(attributes.style, attributes.mode, material))
    assert 0.02 < sum(drawn) / len(drawn) < 0.09


def test_midi_files_are_valid(training: SimpleNamespace, many: list) -> None:
    for song in many[:50]:
        data = io.BytesIO()
        training.song.to_midi(song).save(file=data)
        file = mido.MidiFile(file=io.BytesIO(data.getvalue()))
        assert file.length == pytest.approx(song.seconds, abs=0.01)
        sounding = set()
        notes = 0
        for message in file:
            if message.type == "note_on" and message.velocity:
                assert (message.channel, message.note) not in sounding
                sounding.add((message.channel, message.note))
                notes += 1
            elif message.type in ("note_off", "note_on"):
                sounding.remove((message.channel, message.note))
        assert not sounding
        assert notes == len(song.notes)


def test_keys_are_in_their_instruments_ranges(training: SimpleNamespace, many: list) -> None:
    for song in many:
        low, high = training.melody.RANGES[song.attributes.lead]
        for note in song.notes:
            assert 0 <= note.start < note.start + note.seconds <= song.seconds + 1e-9
            assert 20 <= note.velocity <= 127
            if note.part == "lead":
                assert low - 3 <= note.key <= high + 3
            elif note.part == "bass":
                assert 28 <= note.key <= 55
            elif note.part != "drums":
                assert 36 <= note.key <= 88


def test_the_leads_notes_on_strong_beats_are_chord_tones(training: SimpleNamespace, many: list) -> None:
    strong = inside = total = 0
    for song in many:
        step = training.song.step_seconds(song.bpm, song.meter)
        bar = training.song.STEPS[song.meter] * step
        for note in song.notes:
            if note.part != "lead":
                continue
            chord = chord_at(song, note.start)
            total += 1
            allowed = training.theory.chord_scale(chord, song.attributes.tonic, song.attributes.mode)
            inside += note.key % 12 in allowed
            place = (note.start % bar) / step
            nearest = round(place) % training.song.STEPS[song.meter]
            if abs(place - round(place)) < 0.2 and training.melody.is_strong(nearest, song.meter):
                strong += 1
                assert note.key % 12 in chord.pitch_classes, (song.attributes, note, chord)
    assert strong > 1000
    assert inside / total > 0.97


def test_no_note_of_a_lead_is_held_long_unless_ambient(many: list) -> None:
    for song in many:
        longest = max(note.seconds for note in song.notes if note.part == "lead")
        assert longest <= (4 if song.attributes.style == "ambient" else 2.5)


def test_the_lead_plays_one_note_at_a_time_and_is_heard_in_every_ten_seconds(many: list) -> None:
    for song in many:
        lead = [note for note in song.notes if note.part == "lead"]
        ends = 0.0
        for note in lead:
            assert note.start >= ends
            assert note.start - ends < 7
            ends = note.start + note.seconds


def test_all_keys_modes_meters_and_styles_occur(training: SimpleNamespace, many: list) -> None:
    assert {song.attributes.tonic for song in many} == set(range(12))
    assert {song.attributes.mode for song in many} == set(training.attributes.MODES)
    assert {song.attributes.meter for song in many} == set(training.attributes.METERS)
    assert {song.attributes.style for song in many} == set(training.attributes.STYLES)
    assert all(60 <= song.bpm <= 170 for song in many)


def test_bars_last_what_tempo_and_meter_say(training: SimpleNamespace, many: list) -> None:
    for song in many:
        bar = {"4/4": 4, "3/4": 3, "6/8": 2}[song.meter] * training.song.beat_seconds(song.bpm)
        for number, start in enumerate(song.bars):
            assert start == pytest.approx(number * bar)
        assert song.seconds == pytest.approx(len(song.bars) * bar)


def test_beats_are_frames_and_nearly_as_fast_as_is_said(training: SimpleNamespace) -> None:
    for bpm in range(60, 171):
        beat = training.song.beat_seconds(bpm)
        assert 50 * beat == pytest.approx(round(50 * beat))
        assert 60 / beat == pytest.approx(bpm, rel=0.03)
        assert training.song.beat_frames(bpm) % (2 if bpm < 89 else 1) == 0


def test_notes_begin_where_frames_do(many: list) -> None:
    for song in many:
        for note in song.notes:
            assert 50 * note.start == pytest.approx(round(50 * note.start), abs=1e-6)


def test_drums_play_if_and_only_if_they_are_said_to(many: list) -> None:
    for song in many:
        assert ("drums" in song.parts) == song.attributes.drums
        assert any(note.part == "drums" for note in song.notes) == song.attributes.drums


def test_songs_last_exactly_the_seconds_asked_for(training: SimpleNamespace) -> None:
    for number in range(24):
        for seconds in (10.0, 60.0):
            song = training.songs.song(number, seconds=seconds)
            assert song.seconds == seconds
            assert seconds - 2 * song.bars[1] < song.bars[-1] < seconds
            # It ends on the chord of its key.
            assert song.chords[-1][1].root == song.attributes.tonic


def test_chords_change_only_where_bars_or_their_halves_begin(training: SimpleNamespace, many: list) -> None:
    for song in many:
        beat = training.song.beat_seconds(song.bpm)
        for start, _ in song.chords:
            assert start / beat == pytest.approx(round(start / beat))


def test_a_melody_returns(training: SimpleNamespace) -> None:
    """Bars of the first section are there again, with their rhythm and keys."""
    returned = 0
    for number in range(40):
        song = training.songs.song(number, seconds=60)
        rounded = {}
        for note in song.notes:
            if note.part == "lead":
                bar = sum(start <= note.start + 0.03 for start in song.bars) - 1
                rounded.setdefault(bar, []).append(note.key)
        bars = [tuple(keys) for keys in rounded.values() if len(keys) > 2]
        returned += len(set(bars)) < 0.8 * len(bars)
    assert returned > 25


def test_chords_are_read_by_degree(training: SimpleNamespace) -> None:
    theory = training.theory
    assert theory.read_chord("V7", 9).pitch_classes == {4, 8, 11, 2}
    assert theory.read_chord("bVImaj7", 9).pitch_classes == {5, 9, 0, 4}
    assert theory.read_chord("ii7b5", 0).pitch_classes == {2, 5, 8, 0}
    # Over E in A minor the scale has G#, not G.
    assert theory.chord_scale(theory.read_chord("V", 9), 9, "minor") == {4, 8, 11, 9, 0, 2, 5}
    with pytest.raises(ValueError, match="isn't a chord"):
        theory.read_chord("H7", 0)


def test_voices_move_little(training: SimpleNamespace, many: list) -> None:
    theory = training.theory
    keys: tuple[int, ...] = ()
    for symbol in ("I", "vi", "IV", "V7", "I", "ii7", "V9", "Imaj7") * 3:
        before, keys = keys, theory.voicing(theory.read_chord(symbol, 5), 3, 50, 67, keys)
        assert all(50 <= key <= 67 for key in keys)
        assert all(abs(a - b) <= 6 for a, b in zip(before, keys, strict=False))


def test_the_targets_of_a_frame_are_what_sounds_in_it(training: SimpleNamespace, many: list) -> None:
    targets = training.targets
    names = list(targets.FRAME_CLASSES)
    for song in many[:20]:
        frames = int(song.seconds / 0.02)
        classes, bits = targets.frame_targets(song, frames)
        for limit, column in zip(targets.FRAME_CLASSES.values(), classes.T, strict=True):
            assert column.max() < limit
        for seconds in song.bars:
            frame = round(seconds / 0.02)
            assert not classes[frame, :2].any()
            chord = chord_at(song, seconds)
            assert classes[frame, names.index("root")] == chord.root
            assert set(bits[frame, :12].nonzero()[0]) == chord.pitch_classes
        for note in song.notes:
            frame = round(note.start / 0.02)
            if note.part == "lead":
                assert classes[frame, names.index("lead")] == note.key - targets.LEAD_KEYS[0] + 1
                assert bits[frame, 24]
            elif note.part == "drums":
                assert bits[frame, 28:].any()
        of_song = dict(zip(targets.SONG_CLASSES, targets.song_targets(song), strict=True))
        assert of_song["tonic"] == song.attributes.tonic
        assert all(value < targets.SONG_CLASSES[name] for name, value in of_song.items())

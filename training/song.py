"""A composed song, and its MIDI file."""

from __future__ import annotations

from dataclasses import dataclass

import mido
from attributes import TONICS, Attributes
from theory import Chord

DRUMS = 128
"""Among the programs of a song's parts: this one has the drums."""
STEPS = {"4/4": 16, "3/4": 12, "6/8": 12}
"""Sixteenths in a bar."""
STEPS_PER_BEAT = {"4/4": 4, "3/4": 4, "6/8": 6}
STEMS = {"drums": ("drums",), "bass": ("bass",), "lead": ("lead",), "harmony": ("comping", "viola", "pad")}
"""What a song's codes tell apart, with the parts in each."""
FRAME = 0.02
"""Seconds: the codec's."""
SLOW_BEAT = 34
"""Frames: the shortest slow beat."""


@dataclass(frozen=True)
class Note:
    part: str
    start: float
    """Seconds from the song's beginning."""
    seconds: float
    key: int
    """MIDI's; of drums their sound."""
    velocity: int


@dataclass(frozen=True)
class Song:
    attributes: Attributes
    notes: tuple[Note, ...]
    """By their start."""
    parts: dict[str, int]
    """The program of General MIDI of each part (lead, bass, comping, …), or `DRUMS`."""
    volumes: dict[str, int]
    """MIDI's controller 7 of each part."""
    kit: int
    """The program of the drums."""
    reverb: float
    """0 to 1."""
    chords: tuple[tuple[float, Chord], ...]
    """Changes of the chord, with their times in seconds."""
    bars: tuple[float, ...]
    """Where bars begin, in seconds."""
    seconds: float

    @property
    def bpm(self) -> int:
        return self.attributes.bpm

    @property
    def meter(self) -> str:
        return self.attributes.meter


def on_frame(seconds: float) -> float:
    """The nearest time where a frame of the codec begins.

    Notes begin there: the same note then gives the same codes each time, and the language model has to know
    one form of it.
    """
    return round(seconds / FRAME) * FRAME


def beat_frames(bpm: int) -> int:
    """A beat lasts a whole number of frames, up to 3 % more or less than it should, as bars do that return.

    An even number if it's slow, so that its halves begin on frames, too.
    """
    frames = 60 / bpm / FRAME
    return round(frames) if frames < SLOW_BEAT - 0.5 else 2 * round(frames / 2)


def beat_seconds(bpm: int) -> float:
    return beat_frames(bpm) * FRAME


def step_seconds(bpm: int, meter: str) -> float:
    return beat_seconds(bpm) / STEPS_PER_BEAT[meter]


def to_midi(song: Song) -> mido.MidiFile:
    """A file of format 1: a track with tempo, meter and key, then a track for each part."""
    ticks_per_quarter = 960
    # MIDI's tempo is of quarters, and six eighths are two dotted quarters.
    quarters = 60 / beat_seconds(song.bpm) * (1.5 if song.meter == "6/8" else 1)
    ticks_per_second = ticks_per_quarter * quarters / 60
    end = round(song.seconds * ticks_per_second)
    numerator, denominator = map(int, song.meter.split("/"))
    first = mido.MidiTrack()
    first += [
        mido.MetaMessage("track_name", name=song.attributes.style),
        mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(quarters)),
        mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator),
        mido.MetaMessage("end_of_track", time=end),
    ]
    file = mido.MidiFile(type=1, ticks_per_beat=ticks_per_quarter)
    file.tracks.append(first)
    channels = iter(channel for channel in range(16) if channel != 9)
    for part, program in song.parts.items():
        channel = 9 if program == DRUMS else next(channels)
        track = mido.MidiTrack()
        track += [
            mido.MetaMessage("track_name", name=part),
            mido.Message(
                "program_change", channel=channel, program=song.kit if program == DRUMS else program
            ),
            mido.Message("control_change", channel=channel, control=7, value=song.volumes[part]),
            mido.Message("control_change", channel=channel, control=91, value=round(127 * song.reverb)),
        ]
        messages = []
        for note in song.notes:
            if note.part == part:
                on = round(note.start * ticks_per_second)
                off = min(max(round((note.start + note.seconds) * ticks_per_second), on + 1), end)
                messages += [(on, 1, note), (off, 0, note)]
        time = 0
        # At the same tick the ends go first: a key that is repeated begins after its end.
        for at, begins, note in sorted(messages, key=lambda message: message[:2]):
            track.append(
                mido.Message(
                    "note_on" if begins else "note_off",
                    channel=channel,
                    note=note.key,
                    velocity=note.velocity if begins else 0,
                    time=at - time,
                )
            )
            time = at
        track.append(mido.MetaMessage("end_of_track", time=end - time))
        file.tracks.append(track)
    return file


def describe(song: Song) -> str:
    attributes = song.attributes
    return (
        f"{attributes.style}, {attributes.bpm} bpm, {attributes.meter}, {TONICS[attributes.tonic]} "
        f"{attributes.mode}, {attributes.lead} with {', '.join(attributes.accompaniment) or 'nothing'}"
        f"{' and drums' if attributes.drums else ''}, {len(song.bars)} bars, {song.seconds:.1f} s"
    )

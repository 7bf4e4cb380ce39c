"""MIDI files → notes."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from audiocraft_mlx.conditioning.notes import Notes, TimedNote, highest
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import StrPath, read_error
from audiocraft_mlx.validation import MIDI_TRACK

MAX_BYTES = 2**20
"""Of a file: hours of music. mido reads some 200 KB in a second."""
# mido goes on with a number as long as its bytes do.
_ENDLESS_NUMBER = re.compile(rb"[\x80-\xff]{5000}")
_MAX_SECONDS = 86_400.0
_DRUMS = 9
"""The channel that has drums in place of pitches: the tenth."""
# 120 beats per minute, in microseconds per beat, until a file says otherwise.
_DEFAULT_TEMPO = 500_000


def is_midi(path: StrPath) -> bool:
    """Whether a file begins as MIDI does; False for one that can't be read, and for what is no file."""
    try:
        if not Path(path).is_file():  # a pipe can be read once only
            return False
        with open(path, "rb") as file:
            return file.read(4) == b"MThd"
    except OSError:
        return False


def read_midi(path: StrPath, track: int | None = None) -> Notes:
    """The melody in a MIDI file: the highest note that sounds, of all but the drums (channel 10).

    Args:
        track: only of this one of those that have notes, from 1 on; of a file that has all in one track, the
            channels count as tracks.

    Raises:
        UsageError: the file can't be read, is no MIDI or damaged, or has no notes or no such track.
    """
    path = Path(path)
    if track is not None:
        MIDI_TRACK.validate("track", track)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise read_error(path, error, "give a MIDI file") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES >> 20} MiB; give MIDI with fewer events")
    return parse_midi(data, str(path), track)


def parse_midi(data: bytes, name: str, track: int | None = None) -> Notes:
    """`read_midi` of the bytes of a file that messages call `name`."""
    mido = _mido()
    try:
        if _ENDLESS_NUMBER.search(data):
            raise ValueError("a number in it has no end")
        file = mido.MidiFile(file=io.BytesIO(data))
        clock = _Clock.of(file)
        parts = _parts(file, clock)
        end = clock.seconds(max((sum(message.time for message in each) for each in file.tracks), default=0))
    # mido raises what it comes across: OSError and EOFError, ValueError, IndexError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise UsageError(f"{name} is no MIDI file, or damaged ({reason}); save it again") from error
    if file.type == 2:
        raise UsageError(f"{name} has tracks that aren't played together (type 2); save it as type 1")
    if not parts:
        drums = " but drums" if any(_is_drum(message) for each in file.tracks for message in each) else ""
        raise UsageError(f"{name} has no notes{drums}; give MIDI with a melody")
    if track is not None:
        if not 1 <= track <= len(parts):
            names = ", ".join(f"{number}{part.label}" for number, part in enumerate(parts, 1))
            raise UsageError(f"{name} has no track {track} with notes; it has {names}")
        parts = parts[track - 1 : track]
    if end > _MAX_SECONDS:
        raise UsageError(f"{name} is longer than a day; give a part of it")
    sounds = highest([note for part in parts for note in part.notes])
    return Notes(sounds, max(end, sounds[-1].end))


@lru_cache(maxsize=1)
def _mido() -> Any:
    """mido, which afterwards knows all kinds of meta events: of an unknown one it loses the time before."""
    import mido
    from mido.midifiles import meta

    for kind in range(0x80):
        with suppress(Exception):  # a known one, which needs data
            if isinstance(meta.build_meta_message(kind, []), meta.UnknownMetaMessage):
                spec = type(
                    f"MetaSpec_unknown_{kind:02x}", (meta.MetaSpec_sequencer_specific,), {"type_byte": kind}
                )
                meta.add_meta_spec(spec)
    return mido


@dataclass
class _Part:
    """A track or, in a file with one, a channel."""

    name: str
    notes: list[TimedNote] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name as it stands behind its number: printable, for people."""
        shown = "".join(c if c.isprintable() else " " for c in self.name).strip()[:40]
        return f" ({shown})" if shown else ""


class _Clock:
    """Ticks → seconds, through all changes of tempo."""

    def __init__(self, seconds_per_tick: float, changes: Iterable[tuple[int, float]]) -> None:
        """`changes`: from this tick on so many seconds per tick, in order."""
        self._ticks, self._seconds, self._rates = [0], [0.0], [seconds_per_tick]
        for tick, rate in changes:
            self._seconds.append(self.seconds(tick))
            self._ticks.append(tick)
            self._rates.append(rate)

    @classmethod
    def of(cls, file: Any) -> _Clock:
        """Of a `mido.MidiFile`. Raises `ValueError` if it has none."""
        division = file.ticks_per_beat
        if division < 0:  # frames of film per second, and ticks per frame
            frames, ticks = -(division >> 8), division & 0xFF
            if not ticks:
                raise ValueError("its time has no ticks")
            return cls(1 / ((30 / 1.001 if frames == 29 else frames) * ticks), ())
        if not division:
            raise ValueError("its beats have no ticks")
        changes = sorted(
            (tick, message.tempo)
            for track in file.tracks
            for tick, message in _timed(track)
            if message.type == "set_tempo"
        )
        scale = 1e-6 / division
        return cls(_DEFAULT_TEMPO * scale, [(tick, tempo * scale) for tick, tempo in changes])

    def seconds(self, tick: int) -> float:
        index = bisect_right(self._ticks, tick) - 1
        return self._seconds[index] + (tick - self._ticks[index]) * self._rates[index]


def _parts(file: Any, clock: _Clock) -> list[_Part]:
    """Those with notes, in the file's order."""
    parts: list[_Part] = []
    for track in file.tracks:
        by_channel: dict[int, _Part] = {}
        for channel, start, end, pitch in _notes(track):
            key = channel if len(file.tracks) == 1 else 0
            name = f"channel {channel + 1}" if len(file.tracks) == 1 else str(track.name)
            part = by_channel.setdefault(key, _Part(name))
            part.notes.append(TimedNote(clock.seconds(start), clock.seconds(end), pitch))
        parts += [by_channel[key] for key in sorted(by_channel)]
    for part in parts:
        part.notes = [note for note in part.notes if note.end > note.start]
    return [part for part in parts if part.notes]


def _notes(track: Any) -> Iterator[tuple[int, int, int, int]]:
    """Channel, the ticks at which it begins and ends, and pitch of each note but the drums'.

    A note that never ends does so with its track.
    """
    sounding: dict[tuple[int, int], list[int]] = {}
    tick = 0
    for tick, message in _timed(track):
        if message.type not in ("note_on", "note_off") or message.channel == _DRUMS:
            continue
        key = (message.channel, message.note)
        if _is_note_on(message):
            sounding.setdefault(key, []).append(tick)
        elif sounding.get(key):
            yield message.channel, sounding[key].pop(0), tick, message.note
    for (channel, pitch), starts in sounding.items():
        for start in starts:
            yield channel, start, tick, pitch


def _timed(track: Any) -> Iterator[tuple[int, Any]]:
    """Each message with its tick, from the file's beginning on."""
    tick = 0
    for message in track:
        tick += message.time
        yield tick, message


def _is_drum(message: Any) -> bool:
    return _is_note_on(message) and message.channel == _DRUMS


def _is_note_on(message: Any) -> bool:
    return bool(message.type == "note_on" and message.velocity)

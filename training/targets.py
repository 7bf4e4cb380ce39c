"""What sounds in each frame of a song: what the language model learns to say beside its codes.

A hundredth of what is in a song's codes depends on its key, tempo and chords, and in training that was lost
among the rest: after 14,000 steps no caption's key changed anything. So a linear layer, which the finished
model doesn't have (`heads.py`), learns from its last hidden state what the composer wrote, and the model has
to keep track of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from attributes import INSTRUMENTS, METERS, MODES, TONICS
from song import FRAME, Song, beat_frames
from songs import ENDING, SECONDS, song
from styles import STYLES

from audiocraft_mlx.files import write_file

BEAT_FRAMES = (17, 50)  # of 170 and of 60 beats a minute
PLACES = 16  # in a beat
RETURN = 4
"""Bars after which most of what was played returns."""
LEAD_KEYS, BASS_KEYS = (48, 96), (28, 60)
SONG_CLASSES = {
    "tonic": len(TONICS),
    "mode": len(MODES),
    "tempo": BEAT_FRAMES[1] - BEAT_FRAMES[0] + 1,
    "meter": len(METERS),
    "style": len(STYLES),
    "lead instrument": len(INSTRUMENTS),
    "drums": 2,
}
"""Of a whole song, with their number of classes."""
FRAME_CLASSES = {
    "beat": 4,
    "place in the beat": PLACES,
    "root": 12,
    "lead": LEAD_KEYS[1] - LEAD_KEYS[0] + 2,
    "bass": BASS_KEYS[1] - BASS_KEYS[0] + 2,
    "bar of four": RETURN,
}
"""Of a frame; 0 of lead and bass is silence."""
DRUM_GROUPS = ((36,), (37, 38, 39), (42, 44, 54, 70), (46, 49, 51), (45, 48))
PITCHED = ("lead", "bass", "comping", "pad")
BITS = 12 + 12 + len(PITCHED) + len(DRUM_GROUPS)
"""Of a frame: the chord's pitch classes, those that the harmony plays, parts and drums that begin a note."""


NAMES = (*SONG_CLASSES, *FRAME_CLASSES, "notes")
"""Of all targets; the last one is of all bits."""


def song_targets(composed: Song) -> np.ndarray:
    """int16 `[len(SONG_CLASSES)]`"""
    attributes = composed.attributes
    return np.array(
        [
            attributes.tonic,
            list(MODES).index(attributes.mode),
            beat_frames(attributes.bpm) - BEAT_FRAMES[0],
            METERS.index(attributes.meter),
            list(STYLES).index(attributes.style),
            list(INSTRUMENTS).index(attributes.lead),
            attributes.drums,
        ],
        np.int16,
    )


def frame_targets(composed: Song, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 `[frames, len(FRAME_CLASSES)]` and bool `[frames, BITS]`."""
    beat, bar = beat_frames(composed.bpm), round(composed.bars[1] / FRAME)
    classes = np.zeros((frames, len(FRAME_CLASSES)), np.uint8)
    bits = np.zeros((frames, BITS), bool)
    in_bar = np.arange(frames) % bar
    classes[:, 0], classes[:, 1] = in_bar // beat, in_bar % beat * PLACES // beat
    classes[:, 5] = np.arange(frames) // bar % RETURN
    for seconds, chord in composed.chords:
        start = round(seconds / FRAME)
        classes[start:, 2] = chord.root
        bits[start:, :12] = False
        bits[start:, sorted(chord.pitch_classes)] = True
    begins = 24 + len(PITCHED)
    for note in composed.notes:
        start = round(note.start / FRAME)
        end = max(start + 1, round((note.start + note.seconds) / FRAME))
        if start >= frames:
            continue
        if note.part == "drums":
            group = next(i for i, keys in enumerate(DRUM_GROUPS) if note.key in keys)
            bits[start, begins + group] = True
            continue
        part = "comping" if note.part == "viola" else note.part
        bits[start, 24 + PITCHED.index(part)] = True
        if part == "lead":
            classes[start:end, 3] = note.key - LEAD_KEYS[0] + 1
        elif part == "bass":
            classes[start:end, 4] = note.key - BASS_KEYS[0] + 1
        else:
            bits[start:end, 12 + note.key % 12] = True
    return classes, bits


class Targets:
    """Of songs by their numbers."""

    def __init__(self, songs: np.ndarray, classes: np.ndarray, bits: np.ndarray) -> None:
        self.songs, self.classes, self.bits = songs, classes, bits

    @classmethod
    def of(cls, path: Path, numbers: range, held_out: bool) -> Targets:
        """Kept in a file, since composing takes a second for a hundred."""
        if not path.exists():
            frames = round(SECONDS / FRAME)
            songs = [song(number, held_out, SECONDS + ENDING) for number in numbers]
            classes, bits = zip(*(frame_targets(composed, frames) for composed in songs), strict=True)
            arrays = {
                "songs": np.stack([song_targets(each) for each in songs]),
                "classes": classes,
                "bits": bits,
            }
            path.parent.mkdir(exist_ok=True)
            write_file(path, lambda file: np.savez_compressed(file, **arrays))
        arrays = np.load(path)
        return cls(arrays["songs"], arrays["classes"], arrays["bits"])

    @classmethod
    def joined(cls, parts: list[Targets]) -> Targets:
        return cls(
            np.concatenate([part.songs for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate([part.bits for part in parts]),
        )

    def clip(self, row: int, start: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes int64 `[frames, all classes]` and bits float32 `[frames, BITS]` of a song's part."""
        part = slice(start, start + frames)
        constant = np.broadcast_to(self.songs[row], (frames, len(SONG_CLASSES)))
        classes = np.concatenate([constant, self.classes[row, part]], axis=1).astype(np.int64)
        return classes, self.bits[row, part].astype(np.float32)

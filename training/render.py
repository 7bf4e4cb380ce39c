"""Songs → audio: FluidSynth with a General MIDI SoundFont, a room, and what a record adds.

FluidSynth and the SoundFont are Debian's packages `libfluidsynth3` and `fluidr3mono-gm-soundfont` (MIT). Each
part is played on a channel of its own; a song sounds the same each time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import fluidsynth
import numpy as np
from scipy.signal import fftconvolve, lfilter
from song import DRUMS, STEMS, Song

SAMPLE_RATE = 32000
SOUNDFONT = Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3")
DRUM_CHANNEL = 9
DRUM_BANK = 128
ROOM = 0.4
"""Amplitude of a room that is as loud as a song can want it, of the dry sound's."""
TONE_HERTZ, TONE = 700.0, 0.4
"""What is above is this much quieter, so that a tenth of the energy is above 1 kHz, as in mastered music."""
RECORD_HERTZ = 5000.0  # what a worn record still has
BLOCK = 64  # samples: FluidSynth's own step
LOUDNESS = 0.1  # root mean square of what is loud in a song
PEAK = 0.95


class Player:
    """FluidSynth with the SoundFont loaded, which takes two seconds."""

    def __init__(self, soundfont: Path = SOUNDFONT) -> None:
        if not soundfont.exists():
            raise SystemExit(f"{soundfont} is missing: apt-get install fluidsynth fluidr3mono-gm-soundfont")
        self._synth = fluidsynth.Synth(gain=0.4, samplerate=float(SAMPLE_RATE), channels=16)
        # Both change all the time: a bar that returns would never sound the same.
        self._synth.setting("synth.chorus.active", 0)
        self._synth.setting("synth.reverb.active", 0)
        self._synth.setting("synth.polyphony", 128)
        self._font = self._synth.sfload(str(soundfont))

    def play(self, song: Song) -> np.ndarray:
        """Float32 `[samples]` of the song's whole length, both channels mixed."""
        synth = self._synth
        synth.system_reset()
        channels = {}
        for part, program in song.parts.items():
            channels[part] = channel = DRUM_CHANNEL if program == DRUMS else len(channels)
            bank, preset = (DRUM_BANK, song.kit) if program == DRUMS else (0, program)
            synth.program_select(channel, self._font, bank, preset)
            synth.cc(channel, 7, song.volumes[part])
        events = []
        for note in song.notes:
            events.append((note.start, 1, channels[note.part], note.key, note.velocity))
            events.append((note.start + note.seconds, 0, channels[note.part], note.key, 0))
        blocks, at, length = [], 0, round(song.seconds * SAMPLE_RATE)
        for seconds, is_on, channel, key, velocity in sorted(events):
            until = min(length, round(seconds * SAMPLE_RATE / BLOCK) * BLOCK)
            if until > at:
                blocks.append(synth.get_samples(until - at))
                at = until
            if is_on:
                synth.noteon(channel, key, velocity)
            else:
                synth.noteoff(channel, key)
        blocks.append(synth.get_samples(length - at))
        stereo = np.concatenate(blocks).reshape(-1, 2).astype(np.float32) / 32768
        return stereo.mean(axis=1)


@cache
def player() -> Player:
    return Player()


def render_stems(song: Song) -> np.ndarray:
    """Float32 `[STEMS, samples]` at 32 kHz, with the song's effects; their sum is as loud in all songs.

    A record's crackle is with the drums.
    """
    stems = np.stack([_stem(song, parts) for parts in STEMS.values()])
    stems *= LOUDNESS / loud(stems.sum(0))
    if song.attributes.crackle:
        # A loop, as it is laid under a beat.
        loop = crackle(round(4 * song.bars[1] * SAMPLE_RATE), np.random.default_rng(len(song.notes)))
        stems[0] += np.resize(loop, stems.shape[1])
    return stems.astype(np.float32)


def _stem(song: Song, parts: tuple[str, ...]) -> np.ndarray:
    notes = tuple(note for note in song.notes if note.part in parts)
    if not notes:
        return np.zeros(round(song.seconds * SAMPLE_RATE))
    audio = player().play(replace(song, notes=notes))
    audio = tone(audio + song.reverb * ROOM * fftconvolve(audio, room(song.reverb))[: len(audio)])
    return low_pass(audio, RECORD_HERTZ) if song.attributes.crackle else audio


def render(song: Song) -> np.ndarray:
    """Float32 `[samples]` at 32 kHz."""
    return mix(render_stems(song))


def mix(stems: np.ndarray) -> np.ndarray:
    """Of stems `[STEMS, samples]`, float32 `[samples]`."""
    return limit(stems.sum(0)).astype(np.float32)


def loud(audio: np.ndarray) -> float:
    """Root mean square of the half of the half-seconds that is louder."""
    size = SAMPLE_RATE // 2
    blocks = audio[: len(audio) // size * size].reshape(-1, size) if len(audio) >= size else audio[None]
    levels = np.sort((blocks**2).mean(axis=1))
    return float(np.sqrt(levels[len(levels) // 2 :].mean()) + 1e-6)


@cache
def room(size: float) -> np.ndarray:
    """What a room of a size from 0 to 1 answers to a click, energy 1: noise that fades, its highs first."""
    seconds = 0.3 + 1.2 * size  # until it is 60 dB quieter
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(len(time))
    answer = low_pass(noise, 3000.0) * 10 ** (-3 * time / seconds)
    answer[: round(0.01 * SAMPLE_RATE)] = 0  # the nearest wall
    return answer / np.sqrt((answer**2).sum())


def tone(audio: np.ndarray) -> np.ndarray:
    """A shelf of one pole."""
    return TONE * audio + (1 - TONE) * low_pass(audio, TONE_HERTZ, poles=1)


def low_pass(audio: np.ndarray, hertz: float, poles: int = 2) -> np.ndarray:
    """6 dB an octave for each pole."""
    a = np.exp(-2 * np.pi * hertz / SAMPLE_RATE)
    for _ in range(poles):
        audio = lfilter([1 - a], [1, -a], audio)
    return audio


def crackle(samples: int, random_: np.random.Generator) -> np.ndarray:
    """Clicks and a little hiss, as of a record: float64 `[samples]`."""
    clicks = np.zeros(samples)
    count = random_.poisson(7 * samples / SAMPLE_RATE)
    clicks[random_.integers(0, samples, count)] = random_.normal(0, 0.25, count)
    ringing = lfilter([1.0], [1, -1.2, 0.5], clicks)
    return 0.35 * ringing + 0.0015 * random_.standard_normal(samples)


def limit(audio: np.ndarray) -> np.ndarray:
    """Smoothly below full scale; what is below half of it is left as it is."""
    size, bend = np.abs(audio), PEAK / 2
    over = np.maximum(0, size - bend)
    return np.sign(audio) * np.where(size > bend, bend + (PEAK - bend) * np.tanh(over / (PEAK - bend)), size)

"""Fuzzes what reads files of users, and requests: audio, tags, MIDI, lists of prompts, captions, HTTP bodies.

    python tests/fuzz_inputs.py [--runs 100000] [--seed 0] [--jobs 2]

Each input is a mutation of a valid one. The rules are those of `fuzzing.py`; a request must be answered
without an error of the server's. The exit status is not 0 if one is broken.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import random
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import httpx
import mido
import numpy as np
import soundfile
from fastapi import FastAPI

from audiocraft_mlx.audio.formats import BIT_DEPTHS, choose_format
from audiocraft_mlx.audio.read import read_duration, read_info, read_pieces
from audiocraft_mlx.audio.tags import AudioTags, add_tags
from audiocraft_mlx.audio.write import write_audio
from audiocraft_mlx.clips.codes import ClipCodes, read_codes
from audiocraft_mlx.clips.manifest import Manifest
from audiocraft_mlx.clips.metadata import GenerationMetadata, read_metadata
from audiocraft_mlx.clips.prompt_lines import LineDefaults, line_of
from audiocraft_mlx.clips.prompt_lists import ListModel, read_clips
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.clips.source import read_source
from audiocraft_mlx.conditioning.chords import chord_notes
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.midi import read_midi
from audiocraft_mlx.conditioning.note_chroma import chroma_of_notes
from audiocraft_mlx.conditioning.sections import parse_section
from audiocraft_mlx.errors import UsageError, UsageErrors
from audiocraft_mlx.server.app import create_app
from audiocraft_mlx.server.security import SecuritySettings
from audiocraft_mlx.server.service import Service
from audiocraft_mlx.server.settings import Limits, ServerSettings
from audiocraft_mlx.server.uploads import measure_audio
from audiocraft_mlx.tuning.metadata import read_json_sidecar, read_table

if __package__:
    from .fake_service import FakeService
    from .fuzzing import SCALARS, Kind, Worker, main, vary_bytes, vary_json, vary_json_text
else:  # run as a script
    from fake_service import FakeService
    from fuzzing import SCALARS, Kind, Worker, main, vary_bytes, vary_json, vary_json_text

RATE = 32000
SOUNDS = ("wav", "flac", "mp3", "ogg", "aiff", "au", "m4a", "webm")
LONGEST = 2.0
"""Seconds of a clip that a request may ask for: those that are answered with audio get all of it."""

METADATA = {
    "prompt": "calm piano",
    "model": "demo",
    "seed": 7,
    "duration": 0.2,
    "top_k": 250,
    "top_p": None,
    "temperature": 1.0,
    "cfg_coef": 3.0,
    "options": {"negative": "drums", "section": ["6: strings come in"], "loop": True, "bpm": 90.5},
    "version": "0.1.0",
    "program": "musicgen-mlx",
    "partial": False,
}
LINE = {
    "prompt": "rock, loud",
    "seed": 7,
    "duration": 8,
    "takes": 2,
    "negative": "vocals",
    "sections": "4: strings | 6~2: all",
    "chords": "C | Am F | G7",
    "bpm": 120,
    "beats_per_bar": 4,
    "loop": False,
    "temperature": 1.0,
    "top_k": 250,
    "decoding_steps": "20,10,10,10",
    "output": "clip.flac",
    "bit_depth": 16,
    "fade_out": 0.5,
    "quantize": 4,
    "lora": "adapter@0.5",
}
CAPTION = {
    "file_name": "a/song.wav",
    "text": "calm piano",
    "split": "train",
    "bpm": 90,
    "keywords": ["a", "b"],
}
PROMPTS = "piano\n\n# no prompt\n strings, calm\n"
CHORDS = (
    "C | Am F | Dm7 G7/B",
    "Bb Eb | F#m7b5 Caug9 | % | N.C.",
    "Esus2 | Edim7 | E5 E6/9",
    "A♭maj7 Gsus4 | Cadd9",
)
SECTIONS = ("6: strings come in", "10~2: all of them", "0.5~0.25 : a, b: c")
REQUESTS: dict[str, dict[str, Any]] = {
    "/api/jobs": {
        "prompt": "a piano",
        "duration": 1.5,
        "takes": 2,
        "seed": 1,
        "sections": [{"start": 0.5, "text": "strings", "fade": 0.1}],
        "negative": "drums",
        "format": "flac",
        "bit_depth": 24,
        "normalize": "peak",
        "top_k": 50,
        "temperature": 0.9,
        "cfg_coef": 3,
        "ending": "fade",
    },
    "/v1/audio/speech": {
        "model": "tts-1",
        "input": "a piano",
        "voice": "alloy",
        "response_format": "wav",
        "stream_format": "audio",
        "duration": 0.2,
    },
    "/v1/sound-generation": {"text": "rain", "duration_seconds": 0.5, "prompt_influence": 0.3, "loop": False},
    "/v1/music?output_format=pcm_16000": {
        "prompt": "a piano",
        "music_length_ms": 300,
        "model_id": "music_v1",
    },
    "/hf/demo": {
        "inputs": "a piano",
        "parameters": {"max_new_tokens": 20, "guidance_scale": 3.0, "top_k": 5},
    },
}


CODES = "2x4/16 abc AAAAAA=="


class InputWorker(Worker):
    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        warnings.simplefilter("ignore")  # of what is short, or of another kind than its name says
        model, limits = ModelOptions("demo"), Limits(LONGEST, waiting=10**9, waiting_per_client=10**9)
        self.service = Service(ServerSettings(folder / "data", model, limits=limits))  # which makes nothing
        self.answering = FakeService(folder)  # which answers with a tone
        self.answering.settings = ServerSettings(folder, model, limits=limits)
        self.flac = write_sound(folder / "seed.flac")
        tune = write_tune()
        made = {"file": "a.wav", "sha256": "00", **LINE}
        sounds = [(ending, write_sound(folder / f"seed.{ending}")) for ending in SOUNDS]
        draw = self.random
        self.kinds = [
            *(
                Kind(name, 4, self._vary_sound(data), self._named(f"a.{name}", read_sound))
                for name, data in sounds
            ),
            Kind("tags", 8, self._vary_tags, self._named("a.flac", read_sound)),
            Kind("metadata", 8, lambda: vary_json_text(METADATA, draw), read_metadata_text),
            Kind("codes", 4, lambda: vary_text(CODES, draw), read_codes_text),
            Kind("MIDI", 8, lambda: vary_bytes(tune, draw), read_tune),
            Kind("prompts, CSV", 8, self._vary_csv(LINE), self._named("a.csv", read_prompts)),
            Kind("prompts, JSONL", 8, self._vary_lines(LINE), self._named("a.jsonl", read_prompts)),
            Kind("prompts, text", 2, lambda: vary_text(PROMPTS, draw), self._named("a.txt", read_prompts)),
            Kind("manifest", 4, self._vary_lines(made), Manifest),
            Kind("captions, CSV", 4, self._vary_csv(CAPTION), self._named("metadata.csv", read_captions)),
            Kind("captions, JSONL", 4, self._vary_lines(CAPTION), self._named("train.jsonl", read_captions)),
            Kind("captions, packed", 2, self._vary_packed, self._named("data.jsonl.gz", read_captions)),
            Kind("a caption", 4, lambda: vary_json_text(CAPTION, draw), read_json_sidecar),
            Kind("chords", 6, lambda: vary_text(draw.choice(CHORDS), draw), read_chords),
            Kind("a section", 4, lambda: vary_text(draw.choice(SECTIONS), draw), read_section),
            *(
                Kind(f"POST {path}", 4, self._vary_body(body), self._post(path))
                for path, body in REQUESTS.items()
            ),
        ]

    def _vary_body(self, body: dict[str, Any]) -> Callable[[], bytes]:
        return lambda: vary_json_text(body, self.random)

    def _vary_sound(self, data: bytes) -> Callable[[], bytes]:
        """Changes near the beginning, where the headers are, or anywhere; sometimes cut off."""

        def vary() -> bytes:
            head = self.random.choice((128, 512, 4096, len(data)))
            changed = vary_bytes(data[:head], self.random) + data[head:]
            return (
                changed[: self.random.randrange(len(changed) + 1)] if self.random.random() < 0.1 else changed
            )

        return vary

    def _vary_tags(self) -> bytes:
        metadata = METADATA if self.random.random() < 0.5 else vary_json(METADATA, self.random)
        codes = vary_text(f"{'0' * 8} 2x4/16 abc AAAAAA==", self.random)
        return tagged(self.flac, json.dumps(metadata), codes)

    def _vary_csv(self, values: dict[str, Any]) -> Callable[[], bytes]:
        def vary() -> bytes:
            cells = [str(value) for value in values.values()]
            for _ in range(self.random.choice((1, 1, 2))):
                cells[self.random.randrange(len(cells))] = self._scalar()
            file = io.StringIO()
            writer = csv.writer(file, delimiter=self.random.choice(",,,,;\t"))
            writer.writerows((values, cells))
            data = file.getvalue().encode("utf-8", "surrogatepass")
            return vary_bytes(data, self.random) if self.random.random() < 0.3 else data

        return vary

    def _vary_lines(self, values: dict[str, Any]) -> Callable[[], bytes]:
        return lambda: json.dumps(values).encode() + b"\n" + vary_json_text(values, self.random) + b"\n"

    def _vary_packed(self) -> bytes:
        data = gzip.compress(json.dumps({**CAPTION, "path": "a.wav"}).encode() * self.random.choice((1, 9)))
        return vary_bytes(data, self.random)

    def _scalar(self) -> str:
        return str(self.random.choice(SCALARS[:-1] if self.random.random() < 0.9 else SCALARS))

    def _named(self, name: str, read: Callable[[Path], object]) -> Callable[[Path], None]:
        """`read` the input under a name that tells what it is."""

        def read_named(path: Path) -> None:
            place = self.folder / name
            shutil.copy(path, place)
            read(place)

        return read_named

    def _post(self, address: str) -> Callable[[Path], None]:
        """Send the input as a request's body."""
        app = create_app(self.service if address == "/api/jobs" else self.answering, SecuritySettings())

        def post(path: Path) -> None:
            status, answer = asyncio.run(answer_to(app, address, path.read_bytes()))
            self.answering.made.clear()
            if status == 202:
                self.service.delete(json.loads(answer)["id"])
            if status >= 500:
                raise AssertionError(f"status {status}: {answer[:1000]!r}")
            if status >= 400:
                raise UsageError(json.loads(answer)["error"]["message"])

        return post


# Inputs


def vary_text(text: str, random_: random.Random) -> bytes:
    """A text with words exchanged, repeated or replaced, or with other bytes."""
    words = re.findall(r"\w+|\W", text)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randrange(len(words))
        match random_.randrange(4):
            case 0:
                words[at] = str(random_.choice(SCALARS))
            case 1:
                words[at] = random_.choice(words) * random_.choice((0, 1, 2, 300))
            case 2:
                words.insert(at, random_.choice(words))
            case 3:
                words[at] = random_.choice(("♭", "°", "9" * 400, "-1", "٣", "|", "~", ":", "=" * 5, "1e999"))
    data = "".join(words).encode("utf-8", "surrogatepass")
    return vary_bytes(data, random_) if random_.random() < 0.2 else data


def write_sound(path: Path) -> bytes:
    """A fifth of a second in the format of the file's ending, with our tags where we write them."""
    tone = 0.3 * np.sin(np.arange(RATE // 5) * 0.1).astype(np.float32)[None]
    ending = path.suffix[1:]
    if ending in BIT_DEPTHS:
        write_audio(path, tone, RATE, choose_format(path), AudioTags("a piano", json.dumps(METADATA)))
    elif ending in ("aiff", "au"):
        soundfile.write(path, tone.T, RATE)
    else:
        codec = {"m4a": "aac", "webm": "libopus"}[ending]
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            frame.sample_rate = 48000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path.read_bytes()


def tagged(flac: bytes, data: str, codes: bytes) -> bytes:
    file = io.BytesIO(flac)
    add_tags(file, AudioTags("a piano", data, codes.decode("utf-8", "replace")))
    return file.getvalue()


def write_tune() -> bytes:
    file = mido.MidiFile()
    for channel in (0, 9):
        track = mido.MidiTrack()
        track += [mido.MetaMessage("track_name", name="Lead"), mido.MetaMessage("set_tempo", tempo=500_000)]
        for note in (60, 64, 67):
            track.append(mido.Message("note_on", note=note, channel=channel))
            track.append(mido.Message("note_off", note=note, channel=channel, time=240))
        file.tracks.append(track)
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue()


# What reads them


async def answer_to(app: FastAPI, address: str, body: bytes) -> tuple[int, bytes]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.post(address, content=body, headers={"Content-Type": "application/json"})
        return answer.status_code, answer.content


def read_sound(path: Path) -> None:
    """In every way, so that each of them is tried where another one refuses the file."""
    refusals = []
    for read in (
        read_info,
        read_duration,
        read_source,
        read_whole_pieces,
        measure,
        read_metadata,
        read_codes,
    ):
        try:
            read(path)
        except UsageError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def read_whole_pieces(path: Path) -> None:
    for piece in read_pieces(path, 0.1):
        if not np.isfinite(piece.audio).all():
            raise AssertionError("samples that are no numbers")


def measure(path: Path) -> None:
    measure_audio(path, 1800.0, "a file")


def read_metadata_text(path: Path) -> None:
    try:
        metadata = GenerationMetadata.from_json(path.read_text("utf-8", "replace"))
    except ValueError as error:
        raise UsageError(str(error)) from error
    command = metadata.to_command()
    if not command.isprintable():
        raise AssertionError(f"a command that can't be pasted: {command!r}")
    line_of(metadata)


def read_codes_text(path: Path) -> None:
    try:
        ClipCodes.from_text(path.read_text("utf-8", "replace"))
    except ValueError as error:
        raise UsageError(str(error)) from error


def read_tune(path: Path) -> None:
    chroma_of_notes(read_midi(path), ChromaConfig(length=2))


def read_prompts(path: Path) -> None:
    try:
        read_clips(path, LineDefaults({"duration": 2.0}, "wav", 5), 0, ListModel({}))
    except UsageErrors as errors:
        raise UsageError(errors.messages[0]) from None


def read_captions(path: Path) -> None:
    for entry in read_table(path):
        if entry.caption is not None and not entry.caption:
            raise AssertionError("an empty caption")


def read_chords(path: Path) -> None:
    notes = chord_notes(path.read_text("utf-8", "replace"), 120.0)
    chroma_of_notes(notes, ChromaConfig(length=2))


def read_section(path: Path) -> None:
    parse_section(path.read_text("utf-8", "replace"))


if __name__ == "__main__":
    sys.exit(main(__file__, "Fuzz what reads the user's files and requests.", InputWorker))

"""How good are the codec and the demo model? `python evaluate_songs.py --model ../audiocraft_mlx/demo`

Held-out renders are what a perfect model would make, the same through the codec what the language model can
at best reach. Captions of the evaluation don't occur in the training. Without --model only renders are
measured. What it renders, decodes and generates is kept in the folder of --work: started again it goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from estimators import TASKS, Classifiers, KeyEstimator, TempoEstimator, is_key, is_tempo
from measures import (
    changes_on_bars,
    comb,
    full_scale_share,
    longest_held,
    nearest,
    refined_bpm,
    self_similarity,
)
from rendered import (
    ThroughCodec,
    held_out_renders,
    held_out_songs,
    training_renders,
    training_songs,
    write_clips,
)
from spectra import SAMPLE_RATE, Spectra, cached_spectra, to_float
from words import unseen_caption

SECONDS, LONG_SECONDS = 10, 60
BATCH, LONG_BATCH = 8, 4
HOLDS = 4.0  # seconds of one note that are too long
EVERYTHING = frozenset({*TASKS, "bpm", "tonic"})


@dataclass(frozen=True)
class Value:
    """A share with its standard error, or a median with the range that 90 % are in."""

    value: float
    error: float | None = None
    low: float | None = None
    high: float | None = None
    clips: int = 0

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.value:.2f} ± {self.error:.2f}"
        return f"{self.value:.3g}" + ("" if self.low is None else f" ({self.low:.2g} … {self.high:.2g})")


def share(correct: Sequence[bool]) -> Value | None:
    """None of nothing."""
    if not len(correct):
        return None
    p = float(np.mean(correct))
    return Value(p, error=float(np.sqrt(p * (1 - p) / len(correct))), clips=len(correct))


def mean(values: Sequence[float]) -> Value:
    return Value(
        float(np.mean(values)), error=float(np.std(values) / np.sqrt(len(values))), clips=len(values)
    )


def spread(values: Sequence[float]) -> Value:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return Value(float(middle), low=float(low), high=float(high), clips=len(values))


# What issue and model card promise; a row that isn't here has no limit of its own.
NEEDED = {
    "SI-SDR, dB": "≥ 8",
    "log-mel distance, nats": "≤ 0.45",
    "samples at full scale": "0",
    "50 Hz comb, dB": "as renders",
    "style": "≥ 0.80",
    "drums or none": "≥ 0.95",
    "lead's family": "≥ 0.80",
    "tempo": "≥ 0.80",
    "key, right or relative": "≥ 0.70",
    "changes on bar lines above chance": "as renders",
    "one note held for more than 4 s": "0",
    "similarity of bars": "in range",
    "distance of renders of one style": "-",
    "distance to nearest training render": "as that",
    "nearer than 95 % of renders": "≤ 0.05",
    "60 s: style and tempo stay": "≥ 0.80",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint; default: only renders")
    parser.add_argument("--clips", type=int, default=200, help="of 10 s: as many held-out and generated ones")
    parser.add_argument("--long", type=int, default=24, help="clips of 60 s")
    parser.add_argument("--training", type=int, default=600, help="training renders to learn from")
    parser.add_argument("--decoded", type=int, default=600, help="of them through the codec")
    parser.add_argument("--small", action="store_true", help="24 clips, 4 long ones, 60 decoded")
    parser.add_argument("--stems", type=Path, default=Path("work/stems.npy"), help="of render_songs.py")
    parser.add_argument("--codec", type=Path, default=Path("work/codec.pt"), help="of train_codec.py")
    parser.add_argument("--work", type=Path, default=Path("work/evaluation"))
    parser.add_argument("--out", type=Path, default=Path("work/evaluation.json"))
    arguments = parser.parse_args()
    if arguments.small:
        arguments.clips, arguments.long, arguments.decoded = 24, 4, 60
    for path, command in ((arguments.stems, "render_songs.py"), (arguments.codec, "train_codec.py")):
        if not path.exists():
            parser.error(f"{path} is missing: python {command}")
    if arguments.model and not arguments.model.is_dir():
        parser.error(f"{arguments.model} isn't a folder with a checkpoint")
    evaluation = Evaluation(arguments)
    columns = {"held-out renders": evaluation.of_renders()}
    report(arguments.out, columns)
    columns["through the codec"] = evaluation.of_decoded()
    report(arguments.out, columns)
    if arguments.model:
        columns["generated"] = evaluation.of_generated(arguments.model, columns["through the codec"])
        report(arguments.out, columns)
    print(table(columns))


class Evaluation:
    """What is learned from training renders, and what is compared with it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work, self.clips, self.long = arguments.work, arguments.clips, arguments.long
        self.codec = ThroughCodec(arguments.codec, self.work)
        renders = training_renders(self.work, arguments.stems, arguments.training)
        songs = training_songs(len(renders))
        decoded = self.codec("training", first_part(renders[: arguments.decoded]))
        # Whole renders for what is nearest, both halves to learn from: as they are, and through the codec.
        plain = self.spectra("training", windows(renders), len(renders) * 2)
        heard = cached_spectra(self.codec.folder / f"training-{len(decoded)}.npz", decoded)
        sounds = plain + heard
        attributes = [song.attributes for song in songs for _ in range(2)]
        attributes += [song.attributes for song in songs[: len(decoded)]]
        self.training = [joined(plain[at], plain[at + 1]) for at in range(0, len(plain), 2)]
        self.training_styles = [song.attributes.style for song in songs]
        self.classifiers = Classifiers(sounds, attributes)
        self.tempo = TempoEstimator(sounds, [each.bpm for each in attributes])
        self.key = KeyEstimator(sounds, attributes)
        self.attributes = [song.attributes for song in held_out_songs(self.clips)]
        self.renders = first_part(held_out_renders(self.work, self.clips))

    def spectra(self, name: str, clips: Iterator[np.ndarray] | np.ndarray, count: int) -> list[Spectra]:
        return cached_spectra(self.work / "spectra" / f"{name}-{count}.npz", clips)

    def of_renders(self) -> dict[str, Value | None]:
        sounds = self.spectra("held_out", self.renders, self.clips)
        distances = nearest(sounds, self.training)
        usual = self.usual_distances(distances)
        return {
            **self.of_audio(self.renders),
            **self.of_music(sounds, [EVERYTHING] * self.clips),
            "distance of renders of one style": usual,
            **of_distances(distances, usual),
            **self.of_ends(ends(self.long_renders()), self.work / "spectra" / f"ends-{self.long}.npz"),
        }

    def of_decoded(self) -> dict[str, Value | None]:
        decoded = self.codec("held_out", self.renders)
        sounds = cached_spectra(self.codec.folder / f"held_out-{self.clips}.npz", decoded)
        distances = nearest(sounds, self.training)
        usual = self.usual_distances(distances)
        both = self.codec("ends", np.stack(list(ends(self.long_renders()))))
        return {
            **fidelity(decoded, self.renders),
            **self.of_audio(decoded),
            **self.of_music(sounds, [EVERYTHING] * self.clips),
            "distance of renders of one style": usual,
            **of_distances(distances, usual),
            **self.of_ends(both, self.codec.folder / f"ends-{self.long}.npz"),
        }

    def of_generated(self, folder: Path, of_decoded: Mapping[str, Value | None]) -> dict[str, Value | None]:
        """Of captions of the held-out songs' attributes; what a caption doesn't name isn't counted."""
        random_ = random.Random(12)
        captions = [unseen_caption(each, random_) for each in self.attributes]
        prompts = [caption.text for caption in captions]
        kept = self.work / f"generated-{checksum(folder):08x}"
        clips = generated(folder, kept, prompts, SECONDS, BATCH)
        long = generated(folder, kept, prompts[: self.long], LONG_SECONDS, LONG_BATCH)
        sounds = cached_spectra(kept / f"spectra-{len(clips)}.npz", clips)
        usual = of_decoded["distance of renders of one style"]
        return {
            **self.of_audio(clips),
            **self.of_music(sounds, [caption.named for caption in captions]),
            **of_distances(nearest(sounds, self.training), usual),
            **self.of_ends(ends(long), kept / f"ends-{self.long}.npz"),
        }

    def usual_distances(self, distances: np.ndarray) -> Value:
        """From each held-out render to the nearest training render of its style."""
        same = np.array([[a.style == style for style in self.training_styles] for a in self.attributes])
        return spread(np.where(same, distances, np.inf).min(axis=1))

    def of_audio(self, clips: np.ndarray) -> dict[str, Value | None]:
        audio = [to_float(clip) for clip in clips]
        return {
            "samples at full scale": Value(float(np.mean([full_scale_share(clip) for clip in audio]))),
            "50 Hz comb, dB": spread([comb(clip) for clip in audio]),
        }

    def of_music(self, sounds: Sequence[Spectra], named: Sequence[frozenset[str]]) -> dict[str, Value | None]:
        """`named` are the attributes that each clip's prompt names."""
        attributes = self.attributes
        classes = self.classifiers(sounds)
        tempi = [self.tempo(sound) for sound in sounds]
        trio = list(zip(sounds, attributes, tempi, strict=True))
        counted = {
            task: [
                classes[task][at] == label(each) for at, each in enumerate(attributes) if task in named[at]
            ]
            for task, label in TASKS.items()
        }
        tempo = [is_tempo(bpm, each.bpm) for (_, each, bpm), n in zip(trio, named, strict=True) if "bpm" in n]
        key = [
            is_key(self.key(sound), each.tonic, each.mode)
            for (sound, each, _), n in zip(trio, named, strict=True)
            if "tonic" in n
        ]
        # Bars of the tempo that is there, in the octave of the one that is meant.
        beats = [refined_bpm(sound, nearest_octave(bpm, each.bpm)) for sound, each, bpm in trio]
        bars = [
            changes_on_bars(sound, bpm, each.meter)
            for sound, each, bpm in zip(sounds, attributes, beats, strict=True)
        ]
        similar = [
            self_similarity(sound, bpm, each.meter)
            for sound, each, bpm in zip(sounds, attributes, beats, strict=True)
        ]
        held = [
            longest_held(sound) > HOLDS
            for sound, each in zip(sounds, attributes, strict=True)
            if each.style != "ambient"
        ]
        return {
            "style": share(counted["style"]),
            "drums or none": share(counted["drums"]),
            "lead's family": share(counted["family"]),
            "tempo": share(tempo),
            "key, right or relative": share(key),
            "changes on bar lines above chance": mean([found - chance for found, chance in bars]),
            "one note held for more than 4 s": share(held),
            "similarity of bars": spread(similar),
        }

    def of_ends(self, clips: Iterator[np.ndarray] | np.ndarray, kept: Path) -> dict[str, Value | None]:
        """Of the first and the last 10 s of each clip in turn: is their style the same, and their tempo?"""
        sounds = cached_spectra(kept, clips)
        styles, tempi = self.classifiers(sounds)["style"], [self.tempo(sound) for sound in sounds]
        stays = [
            styles[at] == styles[at + 1] and is_tempo(tempi[at], tempi[at + 1])
            for at in range(0, len(sounds), 2)
        ]
        return {"60 s: style and tempo stay": share(stays)}

    def long_renders(self) -> np.ndarray:
        return held_out_renders(self.work, self.long, LONG_SECONDS)


def of_distances(distances: np.ndarray, usual: Value | None) -> dict[str, Value | None]:
    """`distances` are those of each clip from each training render, `usual` those of renders of one style."""
    shortest = distances.min(axis=1)
    return {
        "distance to nearest training render": spread(shortest),
        "nearer than 95 % of renders": share(list(shortest < usual.low)),
    }


def first_part(renders: np.ndarray) -> np.ndarray:
    return renders[:, : SECONDS * SAMPLE_RATE]


def windows(renders: np.ndarray) -> Iterator[np.ndarray]:
    """The first 10 s and the next 10 s of each."""
    for render in renders:
        yield from (render[start : start + SECONDS * SAMPLE_RATE] for start in (0, SECONDS * SAMPLE_RATE))


def ends(clips: np.ndarray) -> Iterator[np.ndarray]:
    """The first and the last 10 s of each."""
    for clip in clips:
        yield from (clip[: SECONDS * SAMPLE_RATE], clip[-SECONDS * SAMPLE_RATE :])


def joined(first: Spectra, second: Spectra) -> Spectra:
    return Spectra(
        np.concatenate([first.mel, second.mel], axis=1), np.concatenate([first.keys, second.keys], axis=1)
    )


def nearest_octave(bpm: float, meant: float) -> float:
    """`bpm`, its double or its half, whichever is nearest to what is meant."""
    return min((bpm / 2, bpm, bpm * 2), key=lambda tempo: abs(np.log(tempo / meant)))


def fidelity(decoded: np.ndarray, renders: np.ndarray) -> dict[str, Value | None]:
    import torch
    from codec import SpectralLoss, si_sdr

    loss = SpectralLoss()
    ratios, distances = [], []
    for a, b in zip(decoded, renders, strict=True):
        made, true = torch.tensor(to_float(a))[None], torch.tensor(to_float(b))[None]
        ratios.append(si_sdr(made, true).item())
        distances.append(loss(made, true)[0].item())
    return {"SI-SDR, dB": spread(ratios), "log-mel distance, nats": mean(distances)}


def checksum(folder: Path) -> int:
    """Of the weights: clips of other ones are others."""
    value = 0
    for path in sorted(folder.glob("*.safetensors")):
        value = zlib.crc32(path.read_bytes(), value)
    return value


def generated(folder: Path, kept: Path, prompts: list[str], seconds: int, batch: int) -> np.ndarray:
    """Int16 `[prompts, samples]`, a file in `kept` for each batch; row i has seed i."""
    from audiocraft_mlx import MusicGen

    model, pieces = None, []
    for first in range(0, len(prompts), batch):
        rows = prompts[first : first + batch]
        path = kept / f"{seconds}s-{first:04}-{len(rows)}.npy"
        if not path.exists():
            model = model or MusicGen.get_pretrained(str(folder))
            model.set_generation_params(duration=float(seconds), seed=first)
            write_clips(path, np.array(model.generate(rows))[:, 0])
            print(f"generated {first + len(rows)} of {len(prompts)} clips of {seconds} s", flush=True)
        pieces.append(np.load(path))
    return np.concatenate(pieces)


def report(path: Path, columns: Mapping[str, Mapping[str, Value | None]]) -> None:
    values = {
        name: {row: value and asdict(value) for row, value in of.items()} for name, of in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"needed": NEEDED, **values}, indent=1, ensure_ascii=False))


def table(columns: Mapping[str, Mapping[str, Value | None]]) -> str:
    """Markdown."""
    lines = [
        f"| measure | needed | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for row, needed in NEEDED.items():
        cells = [str(rows.get(row) or "-") for rows in columns.values()]
        lines.append(f"| {row} | {needed} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

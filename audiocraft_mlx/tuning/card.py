"""The README.md of what a training has made: from what, of which data, with which options and losses."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audiocraft_mlx.checkpoints.model_files import DEMO, SHORT_NAMES
from audiocraft_mlx.tuning.codes import EncodedDataset
from audiocraft_mlx.tuning.dataset import Dataset, counted
from audiocraft_mlx.tuning.history import History
from audiocraft_mlx.tuning.options import option_name

CURVES_FILE = "curves.png"
_LICENCE = "cc-by-nc-4.0"
_META = (
    "The model is Meta AI's, under [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for"
    " commercial use. What was made from its weights is under that licence, too."
)
_DEMO = (
    "The model, musicgen-mlx's demo model, is dedicated to the public domain"
    " ([CC0](https://creativecommons.org/publicdomain/zero/1.0/))."
)
_HUB = "See [{base}](https://huggingface.co/{base}) for the authors and the licence of the model."
_UNKNOWN = (
    "The model was a local folder whose files don't name its authors or licence. If it is MusicGen itself, or"
    " made from it, its weights are Meta's, under"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use. Name both here"
    " before you share this folder."
)
_MUSIC = "Before you share it: whose music it was trained on, and whether they allow it, belongs here, too."


@dataclass(frozen=True)
class DataSummary:
    """What a model was trained on, without the names of files."""

    files: int
    minutes: float
    captions: int
    crops: int
    validation_crops: int
    texts: int

    @classmethod
    def of(cls, dataset: Dataset, encoded: EncodedDataset) -> DataSummary:
        left_out = {file.path for file in encoded.skipped}
        used = [file for file in dataset.files if file.path not in left_out]
        return cls(
            files=len(used),
            minutes=sum(file.duration for file in used) / 60,
            captions=sum(not file.is_prompted for file in used),
            crops=len(encoded.train),
            validation_crops=len(encoded.validation),
            texts=len(encoded.texts),
        )


def training_card(
    name: str,
    base_model: str,
    is_full: bool,
    data: DataSummary,
    options: Mapping[str, Any],
    history: History,
    has_curves: bool,
    prompt: str | None,
    bits: int | None = None,
) -> str:
    """Markdown with a header for the Hub.

    Args:
        name: of the folder.
        base_model: a repository on the Hub, `demo`, or a folder.
        is_full: all weights were trained; else it is an adapter.
        options: by their names on the command line.
        has_curves: whether there is a picture of them.
        prompt: a text that it was trained with, for the example.
        bits: of the model's weights, if they were quantized while it was trained.
    """
    is_folder = base_model.startswith(("/", "~", "."))
    shown = "a local model" if is_folder else base_model
    header = [f"library_name: {'mlx' if is_full else 'peft'}", "pipeline_tag: text-to-audio"]
    tags = ["musicgen", "musicgen-mlx"] + ([] if is_full else ["lora"])
    if not is_folder and base_model != DEMO:
        header.insert(0, f"base_model: {base_model}")
        tags += [] if is_full else [f"base_model:adapter:{base_model}"]
    if base_model in SHORT_NAMES.values():
        header.append(f"license: {_LICENCE}")
    header.append(f"tags: {json.dumps(tags)}")
    what = "A fine-tuned MusicGen model" if is_full else "A LoRA adapter for MusicGen"
    link = (
        shown if is_folder or base_model == DEMO else f"[{base_model}](https://huggingface.co/{base_model})"
    )
    folder = shlex.quote(name)
    use = f"-m {folder}" if is_full else f"-m {'MODEL' if is_folder else base_model} --lora {folder}"
    lines = [
        "---",
        *header,
        "---",
        "",
        f"# {name}",
        "",
        f"{what}, trained from {link}{f' in {bits} bits' if bits else ''} with musicgen-mlx.",
        "",
        "```sh",
        f"musicgen-mlx {_in_shell(prompt or 'your prompt')} {use}",
        "```",
        "",
        *([] if is_full else ["(`--lora` takes the path of this folder, or its name on the Hub.)", ""]),
        "## Data",
        "",
        f"{counted(data.files, 'file')}, {data.minutes:.1f} minutes; {counted(data.captions, 'file')} with a"
        f" caption of their own, {counted(data.texts, 'different text')}. {counted(data.crops, 'crop')} to"
        f" train on, {data.validation_crops} for validation.",
        "",
        "## Training",
        "",
        *_results(history),
        *([f"![The losses of training and validation]({CURVES_FILE})", ""] if has_curves else []),
        "| Option | |",
        "|---|---|",
        *(f"| {_option(key)} | {_cell(value)} |" for key, value in options.items() if value is not None),
        "",
        "## Licence",
        "",
        _provenance(base_model, is_folder),
        "",
        _MUSIC,
        "",
    ]
    return "\n".join(lines)


def _results(history: History) -> list[str]:
    if not history.steps:
        return []
    minutes = sum(step.seconds for step in history.steps) / 60
    took = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
    text = f"{history.steps[-1].step} steps in {took}."
    if not history.evaluations:
        return [text, ""]
    first, last = history.evaluations[0], history.evaluations[-1]
    best = min(history.evaluations, key=lambda each: each.loss)
    books = ", ".join(f"{a:.3f} → {b:.3f}" for a, b in zip(first.losses, last.losses, strict=True))
    return [
        f"{text} The validation loss went from {first.loss:.3f} to {last.loss:.3f} (by codebook: {books}); it"
        f" was lowest after step {best.step}: {best.loss:.3f}.",
        "",
    ]


def _in_shell(prompt: str) -> str:
    """The prompt as a word for a shell, which must not run what somebody's caption has in it."""
    line = " ".join(prompt.split())
    return shlex.quote(line) if set('"$`!\\') & set(line) else f'"{line}"'


def _option(name: str) -> str:
    return name if name.startswith("beta") else f"`{option_name(name)}`"  # AdamW's are fixed


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    # A prompt may have what ends a cell.
    return " ".join(text.split()).replace("|", "\\|")


def _provenance(base_model: str, is_folder: bool) -> str:
    if base_model == DEMO:
        return _DEMO
    if base_model in SHORT_NAMES.values():
        return _META
    return _UNKNOWN if is_folder else _HUB.format(base=base_model)

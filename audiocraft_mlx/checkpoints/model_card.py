"""The README.md of a converted model: what it is, its authors and licence, how to use it."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import DEMO, SHORT_NAMES
from audiocraft_mlx.checkpoints.quantization_config import Quantization
from audiocraft_mlx.networks.weights import dtype_name

_META = (
    "The weights are those of [{repo}](https://huggingface.co/{repo}) by Meta AI, under the licence"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use."
    " What was changed: their layout and precision, as described above."
)
_DEMO = (
    "The weights are those of musicgen-mlx's demo model, dedicated to the public domain"
    " ([CC0](https://creativecommons.org/publicdomain/zero/1.0/))."
)
_HUB = (
    "The weights come from [{repo}](https://huggingface.co/{repo}); see there for their authors and"
    " licence. The weights of MusicGen itself are Meta's, under CC-BY-NC 4.0: not for commercial use."
)
_UNKNOWN = (
    "The weights come from a local folder whose files don't name their authors or licence."
    " If they are the weights of MusicGen itself, or made from them, these are Meta's, under"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use."
    " Name both here before you share this folder."
)


_TRAINED = (
    "It was fine-tuned{origin}: the weights of its language model are those of the file `{file}`, which"
    " doesn't name their authors or licence. Name both here before you share this folder. What was made from"
    " the weights of MusicGen itself, which are Meta's, is under their licence, too:"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), not for commercial use."
)


def model_card(
    name: str,
    source_repo: str | None,
    quantization: Quantization | None,
    dtype: mx.Dtype,
    weights_file: str | None = None,
    lora: Sequence[LoraSpec] = (),
) -> str:
    """Markdown with a header for the Hub.

    Args:
        name: the name of the folder.
        source_repo: the Hub repository that the weights come from, `demo`, or None if that is not known.
        quantization: how the linear layers are stored, None if as `dtype`.
        dtype: how the other weights are stored.
        weights_file: the file whose weights took the place of those of the repository, if there was one.
        lora: the adapters that were merged into the weights.
    """
    header = ["library_name: mlx", "pipeline_tag: text-to-audio", "tags: [mlx, musicgen, musicgen-mlx]"]
    if source_repo == DEMO:
        header.append("license: cc0-1.0")
        provenance = _DEMO
    elif source_repo in SHORT_NAMES.values():
        header += ["license: cc-by-nc-4.0", f"base_model: {source_repo}"]
        provenance = _META.format(repo=source_repo)
    elif source_repo is not None:
        header.append(f"base_model: {source_repo}")
        provenance = _HUB.format(repo=source_repo)
    else:
        provenance = _UNKNOWN
    if weights_file is not None:
        # What it was trained on decides, too.
        header = [line for line in header if line != "license: cc0-1.0"]
        if source_repo == DEMO:
            origin = " from musicgen-mlx's demo model"
        else:
            origin = (
                "" if source_repo is None else f" from [{source_repo}](https://huggingface.co/{source_repo})"
            )
        provenance = _TRAINED.format(origin=origin, file=weights_file.replace("`", ""))
    kind = dtype_name(dtype)
    stored = f"Its weights are stored as {kind}."
    if quantization is not None:
        stored = (
            f"The linear layers of its language model and text encoder are quantized to {quantization.bits}"
            f" bits (affine, groups of {quantization.group_size}); the rest is stored as {kind}."
        )
    titles = {None: "A MusicGen model", DEMO: "The demo model of musicgen-mlx"}
    title = titles.get(source_repo, source_repo)
    if weights_file is not None:
        title = "A fine-tuned MusicGen model"
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            f"# {name}",
            "",
            f"{title}, converted for musicgen-mlx, which runs MusicGen on Apple's MLX. {stored}",
            "",
            "```sh",
            f'musicgen-mlx "lo-fi, soft piano" -m {name}',
            "```",
            "",
            "(`-m` takes the path of this folder, or its name on the Hub.)",
            "",
            "## Origin and licence",
            "",
            provenance,
            "",
            *_adapters(lora),
        ]
    )


def _adapters(lora: Sequence[LoraSpec]) -> list[str]:
    if not lora:
        return []
    return [
        "LoRA adapters were merged into them: they are no longer those of the model above. The adapters have"
        " authors and licences of their own:",
        "",
        *(f"- {spec.without_folder().name}, weight {spec.weight:g}" for spec in lora),
        "",
    ]

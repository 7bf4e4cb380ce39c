"""The README.md of a converted model: what it is, whose it is, how to use it."""

from __future__ import annotations

import mlx.core as mx

from audiocraft_mlx.checkpoints.model_files import DEMO, SHORT_NAMES
from audiocraft_mlx.checkpoints.quantization import Quantization
from audiocraft_mlx.networks.weights import dtype_name

_META = (
    "The weights are those of [{origin}](https://huggingface.co/{origin}) by Meta AI, under the licence"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use."
    " What was changed: their layout and precision, as said above."
)
_DEMO = (
    "The weights are those of musicgen-mlx's demo model, dedicated to the public domain"
    " ([CC0](https://creativecommons.org/publicdomain/zero/1.0/))."
)
_HUB = (
    "The weights come from [{origin}](https://huggingface.co/{origin}); see there for who made them and under"
    " which licence. The weights of MusicGen itself are Meta's, under CC-BY-NC 4.0: not for commercial use."
)
_UNKNOWN = (
    "The weights come from a local folder whose files don't say who made them or under which licence."
    " If they are the weights of MusicGen itself, or made from them, these are Meta's, under"
    " [CC-BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for commercial use."
    " Write it down here before you share this folder."
)


def model_card(name: str, origin: str | None, quantization: Quantization | None, dtype: mx.Dtype) -> str:
    """Markdown with a header for the Hub.

    Args:
        name: the folder's.
        origin: the Hub repository that the weights come from, `demo`, or None if that is not known.
        quantization: how the linear layers are stored, if not as `dtype`.
        dtype: how the rest is stored.
    """
    header = ["library_name: mlx", "pipeline_tag: text-to-audio", "tags: [mlx, musicgen, musicgen-mlx]"]
    if origin == DEMO:
        header.append("license: cc0-1.0")
        provenance = _DEMO
    elif origin in SHORT_NAMES.values():
        header += ["license: cc-by-nc-4.0", f"base_model: {origin}"]
        provenance = _META.format(origin=origin)
    elif origin is not None:
        header.append(f"base_model: {origin}")
        provenance = _HUB.format(origin=origin)
    else:
        provenance = _UNKNOWN
    kind = dtype_name(dtype)
    stored = f"Its weights are stored as {kind}."
    if quantization is not None:
        stored = (
            f"The linear layers of its language model and text encoder are quantized to {quantization.bits}"
            f" bits (affine, groups of {quantization.group_size}); the rest is stored as {kind}."
        )
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            f"# {name}",
            "",
            f"{_title(origin)}, converted for musicgen-mlx, which runs MusicGen on Apple's MLX. {stored}",
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
        ]
    )


def _title(origin: str | None) -> str:
    return {None: "A MusicGen model", DEMO: "The demo model of musicgen-mlx"}.get(origin, str(origin))

"""`ModelBundle`, a loaded model, and what the readers of all formats share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from audiocraft_mlx.checkpoints.build import StoredTensors, load_network_weights
from audiocraft_mlx.checkpoints.evaluation import evaluate_beside, evaluate_together, second_stream
from audiocraft_mlx.checkpoints.finite import is_finite, not_finite_error
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.checkpoints.model_files import ModelFiles
from audiocraft_mlx.checkpoints.tensors import read_json
from audiocraft_mlx.conditioning.chroma import ChromaConfig
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.conditioning.prepend import AudioConditioner
from audiocraft_mlx.conditioning.style import StyleParams
from audiocraft_mlx.conditioning.text import TextConditioner
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.decoding.guidance import GuidanceParams
from audiocraft_mlx.decoding.masked import MaskedParams
from audiocraft_mlx.decoding.sampling import SamplingParams
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.machine import require_memory, trim_heap
from audiocraft_mlx.networks.encodec import Encodec, InterleavedStereoCodec
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.t5 import T5Config
from audiocraft_mlx.networks.weights import Weights, flat_parameters, quantized_parameters
from audiocraft_mlx.ops.cpu.extension import store_fp16_if_exact
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.ops.linear import has_optimized_layout, optimize_layout, use_plain_layout

if TYPE_CHECKING:
    from audiocraft_mlx.networks.htdemucs import HTDemucs

CONFIG_FILE = "config.json"

# Measured: address space that MLX and the BLAS take with their first operations.
_BUFFERS_BYTES = 384 << 20

Codec = Encodec | InterleavedStereoCodec
_DEFAULT_STYLE_PARAMS = StyleParams()


@dataclass(frozen=True)
class ModelBundle:
    """A loaded model: its networks, and the defaults that its authors set."""

    lm: LM
    codec: Codec
    text_conditioner: TextConditioner
    max_duration: float
    """Seconds of audio that the model was trained to generate in one window."""
    sampling: SamplingParams
    guidance: GuidanceParams
    masked: MaskedParams | None = None
    """Of a MAGNeT, which fills masks, in place of `guidance`; None for all others."""
    audio_conditioner: AudioConditioner | None = None
    """Of a model that is conditioned on melody or style; None for one that takes text only."""
    style_params: StyleParams = _DEFAULT_STYLE_PARAMS
    source_repo: str | None = None
    """The Hub repository that the weights come from, `demo`, or None for a folder that doesn't name one."""
    weights_file: str | None = None
    """The name of the file whose weights took the place of those, for people."""

    lora: tuple[LoraSpec, ...] = ()
    """The adapters whose changes are in the weights."""

    @property
    def unchanged_repo(self) -> str | None:
        """`source_repo`, if the weights are its own, but for their precision: not those of a training."""
        return self.source_repo if self.weights_file is None and not self.lora else None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """By their names in messages: lm, t5, output_proj, melody or mert and style, codec."""
        return dict(self._named_networks())

    @property
    def mono_codec(self) -> Encodec:
        """The codec's network; a stereo codec uses one for both channels."""
        return self.codec.mono if isinstance(self.codec, InterleavedStereoCodec) else self.codec

    def require_file_layout(self, use: str) -> None:
        """Raise `UsageError` if the weights are no longer in the order of the files, as `use` needs them."""
        if any(has_optimized_layout(network) for network in self._networks()):
            raise UsageError(
                f"{use} needs a model that was loaded with lazy=True: this one's weights are"
                " in the order that this machine reads fastest"
            )

    def use_plain_layout(self) -> None:
        """Bring quantized weights, lazily, from the order of our files into MLX's."""
        for network in (self.lm, self.text_conditioner.t5):
            use_plain_layout(network)

    def materialize(self) -> None:
        """Compute all lazy weights, few at a time: the peak of memory stays near what is kept.

        Their layout is then the one that is fastest on this machine, no longer that of the files.

        Raises:
            CheckpointError: a quantized model has weights that are NaN or infinite. (Another one shows it in
                its logits.)
            MemoryError: a limit of `ulimit` is too low for the model.
        """
        is_quantized = bool(quantized_parameters(self.lm))
        store_fp16_if_exact(self.lm)
        optimize_layout(self.lm)
        with second_stream():
            optimize_layout(self.text_conditioner.t5)
        weights = {
            f"{name}.{key}": weight
            for name, network in self._named_networks()
            for key, weight in flat_parameters(network).items()
        }
        sizes = [weight.nbytes for weight in weights.values()]
        # The largest one also as it is in the file, and with the threads and buffers of MLX and the BLAS.
        require_memory(sum(sizes) + 2 * max(sizes) + _BUFFERS_BYTES)
        parts: dict[str, list[mx.array]] = {"lm": [], "codec": [], "others": []}
        for name, weight in weights.items():
            network_name = name.partition(".")[0]
            parts[network_name if network_name in parts else "others"].append(weight)
        evaluate_together(parts["lm"], parts["others"])
        # The codec's are needed last: they are computed beside what comes next.
        evaluate_beside(parts["codec"])
        if is_quantized:
            _require_finite(weights)
        trim_heap()

    def _networks(self) -> Iterator[nn.Module]:
        for _, network in self._named_networks():
            yield network

    def _named_networks(self) -> Iterator[tuple[str, nn.Module]]:
        """All networks, with their names in messages."""
        yield "lm", self.lm
        yield "t5", self.text_conditioner.t5
        if self.text_conditioner.output_proj is not None:
            yield "output_proj", self.text_conditioner.output_proj
        if isinstance(self.audio_conditioner, MelodyConditioner):
            yield "melody", self.audio_conditioner.output_proj
        elif self.audio_conditioner is not None:
            yield "mert", self.audio_conditioner.mert
            yield "style", self.audio_conditioner.encoder
        yield "codec", self.mono_codec


def _require_finite(weights: Weights) -> None:
    """Raise `CheckpointError` for weights of a quantized model that are NaN or infinite."""
    for name, weight in weights.items():
        # The codec isn't quantized, and its audio is looked at.
        if weight.dtype != mx.uint32 and not name.startswith("codec.") and not is_finite(weight):
            raise not_finite_error(name, weight)


def lm_dtype() -> mx.Dtype:
    """Half precision on a GPU, single on a CPU, as in the reference."""
    return mx.float16 if on_gpu() else mx.float32


def load_projection(t5: T5Config, lm: LMConfig, weights: StoredTensors, source: str) -> nn.Linear | None:
    """The projection from T5's dimension to the LM's; None where there is none, as the two are the same."""
    if not weights and t5.dim == lm.dim:
        return None
    projection = nn.Linear(t5.dim, lm.dim)
    load_network_weights(projection, weights, mx.float32, source)
    return projection


def melody_conditioner(
    config: ChromaConfig, dim: int, weights: StoredTensors, source: str
) -> MelodyConditioner:
    """Chroma → the LM's dimension `dim`; the network for source separation is loaded when it is needed."""
    projection = nn.Linear(config.n_chroma, dim)
    load_network_weights(projection, weights, mx.float32, source)
    return MelodyConditioner(config, projection, _load_separator)


def _load_separator() -> HTDemucs:
    from audiocraft_mlx.checkpoints.demucs import load_htdemucs

    return load_htdemucs()


def select_codebooks(codec: Encodec, lm: LMConfig, stereo: bool, used: int | None, source: str) -> Codec:
    """`codec` with the number of codebooks that the LM predicts, interleaved if the LM is `stereo`.

    `used` is the number per channel that the checkpoint states, if it does. Raises `CheckpointError`.
    """
    needed = lm.num_codebooks // (2 if stereo else 1)
    if (
        codec.cardinality != lm.cardinality
        or needed > codec.num_codebooks
        or needed * (2 if stereo else 1) != lm.num_codebooks
        or used not in (None, needed)
    ):
        raise CheckpointError(
            f"{source}: the model's {lm.num_codebooks} codebooks of {lm.cardinality} codes don't fit"
            f" its codec, which has {codec.num_codebooks} of {codec.cardinality} for each of its channels"
        )
    codec.num_codebooks = needed
    if not stereo:
        return codec
    if codec.channels != 1:
        raise CheckpointError(
            f"{source}: a stereo model needs a mono codec, and its own has {codec.channels} channels"
        )
    return InterleavedStereoCodec(codec)


def read_config(model_files: ModelFiles) -> ConfigSection:
    """`config.json`. Raises `CheckpointError`."""
    path = model_files.local_path(CONFIG_FILE)
    return ConfigSection(read_json(path), str(path))

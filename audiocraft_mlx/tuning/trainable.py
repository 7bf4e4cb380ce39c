"""A model's name → the network that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from audiocraft_mlx.checkpoints.adapter_places import LayerModules, lm_places, projection_place
from audiocraft_mlx.checkpoints.adapters import adapter_alone
from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.model_files import resolve_model
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.files import expand_home
from audiocraft_mlx.networks.weights import Weights, flat_parameters
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas
from audiocraft_mlx.ops.device import on_gpu
from audiocraft_mlx.ops.linear import has_optimized_layout
from audiocraft_mlx.tuning.cache import network_digest
from audiocraft_mlx.tuning.loop import seed_of
from audiocraft_mlx.tuning.lora import add_lora
from audiocraft_mlx.tuning.network import TrainedNetwork
from audiocraft_mlx.tuning.options import TrainingOptions

if TYPE_CHECKING:
    from audiocraft_mlx.models.musicgen import MusicGen


@dataclass(frozen=True)
class Trainable:
    """A model and what of it is trained.

    Attributes:
        model: for the codes and texts, and to make clips with the weights of the moment.
        bundle: its networks.
        network: the language model and the projection.
        places: its layers with LoRA, with their paths in `network`; empty if all weights are trained.
        base_model: the name of the model for others: on the Hub if it is from there, else a folder. Of a
            quantized model the one that it was quantized from, if that is known.
        revision: a branch, tag or commit there.
        bits: of a quantized model; None for another.
    """

    model: MusicGen
    bundle: ModelBundle
    network: TrainedNetwork
    places: tuple[LayerModules, ...]
    base_model: str
    revision: str | None
    bits: int | None

    @property
    def trained_weights(self) -> Weights:
        return dict(tree_flatten(self.network.trainable_parameters()))


def load_for_training(name: str, revision: str | None = None) -> tuple[MusicGen, ModelBundle]:
    """Load a model whose weights are precise, and in the order of its files, not in that of some processor.

    Raises:
        UsageError: it can't be trained: a style model, a MAGNeT, or an adapter.
        CheckpointError, DownloadError: as `checkpoints.load.load`.
    """
    from audiocraft_mlx.models.musicgen import MusicGen

    files = resolve_model(name, revision)
    if adapter_alone(files) is not None:
        raise UsageError(
            f"{name} is an adapter; give the model that it was trained from, or merge the two first"
            " (musicgen-mlx-convert) and give the result"
        )
    bundle = load(name, revision, lazy=True)
    patch_mlx_blas()
    if not bundle.lm.config.causal:
        raise UsageError(
            f"{name} is a MAGNeT, which can't be trained here; give a MusicGen model, such as small or melody"
        )
    if not (bundle.audio_conditioner is None or isinstance(bundle.audio_conditioner, MelodyConditioner)):
        raise UsageError(
            f"{name} is a style model, which can't be trained here; give a model for text or melody, such as"
            " small or melody"
        )
    return MusicGen(name, bundle), bundle


def make_trainable(
    model: MusicGen, bundle: ModelBundle, options: TrainingOptions, revision: str | None = None
) -> Trainable:
    """Freeze all of a model of `load_for_training` but what `options` trains.

    Raises `UsageError`: a target isn't there, or all weights of a quantized model were to be trained.
    """
    lm, projection = bundle.lm, bundle.text_conditioner.output_proj
    quantization = quantization_of(lm)
    if options.lora is None:
        if quantization is not None:
            raise UsageError(
                f"--full: {model.name} is quantized to {quantization.bits} bits, and such weights can't be"
                " trained; leave --full out, or give the model that it was quantized from"
            )
        lm.set_dtype(mx.float32)
    elif on_gpu() and quantization is None:
        # Half of the memory, and the range of float32: float16's is too small for gradients.
        lm.set_dtype(mx.bfloat16)
    if has_optimized_layout(lm):
        raise UsageError("training needs a model that was loaded by load_for_training")
    prefix = None
    if isinstance(bundle.audio_conditioner, MelodyConditioner):
        prefix = bundle.audio_conditioner.null_tokens()
        mx.eval(prefix)
    network = TrainedNetwork(lm, projection, prefix, options.grad_checkpoint)
    _evaluate(network)
    places: list[LayerModules] = []
    if options.lora is None:
        network.unfreeze()
        if lm.config.rotary_positions:  # constants
            lm.freeze(recurse=False, keys=["rotary_frequencies"])
    else:
        mx.random.seed(seed_of(options.seed, "lora", 0))
        places = add_lora(network, trained_places(network), options.lora)
        if "output_proj" in network:  # so that clips are made with its LoRA, too
            bundle.text_conditioner.output_proj = cast(nn.Linear, network.output_proj)
        mx.eval(network.trainable_parameters())
    base_model, base_revision = _base_model(model.name, bundle, revision)
    return Trainable(
        model,
        bundle,
        network,
        tuple(places),
        base_model,
        base_revision,
        None if quantization is None else quantization.bits,
    )


def trained_places(network: TrainedNetwork) -> Iterator[LayerModules]:
    """The layers that LoRA can be beside, with their paths in `network`."""
    config = network.lm.config
    for place in lm_places(config.num_layers, config.num_codebooks, config.cross_attention):
        yield replace(place, path=f"{place.network}.{place.path}")
    if "output_proj" in network:
        place = projection_place()
        yield replace(place, path=place.network)


def weights_digest(bundle: ModelBundle) -> str:
    """What tells the weights that are trained apart from others, before they are."""
    projection = bundle.text_conditioner.output_proj
    return network_digest(bundle.lm, *([] if projection is None else [projection]))


def _evaluate(network: nn.Module) -> None:
    """Compute lazy weights one by one: the peak of memory stays near what is kept."""
    for weight in flat_parameters(network).values():
        mx.eval(weight)


def _base_model(name: str, bundle: ModelBundle, revision: str | None) -> tuple[str, str | None]:
    """The name by which an adapter names its model, and its revision."""
    if bundle.unchanged_repo is not None:
        # Also of a converted or quantized model: the adapter is merged into precise weights.
        return bundle.unchanged_repo, revision
    return str(expand_home(name).resolve()), None

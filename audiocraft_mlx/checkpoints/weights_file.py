"""`--weights`: a file with the weights of a fine-tuned model, in place of those that it was trained from.

The file has tensors by audiocraft's or transformers' names: the language model's, all of them, and perhaps
those of what was trained with it (projections, style encoder, T5). What isn't in the file stays the base
model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from audiocraft_mlx.checkpoints.audiocraft import PROJECTION_PREFIX, SELF_WAV_PREFIX, T5_PREFIX
from audiocraft_mlx.checkpoints.build import StoredTensors, load_network_weights
from audiocraft_mlx.checkpoints.bundle import ModelBundle, load_projection
from audiocraft_mlx.checkpoints.model_files import read_error
from audiocraft_mlx.checkpoints.quantization import quantization_of
from audiocraft_mlx.checkpoints.state_dicts import (
    find_state,
    read_trained_state,
    read_training_file,
    unwrapped,
)
from audiocraft_mlx.checkpoints.tensors import MERGE, is_adapter, read_safetensors
from audiocraft_mlx.conditioning.melody import MelodyConditioner
from audiocraft_mlx.configs import shown_text
from audiocraft_mlx.errors import CheckpointError, UsageError
from audiocraft_mlx.networks.weights import pop_prefix

_TRANSFORMERS_LM = ("decoder.model.decoder.", "decoder.lm_heads.")
"""How names of the language model begin in a whole model of transformers; alone it lacks `decoder.`."""
_LM_NAMES = ("emb.", "transformer.layers.", "linears.", "model.decoder.", "lm_heads.")
# A tensor of what we write ourselves, what that is, and the option that takes it.
_OURS = (
    ("embed.weight", "a model of musicgen-mlx", "-m"),
    ("lm.embed.weight", "a checkpoint of musicgen-mlx-train", "--lora"),
)


@dataclass
class TrainedWeights:
    """The tensors of a file by the part of the model that they belong to, by upstream's names."""

    path: Path
    lm: StoredTensors
    projection: StoredTensors
    audio_conditioner: StoredTensors
    t5: StoredTensors

    def load_into(self, bundle: ModelBundle, name: str, dtype: mx.Dtype) -> None:
        """Replace the weights of `bundle`, the model `name`, whose LM's become `dtype`. Once only.

        Raises:
            CheckpointError: they don't fit the model.
            UsageError: the model is quantized.
        """
        if quantization_of(bundle.lm) is not None:
            raise UsageError(
                f"{name} is quantized, and weights can't be put into it; give the model that it was quantized"
                " from, and quantize it with these weights (-q)"
            )
        source = str(self.path)
        try:
            self._load_text(bundle, source)
            self._load_audio_conditioner(bundle, source)
            _replace(bundle.lm, self.lm, dtype, source)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; the base must be the model that it was trained from, not {name}"
            ) from error

    def _load_text(self, bundle: ModelBundle, source: str) -> None:
        text = bundle.text_conditioner
        if self.projection:
            text.output_proj = load_projection(
                text.t5.config, bundle.lm.config, self.projection, f"{source}, the projection of the text,"
            )
        if self.t5:
            _replace(text.t5, self.t5, mx.float32, f"{source}, the text encoder,")

    def _load_audio_conditioner(self, bundle: ModelBundle, source: str) -> None:
        if not self.audio_conditioner:
            return
        conditioner = bundle.audio_conditioner
        if conditioner is None:
            raise CheckpointError(f"{source} has weights of a condition on audio, which the base hasn't")
        if isinstance(conditioner, MelodyConditioner):
            self.audio_conditioner.pop("chroma.spec.window", None)  # a constant, rounded
            weights = pop_prefix(self.audio_conditioner, "output_proj.") | self.audio_conditioner
            _replace(conditioner.output_proj, weights, mx.float32, f"{source}, the projection of the melody,")
        else:
            _replace(
                conditioner.encoder,
                self.audio_conditioner,
                mx.float32,
                f"{source}, the network of the style,",
            )


def read_weights_file(path: Path) -> TrainedWeights:
    """The tensors in a torch or safetensors file, none of them read yet. Raises `CheckpointError`."""
    _check_file(path)
    if path.suffix.lower() == ".safetensors":
        stored = read_safetensors(path)
        for name, what, option in _OURS:
            if name in stored:
                raise CheckpointError(
                    f"{path} belongs to {what}; give its folder, {path.parent}, to {option}"
                )
        tensors = unwrapped({**stored}, str(path))
        if is_adapter(tensors):
            raise CheckpointError(f"{path} is a LoRA adapter, not the weights of a model; {MERGE}")
    else:
        found = find_state(read_training_file(path), str(path))
        if found is None:
            raise CheckpointError(
                f"{path} has no weights of a model: it is no state dict, and has none under 'best_state',"
                " 'model' or 'state_dict'; give the file that the training saved"
            )
        tensors = read_trained_state(found[0], str(path))
    return _by_part(path, tensors)


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; give the file with the weights in it")
        path.open("rb").close()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file of weights; check its path") from error
    except OSError as error:
        raise read_error(path, error) from error


def _by_part(path: Path, tensors: StoredTensors) -> TrainedWeights:
    if any(name.startswith(_TRANSFORMERS_LM) for name in tensors):
        parts = {
            part: pop_prefix(tensors, f"{part}.")
            for part in ("decoder", "enc_to_dec_proj", "audio_enc_to_dec_proj", "text_encoder")
        }
        pop_prefix(tensors, "audio_encoder.")  # the codec, which isn't trained with the rest
        if tensors:
            raise CheckpointError(
                f"{path} has {shown_text(next(iter(tensors)))}, which belongs to no part of a model"
            )
        return TrainedWeights(
            path,
            parts["decoder"],
            parts["enc_to_dec_proj"],
            parts["audio_enc_to_dec_proj"],
            parts["text_encoder"],
        )
    projection = pop_prefix(tensors, PROJECTION_PREFIX)
    audio_conditioner = pop_prefix(tensors, SELF_WAV_PREFIX)
    t5 = pop_prefix(tensors, T5_PREFIX)
    if not any(name.startswith(_LM_NAMES) for name in tensors):
        some = ", ".join(shown_text(name) for name in list(tensors)[:3]) or "nothing else"
        raise CheckpointError(
            f"{path} has no weights of a language model by audiocraft's or transformers' names, but {some}"
        )
    return TrainedWeights(path, tensors, projection, audio_conditioner, t5)


def _replace(network: nn.Module, tensors: StoredTensors, dtype: mx.Dtype, source: str) -> None:
    """Load `tensors` into a network that has weights already, which are let go before."""
    network.update(tree_map(lambda weight: mx.zeros(weight.shape, weight.dtype), network.parameters()))
    sanitize = getattr(network, "sanitize", None)
    if sanitize is None:  # a linear layer, whose names are upstream's
        load_network_weights(network, tensors, dtype, source)
    else:
        load_network_weights(network, tensors, dtype, source, sanitize)

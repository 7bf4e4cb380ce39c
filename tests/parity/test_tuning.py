"""Loss, gradients and steps of a training against torch + peft."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import peft
import pytest
import torch
from mlx.utils import tree_flatten
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
)

from audiocraft_mlx.checkpoints.adapter_places import LayerModules, lm_places
from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.networks.weights import load_strict
from audiocraft_mlx.tuning.checkpoint import write_weights
from audiocraft_mlx.tuning.lora import LoRALinear, add_lora
from audiocraft_mlx.tuning.loss import shift_codes
from audiocraft_mlx.tuning.network import TrainedNetwork, make_batch
from audiocraft_mlx.tuning.options import ALL_TARGETS, LoRAConfig, TrainingOptions
from audiocraft_mlx.tuning.trainable import load_for_training, make_trainable

from .pair import LONG_PROMPT, SHORT_PROMPT, Pair
from .test_adapters import MODELS, build_model

CARD, DIM, LAYERS = 32, 24, 2


def reference(channels: int) -> Any:
    torch.manual_seed(channels)
    decoder = MusicgenDecoderConfig(
        vocab_size=CARD,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        ffn_dim=40,
        num_codebooks=4 * channels,
        audio_channels=channels,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=CARD,
        bos_token_id=CARD,
        decoder_start_token_id=CARD,
    )
    text = T5Config(vocab_size=40, d_model=20, d_kv=5, d_ff=30, num_layers=1, num_heads=2)
    config = MusicgenConfig(text_encoder=text, audio_encoder=EncodecConfig(), decoder=decoder)
    model = MusicgenForConditionalGeneration(config)
    model.config.decoder_start_token_id = model.config.pad_token_id = CARD
    return model.eval()


def adapted(model: Any, lora: LoRAConfig) -> Any:
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=list(lora.targets)
    )
    wrapped = peft.get_peft_model(model, config)
    # B is zero at birth: then A has no gradient.
    torch.manual_seed(7)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name and "text_encoder" not in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
        elif "lora_" in name:
            parameter.requires_grad = False
    return wrapped


def array(tensor: torch.Tensor) -> mx.array:
    return mx.array(tensor.detach().numpy())


def ours(wrapped: Any, lora: LoRAConfig, channels: int) -> tuple[TrainedNetwork, list[LayerModules]]:
    base = {
        name.replace(".base_layer.", ".").removeprefix("base_model.model."): array(tensor)
        for name, tensor in wrapped.state_dict().items()
        if "lora_" not in name
    }
    lm = LM(
        LMConfig(
            num_codebooks=4 * channels,
            cardinality=CARD,
            dim=DIM,
            num_heads=2,
            num_layers=LAYERS,
            hidden_dim=40,
            delays=tuple(k // channels for k in range(4 * channels)),
            cross_attention=True,
        )
    )
    weights = {
        name.removeprefix("decoder."): value for name, value in base.items() if name.startswith("decoder.")
    }
    load_strict(lm, LM.sanitize(weights), mx.float32, "reference")
    projection = nn.Linear(20, DIM)
    projection.weight, projection.bias = base["enc_to_dec_proj.weight"], base["enc_to_dec_proj.bias"]
    projection.freeze()
    places = add_lora(lm, lm_places(LAYERS, 4 * channels, True), lora)
    network = TrainedNetwork(lm, projection)
    for place in places:
        layer = layer_at(lm, place)
        for part in ("a", "b"):
            values = [
                array(lora_parameter(wrapped, module, part)) for module in adapted_modules(place, layer)
            ]
            layer[f"lora_{part}"] = mx.stack(values)
    network.train()
    return network, places


def layer_at(lm: LM, place: LayerModules) -> LoRALinear:
    layer: Any = lm
    for part in place.path.split("."):
        layer = layer[int(part)] if isinstance(layer, list) else layer[part]
    return layer


def adapted_modules(place: LayerModules, layer: LoRALinear) -> list[str]:
    return [module for module, wanted in zip(place.modules, layer.adapted, strict=True) if wanted]


def lora_parameter(wrapped: Any, module: str, part: str) -> torch.nn.Parameter:
    return wrapped.get_submodule(f"base_model.model.{module}").get_parameter(
        f"lora_{part.upper()}.default.weight"
    )


def reference_loss(wrapped: Any, codes: Sequence[np.ndarray], texts: Sequence[np.ndarray]) -> torch.Tensor:
    # As the dreambooth trainer makes them: delayed, and cut where the frames end.
    labels = np.full((len(codes), max(row.shape[1] for row in codes), len(codes[0])), -100)
    for row, one in enumerate(codes):
        for k, code in enumerate(one):
            delay = k // (len(one) // 4)
            labels[row, delay : len(code), k] = code[: len(code) - delay]
    tokens = max(map(len, texts))
    hidden = np.zeros((len(texts), tokens, 20), np.float32)
    mask = np.zeros((len(texts), tokens), np.int64)
    for row, text in enumerate(texts):
        hidden[row, : len(text)], mask[row, : len(text)] = text, 1
    return wrapped(
        encoder_outputs=(torch.from_numpy(hidden),),
        attention_mask=torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
    ).loss


def example(channels: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(channels)
    codes = [rng.integers(0, CARD, (4 * channels, frames)) for frames in (17, 12)]
    return codes, [rng.normal(size=(length, 20)).astype(np.float32) for length in (5, 3)]


def assert_equal_gradients(
    gradients: dict, network: nn.Module, places: Sequence[LayerModules], wrapped: torch.nn.Module
) -> None:
    """Those of A and B at all `places` in `network` are all that peft trains, and equal its."""
    own = dict(tree_flatten(gradients))
    compared = 0
    for place in places:
        layer = layer_at(network, place)
        for part in ("a", "b"):
            parts = np.array(own[f"{place.path}.lora_{part}"])
            for index, module in enumerate(adapted_modules(place, layer)):
                theirs = lora_parameter(wrapped, module, part).grad.numpy()
                np.testing.assert_allclose(parts[index], theirs, rtol=1e-3, atol=1e-5 * abs(theirs).max())
                compared += 1
    assert compared == sum(p.requires_grad for p in wrapped.parameters())


TARGETS = [
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    ("k_proj", "fc1", *(f"lm_heads.{k}" for k in range(4))),
]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients(channels: int, targets: tuple[str, ...], checkpointing: bool) -> None:
    lora = LoRAConfig(rank=3, alpha=5.0, dropout=0.0, targets=targets)
    model = reference(channels)
    wrapped = adapted(model, lora)
    network, places = ours(wrapped, lora, channels)
    network._checkpointing = checkpointing
    codes, texts = example(channels)
    expected = reference_loss(wrapped, codes, texts)
    expected.backward()
    batch = make_batch(codes, texts, 20)
    loss, gradients = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_equal_gradients(gradients["lm"], network.lm, places, wrapped)


def test_ten_adamw_steps() -> None:
    lora = LoRAConfig(rank=3, alpha=5.0, dropout=0.0, targets=TARGETS[1])
    wrapped = adapted(reference(1), lora)
    network, places = ours(wrapped, lora, 1)
    codes, texts = example(1)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    theirs = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    own = optim.AdamW(1e-3, betas=[0.9, 0.99], weight_decay=0.1, bias_correction=True)
    loss_and_grad = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())
    batch = make_batch(codes, texts, 20)
    for _ in range(10):
        theirs.zero_grad()
        expected = reference_loss(wrapped, codes, texts)
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        theirs.step()
        loss, gradients = loss_and_grad(batch)
        gradients, own_norm = optim.clip_grad_norm(gradients, 1.0)
        own.update(network, gradients)
        mx.eval(network.parameters(), own.state)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert own_norm.item() == pytest.approx(norm.item(), rel=1e-3)
    for place in places:
        layer = layer_at(network.lm, place)
        for part in ("a", "b"):
            for index, module in enumerate(adapted_modules(place, layer)):
                expected_values = lora_parameter(wrapped, module, part).detach().numpy()
                np.testing.assert_allclose(np.array(layer[f"lora_{part}"][index]), expected_values, atol=2e-6)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "targets", [ALL_TARGETS, ("q_proj", "lm_heads"), ("self_attn.out_proj", "fc1")], ids=str
)
def test_a_written_adapter_is_one_of_pefts(
    kind: str, targets: tuple[str, ...], tmp_path: Path, goldens: Path
) -> None:
    """With its loss, gradients and logits; of a melody model without a melody."""
    build_model(kind, seed=3).save_pretrained(tmp_path / "base")
    shutil.copy(goldens / "goldens" / "t5" / "tokenizer.json", tmp_path / "base")
    model, bundle = load_for_training(str(tmp_path / "base"))
    options = TrainingOptions(lora=LoRAConfig(rank=3, alpha=4.5, dropout=0.05, targets=targets))
    trainable = make_trainable(model, bundle, options)
    network = trainable.network
    mx.random.seed(1)
    for module in network.modules():
        if isinstance(module, LoRALinear):  # B is zero at birth
            module.lora_b = 0.3 * mx.random.normal(module.lora_b.shape)
            module.dropout.eval()
    write_weights(tmp_path, trainable, options)

    theirs = build_model(kind, seed=3)
    special = theirs.config.decoder.vocab_size
    for config in (theirs.config, theirs.config.decoder):
        config.decoder_start_token_id = config.pad_token_id = config.bos_token_id = special
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True).eval()
    rng = np.random.default_rng(2)
    channels = theirs.config.decoder.audio_channels
    codes = [rng.integers(0, special, (4 * channels, 23)) for _ in range(2)]
    labels = np.full((2, 23, 4 * channels), -100)
    for row, one in enumerate(codes):
        for k, code in enumerate(one):
            labels[row, k // channels :, k] = code[: 23 - k // channels]
    # Texts of one length: theirs attends to a melody model's padding.
    ids = model.text_conditioner.token_ids([SHORT_PROMPT])[0]
    expected = wrapped(
        input_ids=torch.tensor([ids, ids]),
        attention_mask=torch.ones(2, len(ids), dtype=torch.long),
        labels=torch.from_numpy(labels),
    )
    expected.loss.backward()

    text = np.array(model.text_conditioner.unprojected_states(ids))
    batch = make_batch(codes, [text, text], text.shape[1])
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    loss, gradients = nn.value_and_grad(network, lambda batch: network.losses(batch).mean())(batch)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert_equal_gradients(gradients, network, trainable.places, wrapped)
    inputs, _ = shift_codes(batch.codes, network.lm.config.delays, special)
    logits = np.array(network(inputs, network.conditions(batch)))
    theirs_logits = expected.logits.unflatten(0, (2, -1))[:, :, -23:].detach().numpy()
    np.testing.assert_allclose(logits, theirs_logits, atol=1e-5 * abs(theirs_logits).max(), rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_written_adapter_is_merged_as_peft_applies_it(kind: str, tmp_path: Path, goldens: Path) -> None:
    tokenizer = goldens / "goldens" / "t5" / "tokenizer.json"
    build_model(kind, seed=4).save_pretrained(tmp_path / "base")
    shutil.copy(tokenizer, tmp_path / "base")
    options = TrainingOptions(lora=LoRAConfig(rank=2, alpha=3, targets=ALL_TARGETS))
    trainable = make_trainable(*load_for_training(str(tmp_path / "base")), options)
    mx.random.seed(1)
    for module in trainable.network.modules():
        if isinstance(module, LoRALinear):
            module.lora_b = 0.3 * mx.random.normal(module.lora_b.shape)
    (tmp_path / "adapter").mkdir()
    write_weights(tmp_path / "adapter", trainable, options)
    theirs = build_model(kind, seed=4)
    pair = Pair(theirs, tmp_path / "base", tokenizer)
    peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    pair.ours = MusicGen.get_pretrained(str(tmp_path / "base"), lora=tmp_path / "adapter")
    pair.check_logits([LONG_PROMPT, SHORT_PROMPT], 20)

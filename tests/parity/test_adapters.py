"""Equal to transformers with PEFT: adapters of every kind that is read, random, on random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import EncodecConfig, MusicgenDecoderConfig, MusicgenMelodyDecoderConfig, T5Config

from audiocraft_mlx.models.musicgen import MusicGen
from tests.audiocraft_reference import write_audiocraft_release

from .pair import LONG_PROMPT, SHORT_PROMPT, DecoderConfig, Pair, build

MODELS = ("mono", "stereo", "melody")
# As transformers' training script for MusicGen has it (MusicGen Dreamboothing).
TARGETS = [
    *("enc_to_dec_proj", "audio_enc_to_dec_proj", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    *(f"lm_heads.{k}" for k in range(8)),
    *(f"embed_tokens.{k}" for k in range(8)),
    *("k", "v", "q", "o", "wi", "wo"),
]
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "everything": {"target_modules": TARGETS, "r": 8},
    "rslora": {"target_modules": TARGETS, "use_rslora": True},
    "dora": {"target_modules": TARGETS, "use_dora": True},
    "dora and rslora": {"target_modules": ["fc1", "q_proj"], "use_dora": True, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "out_proj", "fc1", "fc2", "wi"],
        "rank_pattern": {"fc1": 2, r"layers\.\d+\.fc2": 3, "^text_encoder.encoder.block.0.layer.1.*wi": 5},
        "alpha_pattern": {r".*self_attn\.(q|out)_proj": 3.5, "layers.1.fc1": 16, "fc1": 2},
        "use_rslora": True,
    },
    "regex": {"target_modules": r".*decoder\.layers\.[01]\.(self_attn\.k_proj|fc1)"},
    "all linear": {"target_modules": r"(?!audio_encoder).*(_proj|fc[12]|lm_heads\.\d|\.[qkvo]|w[io])"},
    "modules to save": {
        "target_modules": ["q_proj", "fc2"],
        "modules_to_save": [
            "lm_heads.1",
            "embed_tokens.0",
            "layer_norm",
            "enc_to_dec_proj",
            "final_layer_norm",
        ],
    },
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "biases of its layers": {"target_modules": ["q_proj", "enc_to_dec_proj"], "bias": "lora_only"},
    "text encoder": {
        "target_modules": r"text_encoder\.encoder\..*\.(embed_tokens|relative_attention_bias|[qo])"
    },
    "torch": {"target_modules": TARGETS},
    "half": {"target_modules": TARGETS},
    "gaussian": {"target_modules": ["k_proj"], "init_lora_weights": "gaussian"},
}


def decoder(kind: str) -> DecoderConfig:
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "pad_token_id": 64,
        "bos_token_id": 64,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "ffn_dim": 128,
        "num_codebooks": 8 if kind == "stereo" else 4,
        "audio_channels": 2 if kind == "stereo" else 1,
    }
    return (MusicgenMelodyDecoderConfig if kind == "melody" else MusicgenDecoderConfig)(**shape)


SECONDS = 0.9
"""Of the melody: few frames, or the text would hardly count."""


def build_model(kind: str, seed: int) -> Any:
    model = build(
        T5Config(vocab_size=32128, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        decoder(kind),
        EncodecConfig(
            sampling_rate=32000,
            hidden_size=16,
            num_filters=4,
            num_residual_layers=1,
            upsampling_ratios=[8, 5, 4, 4],
            use_causal_conv=False,
            use_conv_shortcut=False,
            codebook_size=64,
            target_bandwidths=[1.2],
        ),
        seed=seed,
    )
    if kind == "melody":
        model.config.chroma_length = 1 + int(SECONDS * 32000) // 4096
    return model


@torch.no_grad()
def randomize(model: PeftModel) -> None:
    """The matrices are zero at birth, and what is trained as a whole is the model's own."""
    for name, tensor in model.named_parameters():
        if "lora_magnitude_vector" in name:
            tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.4))
        elif "lora_" in name:
            tensor.normal_(std=0.2)
        elif "modules_to_save" in name or tensor.requires_grad:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)


def adapted_pair(kind: str, adapter: str, folder: Path, goldens: Path) -> Pair:
    """A random model with a random adapter: theirs is not merged."""
    tokenizer = goldens / "goldens" / "t5" / "tokenizer.json"
    seed = 100 * MODELS.index(kind) + list(KINDS).index(adapter)
    theirs = build_model(kind, seed)
    theirs.save_pretrained(folder / "base")
    model = get_peft_model(
        theirs, LoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.05} | KINDS[adapter])
    )
    randomize(model)
    model.eval()
    model.save_pretrained(folder / "adapter", safe_serialization=adapter != "torch")
    if adapter == "half":
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    # As PEFT reads it again: it sorts the patterns in the file, and the first one that matches counts.
    theirs = build_model(kind, seed)
    pair = Pair(theirs, folder / "base", tokenizer)
    PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    pair.ours = MusicGen.get_pretrained(str(folder / "base"), lora=folder / "adapter")
    return pair


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("adapter", list(KINDS))
def test_an_adapter_gives_the_same_codes_and_logits(
    kind: str, adapter: str, goldens: Path, tmp_path: Path
) -> None:
    pair = adapted_pair(kind, adapter, tmp_path, goldens)
    pair.check_hidden_states([SHORT_PROMPT, LONG_PROMPT])
    pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=24)
    wanted = pair.check_greedy([LONG_PROMPT], frames=12, guidance=3)
    # The adapter matters, or the comparison would mean nothing.
    pair.ours = MusicGen.get_pretrained(str(tmp_path / "base"))
    with pytest.raises(AssertionError):
        pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=24)
    assert wanted.codes.shape[2] == 12


@pytest.mark.parametrize("kind", ["mono", "melody"])
@pytest.mark.parametrize("adapter", ["everything", "dora", "patterns"])
def test_the_model_may_be_in_audiocrafts_format(
    kind: str, adapter: str, goldens: Path, tmp_path: Path
) -> None:
    pair = adapted_pair(kind, adapter, tmp_path, goldens)
    release, t5 = tmp_path / "release", tmp_path / "t5"
    write_audiocraft_release(tmp_path / "base", release, t5, str(t5), SECONDS)
    pair.ours = MusicGen.get_pretrained(str(release), lora=str(tmp_path / "adapter"))
    pair.check_hidden_states([SHORT_PROMPT, LONG_PROMPT])
    pair.check_logits([SHORT_PROMPT, LONG_PROMPT], steps=24)
    pair.check_greedy([LONG_PROMPT], frames=12, guidance=3)


def test_two_adapters_add_up(kind: str, goldens: Path, tmp_path: Path) -> None:
    theirs = build_model(kind, 7)
    theirs.save_pretrained(tmp_path / "base")
    model = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "fc1"]), "one")
    model.add_adapter("two", LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc2"]))
    randomize(model)
    model.eval()
    model.save_pretrained(tmp_path)
    model.base_model.set_adapter(["one", "two"])
    pair = Pair(theirs, tmp_path / "base", goldens / "goldens" / "t5" / "tokenizer.json")
    pair.ours = MusicGen.get_pretrained(
        str(tmp_path / "base"), lora=[str(tmp_path / "one"), (str(tmp_path / "two"), 1.0)]
    )
    pair.check_logits([SHORT_PROMPT], steps=24)
    pair.check_greedy([LONG_PROMPT], frames=12, guidance=3)


def test_a_weight_scales_an_adapter(kind: str, goldens: Path, tmp_path: Path) -> None:
    pair = adapted_pair(kind, "everything", tmp_path, goldens)
    for module in pair.theirs.modules():
        if hasattr(module, "set_scale"):
            module.scaling["default"] *= 0.4
    pair.ours = MusicGen.get_pretrained(str(tmp_path / "base"), lora=(tmp_path / "adapter", 0.4))
    pair.check_logits([SHORT_PROMPT], steps=24)

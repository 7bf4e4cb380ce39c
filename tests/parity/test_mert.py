"""MERT in its released size and layout, with random weights, equals transformers' `HubertModel`."""

from __future__ import annotations

import json
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertModel

from audiocraft_mlx.checkpoints import audiocraft
from audiocraft_mlx.ops.cpu.blas import patch_mlx_blas

from .pair import relative_error

# HubertConfig's defaults are the shape of MERT-v1-95M; these keys are in MERT's config.json in addition.
MERT = {
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    "sample_rate": 24000,
    "feature_extractor_cqt": False,
    "feature_extractor_cqt_bins": 336,
    "deepnorm": False,
    "attention_relax": -1.0,
}
# The released weights have the names that older versions of torch give to a weight norm.
OLD_NAMES = {
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv_embed.conv.weight_g",
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv_embed.conv.weight_v",
}


@torch.no_grad()
def hubert() -> HubertModel:
    """A random model in which every weight affects the output: no zeros or ones, none negligible."""
    torch.manual_seed(0)
    model = HubertModel(HubertConfig()).eval()
    for name, tensor in model.named_parameters():
        if "layer_norm.weight" in name:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
        elif name.endswith("bias"):
            tensor.normal_(std=0.1)
        elif tensor.ndim == 2:
            # Otherwise attention would make all frames nearly equal.
            gain = 2 if "q_proj" in name or "k_proj" in name else 0.5 if "v_proj" in name else 1
            tensor.normal_(std=gain * tensor.shape[1] ** -0.5)
        elif "conv_layers" in name:
            # Rows without a mean, or the mean of GELU's mostly positive outputs would dominate.
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            tensor.sub_(tensor.mean(dim=(1, 2), keepdim=True))
    # With the small initial weights the positions would be negligible.
    model.encoder.pos_conv_embed.conv.parametrizations.weight.original0.mul_(5)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    theirs, folder = hubert(), tmp_path_factory.mktemp("mert")
    (folder / "config.json").write_text(json.dumps(theirs.config.to_dict() | MERT))
    state = {OLD_NAMES.get(name, name): tensor for name, tensor in theirs.state_dict().items()}
    assert set(OLD_NAMES.values()) | {"masked_spec_embed"} <= state.keys()
    torch.save(state, folder / "pytorch_model.bin")
    patch_mlx_blas()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audiocraft, "MERT_REPO", str(folder))
        return SimpleNamespace(theirs=theirs, ours=audiocraft._load_mert())


def test_shape_of_the_release(pair: SimpleNamespace) -> None:
    config = pair.ours.config
    assert (config.dim, config.hidden_dim, config.num_layers, config.num_heads) == (768, 3072, 12, 12)
    assert config.sample_rate / config.hop_length == 75


@pytest.mark.parametrize(
    ("rows", "samples"), [(1, 48000), (2, 12345), (1, 400)], ids=["two seconds", "two rows", "one frame"]
)
def test_features(pair: SimpleNamespace, rows: int, samples: int) -> None:
    audio = torch.randn(rows, samples, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        wanted = pair.theirs(audio).last_hidden_state.numpy()
    features = pair.ours(mx.array(audio.numpy()))
    assert relative_error(features, wanted) < 1e-4
    # Frames differ, so the comparison is meaningful.
    assert wanted.shape[1] == 1 or np.abs(np.diff(wanted, axis=1)).mean() > 0.1

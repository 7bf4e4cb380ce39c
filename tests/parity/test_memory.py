"""Loading peaks near the memory of the weights, and generating again takes no more."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecModel, MusicgenDecoderConfig, T5Config, T5EncoderModel

from tests.conftest import add_to_hub_cache

from .pair import LONG_PROMPT, build, encodec_32khz, t5_base

XP_CFG = """
solver: musicgen
sample_rate: 32000
channels: 1
dataset: {segment_duration: 30}
compression_model_checkpoint: //pretrained/facebook/encodec_32khz
lm_model: transformer_lm
transformer_lm:
  {dim: DIM, num_heads: HEADS, num_layers: LAYERS, hidden_scale: 4, n_q: 4, card: 2048, activation: gelu,
   norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false, causal: true}
codebooks_pattern:
  modeling: delay
  delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}
fuser: {cross_attention_pos_emb: false, sum: [], prepend: [], cross: [description], input_interpolate: []}
conditioners:
  description:
    model: t5
    t5: {name: t5-base, finetune: false, normalize_text: false}
"""


# These run in their own processes, so that nothing else uses memory. (Their peak is not from `getrusage`,
# which starts at the peak of the parent process.)
MEASURE = """
import re, sys
import mlx.core as mx
mx.set_default_device(mx.cpu)

def measured(field):  # VmRSS: bytes in memory now; VmHWM: their maximum so far
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""

LOAD = f"""{MEASURE}
from mlx.utils import tree_flatten
from contextlib import nullcontext
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.ops.device import gpu_branch
before = measured("VmRSS")
with gpu_branch() if "gpu" in sys.argv else nullcontext():
    bundle = load(sys.argv[1])
peak = measured("VmHWM")
text = bundle.text_conditioner
networks = bundle.lm, text.t5, text.output_proj, bundle.codec
kept = sum(array.nbytes for network in networks for _, array in tree_flatten(network.parameters()))
print(peak - before, kept)
"""

GENERATE = f"""{MEASURE}
from audiocraft_mlx.models.musicgen import MusicGen
model = MusicGen.get_pretrained(sys.argv[1])
model.set_generation_params(duration=1, seed=0)
for _ in range(20):
    model.generate(sys.argv[2:])
    print(measured("VmRSS"))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc of Linux")


def run(program: str, *arguments: str) -> list[int]:
    """The numbers that a Python program prints, run in its own process."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [int(number) for number in result.stdout.split()]


@pytest.fixture
def release(
    request: pytest.FixtureRequest, tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder in the shape of a release, and a Hub cache with the repositories it names.

    The parameter is the language model's width and its number of layers: by default musicgen-small's.
    """
    torch.manual_seed(0)
    dim, layers = getattr(request, "param", (1024, 24))
    state = {
        "condition_provider.conditioners.description.output_proj.weight": (dim, 768),
        "condition_provider.conditioners.description.output_proj.bias": (dim,),
        "out_norm.weight": (dim,),
        "out_norm.bias": (dim,),
    }
    for k in range(4):
        state[f"emb.{k}.weight"] = (2049, dim)
        state[f"linears.{k}.weight"] = (2048, dim)
    for i in range(layers):
        for attention in ("self_attn", "cross_attention"):
            state[f"transformer.layers.{i}.{attention}.in_proj_weight"] = (3 * dim, dim)
            state[f"transformer.layers.{i}.{attention}.out_proj.weight"] = (dim, dim)
        state[f"transformer.layers.{i}.linear1.weight"] = (4 * dim, dim)
        state[f"transformer.layers.{i}.linear2.weight"] = (dim, 4 * dim)
        for norm in ("norm1", "norm2", "norm_cross"):
            state[f"transformer.layers.{i}.{norm}.weight"] = (dim,)
            state[f"transformer.layers.{i}.{norm}.bias"] = (dim,)
    folder = tmp_path / "small"
    folder.mkdir()
    tensors = {name: torch.randn(shape, dtype=torch.float16) for name, shape in state.items()}
    config = XP_CFG.replace("DIM", f"{dim}").replace("HEADS", f"{dim // 64}").replace("LAYERS", f"{layers}")
    torch.save({"best_state": tensors, "xp.cfg": config}, folder / "state_dict.bin")
    del tensors
    torch.save(
        {"pretrained": "facebook/encodec_32khz", "exported": True}, folder / "compression_state_dict.bin"
    )

    t5, codec = tmp_path / "t5", tmp_path / "codec"
    T5EncoderModel(t5_base()).save_pretrained(t5)
    (t5 / "tokenizer.json").symlink_to(goldens / "goldens" / "t5" / "tokenizer.json")
    EncodecModel(encodec_32khz()).save_pretrained(codec)
    add_to_hub_cache(tmp_path / "hf" / "hub", "t5-base", t5)
    add_to_hub_cache(tmp_path / "hf" / "hub", "facebook/encodec_32khz", codec)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield folder
    shutil.rmtree(tmp_path)  # some gigabytes


def test_loading_peaks_near_the_size_of_the_weights(release: Path) -> None:
    grown, kept = run(LOAD, str(release))
    assert kept > 2 * 10**9  # musicgen-small in single precision
    assert grown < 1.4 * kept


@pytest.mark.parametrize("release", [(2048, 24)], indirect=True)
def test_loading_a_large_model_in_half_precision_peaks_near_what_is_kept(release: Path) -> None:
    """In musicgen-large's width, with half of its layers: what loading takes beside them is constant."""
    for device in ("cpu", "gpu"):
        grown, kept = run(LOAD, str(release), device)
        sys.stdout.write(f"{device}: {grown / kept:.3f} times {kept / 1e9:.2f} GB\n")
        assert grown < 1.15 * kept


def test_generating_again_takes_no_more_memory(goldens: Path, tmp_path: Path) -> None:
    build(
        T5Config(vocab_size=32128, d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16),
        MusicgenDecoderConfig(
            vocab_size=512,
            pad_token_id=512,
            bos_token_id=512,
            hidden_size=256,
            ffn_dim=1024,
            num_attention_heads=8,
            num_hidden_layers=6,
        ),
        encodec_32khz(hidden_size=64, num_filters=8, codebook_size=512, target_bandwidths=[1.8]),
        seed=0,
    ).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(goldens / "goldens" / "t5" / "tokenizer.json")
    sizes = run(GENERATE, str(tmp_path), LONG_PROMPT)
    assert len(sizes) == 20
    assert np.max(sizes[3:]) < 1.02 * sizes[2]

"""What a model loses by fewer bits: next-code distributions against float32, and the codec's sound.

    python benchmarks/quantization.py           # Markdown, as in docs/QUANTIZATION.md
    python benchmarks/quantization.py --json

The demo model reads held-out music (`tests/demo_codes.npz`), the tiny random models of the goldens read
random codes. Everything runs on the CPU, where float32 is float32.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from audiocraft_mlx.checkpoints.bundle import ModelBundle
from audiocraft_mlx.checkpoints.load import load, read
from audiocraft_mlx.checkpoints.quantization import BITS, GROUP_SIZES, enable_int8_activations, quantize
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.encodec import Encodec
from audiocraft_mlx.networks.weights import dtype_name, parameters
from audiocraft_mlx.ops.cpu import extension

TESTS = Path(__file__).parent.parent / "tests"
FOLLOWED_BY = 25
"""Frames that each random sequence has."""


@dataclass(frozen=True)
class Case:
    """A model, and what it reads while its predictions are compared."""

    name: str
    model: str
    codes: np.ndarray
    """`[B, K, T]`."""
    captions: list[str]


@dataclass(frozen=True)
class Loss:
    """A model's next-code distributions against float32, over all frames and codebooks."""

    model: str
    what: str
    """That is different: the weights (bits, group), or what is calculated with them."""
    share: float
    """Of the language model's linear weights, those whose layers can be divided into such groups."""
    bits_per_weight: float
    """Of these, with their scales and biases."""
    kl_mean: float
    """Nats."""
    kl_p99: float
    same_first: float
    """How often the likeliest code is the same."""


@dataclass(frozen=True)
class CodecLoss:
    """The codec with its weights stored in another type, against float32; it always computes in float32."""

    model: str
    stored: str
    snr: float
    """Of the decoded audio, dB."""
    same_codes: float
    """Of that audio encoded again."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What a model loses by fewer bits.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as folder:
        cases = [demo(), *goldens(Path(folder))]
        losses = [found for case in cases for found in language_model_losses(case)]
        codecs = [found for case in cases for found in codec_losses(case)]
    if arguments.json:
        print_stdout(
            json.dumps({"lm": list(map(asdict, losses)), "codec": list(map(asdict, codecs))}, indent=2)
        )
        return
    print_stdout("| model | what | quantized | bits per weight | KL mean | KL 99 % | same first |")
    print_stdout("|---|---|---|---|---|---|---|")
    for found in losses:
        print_stdout(
            f"| {found.model} | {found.what} | {found.share:.0%}"
            f" | {found.bits_per_weight:.2f} | {found.kl_mean:.2g} | {found.kl_p99:.2g}"
            f" | {found.same_first:.2%} |"
        )
    print_stdout("\n| codec of | stored as | SNR | same codes |\n|---|---|---|---|")
    for codec in codecs:
        print_stdout(f"| {codec.model} | {codec.stored} | {codec.snr:.1f} dB | {codec.same_codes:.2%} |")


def demo() -> Case:
    with np.load(TESTS / "demo_codes.npz") as file:
        return Case("demo", "demo", file["codes"].astype(np.int32), [str(text) for text in file["captions"]])


def goldens(folder: Path) -> Iterator[Case]:
    with lzma.open(TESTS / "goldens.tar.xz") as stream, tarfile.open(fileobj=stream) as tar:
        tar.extractall(folder, filter="data")
    for kind in ("mono", "stereo"):
        model = folder / "goldens_hf" / kind
        (model / "tokenizer.json").symlink_to(folder / "goldens" / "t5" / "tokenizer.json")
        config = load(str(model)).lm.config
        shape = (16, config.num_codebooks, FOLLOWED_BY)
        codes = np.random.default_rng(0).integers(0, config.cardinality, shape, dtype=np.int32)
        captions = [f"music number {number}" for number in range(len(codes))]
        yield Case(f"tiny random {kind}", str(model), codes, captions)


def language_model_losses(case: Case) -> Iterator[Loss]:
    reference = log_probabilities(load(case.model), case)
    for bits in BITS:
        for group_size in GROUP_SIZES:
            checkpoint = read(case.model)
            try:
                quantize(checkpoint, bits, group_size)
            except UsageError:
                continue  # no layer of so small a model can be divided into such groups
            checkpoint.materialize()
            yield loss(case, f"{bits} bits, group {group_size}", checkpoint, reference)
            if group_size == extension.GROUP_SIZE and extension.cpu_extension() is not None:
                enable_int8_activations(checkpoint.lm)
                yield loss(case, f"{bits} bits, group {group_size}, --fast", checkpoint, reference)
    checkpoint = load(case.model)
    checkpoint.lm.cache_bits = 8
    yield loss(case, "float32, --cache-bits 8", checkpoint, reference)


def loss(case: Case, what: str, checkpoint: ModelBundle, reference: np.ndarray) -> Loss:
    left, stored = linear_sizes(checkpoint.lm)
    total = linear_sizes(read(case.model).lm)[0]
    found = log_probabilities(checkpoint, case)
    divergence = (np.exp(reference) * (reference - found)).sum(axis=-1)
    return Loss(
        model=case.name,
        what=what,
        share=1 - left / total,
        bits_per_weight=8 * stored / (total - left) if left < total else 32,
        kl_mean=float(divergence.mean()),
        kl_p99=float(np.quantile(divergence, 0.99)),
        same_first=float((reference.argmax(axis=-1) == found.argmax(axis=-1)).mean()),
    )


def linear_sizes(network: nn.Module) -> tuple[int, int]:
    """Weights in linear layers that aren't quantized, and bytes of those that are."""
    plain = quantized = 0
    for layer in network.modules():
        if isinstance(layer, nn.QuantizedLinear):
            quantized += layer.weight.nbytes + layer.scales.nbytes + layer.biases.nbytes
        elif isinstance(layer, nn.Linear):
            plain += layer.weight.size
    return plain, quantized


def log_probabilities(checkpoint: ModelBundle, case: Case) -> np.ndarray:
    """Of each next code, float64 `[B * K * T, card]`, with the music so far given (teacher forcing)."""
    lm = checkpoint.lm
    frames = case.codes.shape[2]
    pattern = DelayPattern(lm.config.delays, frames)
    sequence = pattern.build(mx.array(case.codes), lm.special_token_id)
    conditions = checkpoint.text_conditioner.encode(case.captions)
    logits = np.array(lm(sequence[:, :, :-1], lm.start(conditions, pattern.steps - 1)), np.float64)
    logits = np.stack(
        [logits[:, k, delay : delay + frames] for k, delay in enumerate(lm.config.delays)], axis=1
    )
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits.reshape(-1, logits.shape[-1])


def codec_losses(case: Case) -> Iterator[CodecLoss]:
    reference = load(case.model).mono_codec
    codes = mx.array(case.codes[:4, : reference.num_codebooks])
    audio = reference.decode(codes)
    again = np.array(reference.encode(audio))
    for dtype in (mx.float16, mx.bfloat16):
        codec = load(case.model).mono_codec
        store(codec, dtype)
        noise = codec.decode(codes) - audio
        yield CodecLoss(
            model=case.name,
            stored=dtype_name(dtype),
            snr=10 * float(np.log10(mx.square(audio).sum().item() / mx.square(noise).sum().item())),
            same_codes=float((np.array(codec.encode(audio)) == again).mean()),
        )


def store(codec: Encodec, dtype: mx.Dtype) -> None:
    """Round the weights as a file of that type would."""
    codec.load_weights(
        [(name, weight.astype(dtype).astype(mx.float32)) for name, weight in parameters(codec).items()]
    )


if __name__ == "__main__":
    main()

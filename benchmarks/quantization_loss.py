"""What quantization costs: next-code distributions against float32, and the codec with weights in 16 bits.

    python benchmarks/quantization_loss.py           # Markdown, as in docs/QUANTIZATION.md
    python benchmarks/quantization_loss.py --json

The demo model's inputs are held-out music (`tests/demo_codes.npz`), those of the goldens' tiny random models
are random codes. Everything runs on the CPU, which computes float32 in full precision.
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
from audiocraft_mlx.checkpoints.load import load
from audiocraft_mlx.checkpoints.quantization import enable_int8_activations, quantize
from audiocraft_mlx.checkpoints.quantization_config import BITS, GROUP_SIZES
from audiocraft_mlx.cli.common import print_stdout
from audiocraft_mlx.decoding.pattern import DelayPattern
from audiocraft_mlx.decoding.step import LMDecoder
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.encodec import Encodec
from audiocraft_mlx.networks.weights import dtype_name, flat_parameters
from audiocraft_mlx.ops.cpu.extension import cpu_extension
from audiocraft_mlx.ops.cpu.tiled_linear import TiledLinear
from audiocraft_mlx.ops.cpu.tiled_quantized_linear import GROUP_SIZE, TiledQuantizedLinear

TESTS = Path(__file__).parent.parent / "tests"
RANDOM_FRAMES = 25
"""Length of each random sequence."""


@dataclass(frozen=True)
class Case:
    """A model, and the inputs for which its predictions are compared."""

    name: str
    model: str
    codes: np.ndarray
    """`[B, K, T]`."""
    captions: list[str]


@dataclass(frozen=True)
class Divergence:
    """A variant's next-code distributions against the float32 model's, over all frames and codebooks."""

    model: str
    variant: str
    """How it differs from float32: bits and group size of the weights, int8 activations, an int8 cache."""
    quantized_share: float
    """Of the LM's linear weights; a layer whose width isn't a multiple of the group size stays as it is."""
    bits_per_weight: float
    """Of the quantized weights, scales and biases included."""
    kl_mean: float
    """KL(float32 || variant) in nats."""
    kl_p99: float
    top1_agreement: float
    """Share of the predictions whose most likely code is the same."""


@dataclass(frozen=True)
class CodecError:
    """The codec with weights rounded to another type, against float32; it computes in float32."""

    model: str
    dtype: str
    """In which the weights are stored."""
    snr: float
    """Of the decoded audio, dB."""
    code_agreement: float
    """Share of equal codes when the float32 codec's audio is encoded."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What quantization costs.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    with tempfile.TemporaryDirectory() as folder:
        cases = [demo(), *goldens(Path(folder))]
        divergences = [divergence for case in cases for divergence in lm_divergences(case)]
        codec_errors = [error for case in cases for error in measure_codec(case)]
    if arguments.json:
        values = {"lm": list(map(asdict, divergences)), "codec": list(map(asdict, codec_errors))}
        print_stdout(json.dumps(values, indent=2))
        return
    print_stdout("| model | variant | quantized | bits per weight | KL mean | KL 99 % | top-1 agreement |")
    print_stdout("|---|---|---|---|---|---|---|")
    for divergence in divergences:
        print_stdout(
            f"| {divergence.model} | {divergence.variant} | {divergence.quantized_share:.0%}"
            f" | {divergence.bits_per_weight:.2f} | {divergence.kl_mean:.2g} | {divergence.kl_p99:.2g}"
            f" | {divergence.top1_agreement:.2%} |"
        )
    print_stdout("\n| codec of | stored as | SNR | code agreement |\n|---|---|---|---|")
    for error in codec_errors:
        print_stdout(f"| {error.model} | {error.dtype} | {error.snr:.1f} dB | {error.code_agreement:.2%} |")


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
        shape = (16, config.num_codebooks, RANDOM_FRAMES)
        codes = np.random.default_rng(0).integers(0, config.cardinality, shape, dtype=np.int32)
        captions = [f"music number {number}" for number in range(len(codes))]
        yield Case(f"tiny random {kind}", str(model), codes, captions)


def lm_divergences(case: Case) -> Iterator[Divergence]:
    reference = log_probabilities(load(case.model), case)
    for bits in BITS:
        for group_size in GROUP_SIZES:
            bundle = load(case.model, lazy=True)
            try:
                quantize(bundle, bits, group_size)
            except UsageError:
                continue  # no layer's width in this small model is a multiple of the group size
            bundle.materialize()
            variant = f"{bits} bits, group {group_size}"
            yield measure_divergence(case, variant, bundle, reference)
            if group_size == GROUP_SIZE and cpu_extension() is not None:
                enable_int8_activations(bundle.lm)
                yield measure_divergence(case, f"{variant}, --int8-activations", bundle, reference)
    yield measure_divergence(case, "float32, --cache-bits 8", load(case.model), reference, cache_bits=8)


def measure_divergence(
    case: Case, variant: str, bundle: ModelBundle, reference: np.ndarray, cache_bits: int | None = None
) -> Divergence:
    """Compare with the `reference` log probabilities of the float32 model."""
    unquantized, quantized_bytes = linear_sizes(bundle.lm)
    total = linear_sizes(load(case.model, lazy=True).lm)[0]
    predicted = log_probabilities(bundle, case, cache_bits)
    kl = (np.exp(reference) * (reference - predicted)).sum(axis=-1)
    return Divergence(
        model=case.name,
        variant=variant,
        quantized_share=1 - unquantized / total,
        bits_per_weight=8 * quantized_bytes / (total - unquantized) if unquantized < total else 32,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1_agreement=float((reference.argmax(axis=-1) == predicted.argmax(axis=-1)).mean()),
    )


def linear_sizes(network: nn.Module) -> tuple[int, int]:
    """The number of unquantized weights of linear layers, and the bytes of the quantized ones."""
    plain = quantized = 0
    for layer in network.modules():
        if isinstance(layer, (nn.QuantizedLinear, TiledQuantizedLinear)):
            quantized += layer.weight.nbytes + layer.scales.nbytes + layer.biases.nbytes
        elif isinstance(layer, (nn.Linear, TiledLinear)):
            plain += layer.weight.size
    return plain, quantized


def log_probabilities(bundle: ModelBundle, case: Case, cache_bits: int | None = None) -> np.ndarray:
    """Of each next code, given all codes before it (teacher forcing): float64 `[B * K * T, card]`."""
    lm = bundle.lm
    frames = case.codes.shape[2]
    pattern = DelayPattern(lm.config.delays, frames)
    sequence = pattern.build_sequence(mx.array(case.codes), lm.special_token_id)
    conditions = bundle.text_conditioner.encode(case.captions)
    sequences = LMDecoder(lm, cache_bits).start(conditions, pattern.steps - 1)
    logits = np.array(sequences(sequence[:, :, :-1]), np.float64)
    logits = np.stack(
        [logits[:, k, delay : delay + frames] for k, delay in enumerate(lm.config.delays)], axis=1
    )
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits.reshape(-1, logits.shape[-1])


def measure_codec(case: Case) -> Iterator[CodecError]:
    reference = load(case.model).mono_codec
    codes = mx.array(case.codes[:4, : reference.num_codebooks])
    audio = reference.decode(codes)
    reference_codes = np.array(reference.encode(audio))
    for dtype in (mx.float16, mx.bfloat16):
        codec = load(case.model).mono_codec
        round_weights(codec, dtype)
        noise = codec.decode(codes) - audio
        yield CodecError(
            model=case.name,
            dtype=dtype_name(dtype),
            snr=10 * float(np.log10(mx.square(audio).sum().item() / mx.square(noise).sum().item())),
            code_agreement=float((np.array(codec.encode(audio)) == reference_codes).mean()),
        )


def round_weights(codec: Encodec, dtype: mx.Dtype) -> None:
    """Round the weights as storing them in `dtype` would."""
    codec.load_weights(
        [(name, weight.astype(dtype).astype(mx.float32)) for name, weight in flat_parameters(codec).items()]
    )


if __name__ == "__main__":
    main()

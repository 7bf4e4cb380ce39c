"""How far two correct computations of the same may lie apart.

Both round, in different orders. A rounding changes a value by at most the unit roundoff `u` of its
precision, relatively, and by u / sqrt(3) on average (a uniform error); the errors of the roundings between
input and output are as good as independent, so that R of them make up u * sqrt(R / 3). Two computations
differ by sqrt(2) times that. The statistic is the error's Euclidean norm over that of the exact vector: of
hundreds of values, so that it hardly scatters. What a network does to errors of its inputs (gains of norms,
the softmax, the recurrence of an LSTM) isn't in the count; `_MARGIN` stands for it, and for the largest of
some hundred such vectors. See Higham and Mary 2019, "A New Approach to Probabilistic Rounding Error
Analysis", for why it is a square root.

In single precision what counts are the sums of matrix products. The partial sums of n terms of random signs
grow as sqrt(i), so n roundings of them have as much effect as n / 2 of the result: R is half the number of
terms of all products that follow one another. In half precision a product is summed in single precision and
rounded once: R is the number of operations that follow one another.

TF32, which GPUs may multiply float32 with, rounds the factors to 11 bits: each product counts as one
operation in half precision.
"""

from __future__ import annotations

import math

from audiocraft_mlx.networks.encodec import EncodecConfig
from audiocraft_mlx.networks.lm import LMConfig
from audiocraft_mlx.networks.t5 import T5Config

SINGLE = 2.0**-24
HALF = 2.0**-11
"""Unit roundoffs; TF32's is that of half precision."""
_MARGIN = 4.0


def bound(roundings: float, unit: float) -> float:
    """The relative difference up to which two computations with so many roundings are equal."""
    return _MARGIN * unit * math.sqrt(2 * roundings / 3)


def lm_sums(config: LMConfig, positions: int) -> float:
    """Roundings of the language model in single precision, over up to `positions` positions."""
    head = config.dim // config.num_heads
    attention = config.dim + head + positions + config.dim  # queries, scores, weighted values, output
    layer = (2 if config.cross_attention else 1) * attention + config.dim + config.hidden_dim
    return (config.num_layers * layer + config.dim) / 2


def lm_operations(config: LMConfig) -> int:
    """Roundings of the language model in half precision; the operations are those of `networks/lm.py`."""
    attention = 6  # norm, queries, scores, softmax, weighted values, output with residual
    feed_forward = 4  # norm, product, GELU, product with residual
    layer = (2 if config.cross_attention else 1) * attention + feed_forward
    around = config.num_codebooks + 3  # sum of embeddings, positions, norm, heads
    return config.num_layers * layer + around


def t5_sums(config: T5Config, length: int, projected: bool) -> float:
    """Roundings of T5, and of the projection behind it, in single precision, over up to `length` tokens."""
    inner = config.num_heads * config.head_dim
    layer = config.dim + config.head_dim + length + inner + config.dim + config.hidden_dim
    return (config.num_layers * layer + (config.dim if projected else 0)) / 2


def t5_products(config: T5Config) -> int:
    """Matrix products of T5 and the projection that follow one another."""
    return 6 * config.num_layers + 1


def codec_sums(config: EncodecConfig, frames: int) -> float:
    """Roundings of the codec's decoder in single precision, as if its LSTM forgot nothing."""
    width = config.num_filters * 2 ** len(config.ratios)
    terms = config.num_codebooks + config.kernel_size * config.dimension
    terms += config.num_lstm_layers * (width + frames * width)
    for _ in config.ratios:
        terms += 2 * width  # a kernel of twice the stride: two frames in each sum
        width //= 2
        residual = config.residual_kernel_size * width + width // config.compress
        terms += config.num_residual_layers * residual
    return (terms + config.last_kernel_size * width) / 2


def codec_products(config: EncodecConfig, frames: int) -> int:
    """Matrix products of the codec's decoder that follow one another."""
    blocks = len(config.ratios) * (1 + 2 * config.num_residual_layers)
    return 2 + config.num_lstm_layers * (1 + frames) + blocks

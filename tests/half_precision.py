"""How far logits in half precision may be from those in float32."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.guidance import apply_guidance
from audiocraft_mlx.decoding.sampling import SamplingParams, filter_logits
from audiocraft_mlx.networks.lm import LMConfig

UNIT_ROUNDOFF = 2.0**-11
"""Of float16: the largest relative error of a rounding to its 11 bits."""
GUIDANCE = 3.0

# Each value that is written in float16 is off by at most UNIT_ROUNDOFF of itself, and by 1/sqrt(3) of that
# in the mean of squares (uniformly distributed). A sublayer (attention, cross-attention, feed-forward) writes
# its input's norm, the first product, what attention or GELU makes of it, the second product, and the sum
# with the residual; and the weights of its two products are rounded. (Sums inside a kernel are in float32.)
_ROUNDINGS_PER_SUBLAYER = 7
# The embeddings, their sum, that with the positions, the last norm, and the weights and results of the heads.
_OTHER_ROUNDINGS = 6


@dataclass(frozen=True)
class HalfPrecisionBound:
    """The error of logits of about `rms` that a model of the shape `config` computes in float16.

    Roundings are independent, so their squares add up. Each is relative to its own sublayer's values, which
    are at most about as large as the residual that they are added to; what a norm makes of the residual keeps
    relative errors; so none counts more than once at the output. A bound for the worst case, where all
    roundings have the same sign and all weights amplify them, would be thousands of times as large and prove
    nothing: bfloat16, with 8 times the error, has to be outside of this one.
    """

    config: LMConfig
    rms: float

    @property
    def rms_error(self) -> float:
        """Root of the mean square."""
        sublayers = self.config.num_layers * (3 if self.config.cross_attention else 2)
        roundings = _ROUNDINGS_PER_SUBLAYER * sublayers + _OTHER_ROUNDINGS
        return UNIT_ROUNDOFF * math.sqrt(roundings / 3) * self.rms

    def largest_error(self, count: int) -> float:
        """Of `count` logits: the sum of many independent roundings is nearly normally distributed."""
        return math.sqrt(2 * math.log(count)) * self.rms_error

    @property
    def divergence(self) -> float:
        """The mean KL divergence of the distributions that guidance makes.

        For a distribution p and logits that are off by d it is Var_p(d) / 2 to the second order. Guidance
        adds up both branches' errors, times its coefficient and the coefficient less 1.
        """
        return (GUIDANCE**2 + (GUIDANCE - 1) ** 2) * self.rms_error**2 / 2


@dataclass(frozen=True)
class Comparison:
    """Logits in half precision beside those in float32."""

    bound: HalfPrecisionBound
    count: int
    rms_error: float
    largest_error: float
    divergence: float
    """Mean KL divergence of the distributions that codes are drawn from, with guidance."""
    same_code: float
    """The part of the distributions whose most likely code is the same."""

    @classmethod
    def of(cls, config: LMConfig, exact: np.ndarray, half: np.ndarray) -> Comparison:
        """Both float32 `[2 * B, K, S, card]`: rows with a condition, then the same without one."""
        error = half - exact
        p, q = (_guided(logits) for logits in (exact, half))
        kept = filter_logits(mx.array(p), SamplingParams())
        p_log, q_log = (_log_softmax(np.where(np.isinf(kept), -np.inf, logits)) for logits in (p, q))
        with np.errstate(invalid="ignore"):  # of the codes that are never drawn
            terms = np.where(np.isinf(p_log), 0, np.exp(p_log) * (p_log - q_log))
        return cls(
            HalfPrecisionBound(config, float(np.sqrt((exact**2).mean()))),
            error.size,
            float(np.sqrt((error**2).mean())),
            float(np.abs(error).max()),
            float(terms.sum(axis=-1).mean()),
            float((p.argmax(axis=-1) == q.argmax(axis=-1)).mean()),
        )

    def check(self) -> None:
        """Assert that all is within the bound, and print how far."""
        sys.stdout.write(f"{self}\n")
        assert 0 < self.rms_error < self.bound.rms_error, self
        assert self.largest_error < self.bound.largest_error(self.count), self
        assert self.divergence < self.bound.divergence, self
        assert self.same_code > 0.9, self

    def __str__(self) -> str:
        bound = self.bound
        return (
            f"logits of {bound.rms:.2f} (rms): error {self.rms_error:.1e} (rms; bound {bound.rms_error:.1e}),"
            f" at most {self.largest_error:.1e} (bound {bound.largest_error(self.count):.1e}); KL divergence"
            f" {self.divergence:.1e} (bound {bound.divergence:.1e}); the same most likely code in"
            f" {100 * self.same_code:.1f} %"
        )


def _guided(logits: np.ndarray) -> np.ndarray:
    conditional, unconditional = np.split(logits, 2)
    return np.array(apply_guidance(GUIDANCE, None, mx.array(conditional), mx.array(unconditional)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))

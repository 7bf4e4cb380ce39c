"""Verdicts on what two places computed of the same. Arrays in, findings out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audiocraft_mlx.doctor.finding import Finding, Value, ok, wrong

BUG = "please report it, with all of this output"


@dataclass(frozen=True)
class Bounds:
    """Relative differences that are rounding (`rounding.py`); `tf32` where that is in use, else None."""

    exact: float
    tf32: float | None = None


def compare(expected: np.ndarray, actual: np.ndarray, bounds: Bounds, **values: Value) -> Finding:
    """Whether vectors `[..., n]` are equal within rounding: the largest relative error of any counts."""
    if actual.shape != expected.shape:
        return wrong(f"the shape is {actual.shape}, not {expected.shape}", BUG, **values)
    for array, place in ((expected, " on the CPU too"), (actual, "")):
        bad = int((~np.isfinite(array)).sum())
        if bad:
            share = f"{bad} of {array.size} values"
            return wrong(f"{share} are NaN or infinite{place}", BUG, non_finite=bad, **values)
    error = relative_error(expected, actual)
    values = {**values, "relative_error": error, "bound": bounds.exact, "tf32": False, "non_finite": 0}
    if error == 0:
        return ok("equal, bit by bit", **values)
    if error <= bounds.exact:
        return ok(f"equal within rounding: {error:.1e}, allowed {bounds.exact:.1e}", **values)
    if bounds.tf32 is not None and error <= bounds.tf32:
        values |= {"bound": bounds.tf32, "tf32": True}
        return ok(f"equal within TF32's rounding: {error:.1e}, allowed {bounds.tf32:.1e}", **values)
    allowed = bounds.exact if bounds.tf32 is None else bounds.tf32
    return wrong(f"off by {error:.1e}, allowed {allowed:.1e}", BUG, **values)


def compare_logits(expected: np.ndarray, actual: np.ndarray, bounds: Bounds) -> Finding:
    """As `compare`, of distributions `[..., card]`, whose means don't matter; with the KL divergence."""
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return compare(expected, actual, bounds)
    kl = mean_kl(expected, actual)
    finding = compare(_centered(expected), _centered(actual), bounds, mean_kl=kl)
    return Finding(
        finding.verdict, f"{finding.text}; KL divergence {kl:.1e} nats", finding.advice, finding.values
    )


def compare_greedy(
    expected: np.ndarray,
    actual: np.ndarray,
    expected_logits: np.ndarray,
    actual_logits: np.ndarray,
    delays: tuple[int, ...],
    logits_agree: bool,
) -> Finding:
    """Whether greedy codes `[K, F]` are equal, or part at a tie.

    Where two codes are as likely within rounding, either may be chosen, and what follows is another clip. The
    logits, guided, `[K, S, card]` at the steps of the delay pattern, are teacher-forced with the `expected`
    codes: up to the first difference both computations had the same input. It is a tie if the expected logits
    of the two codes differ by no more than twice the largest difference of any logit between the two
    computations, which each of the two may have; `logits_agree` is whether these are rounding.
    """
    codebooks, frames = expected.shape
    if actual.shape != expected.shape:
        return wrong(f"the shape is {actual.shape}, not {expected.shape}", BUG)
    equal = expected == actual
    share = float(equal.mean())
    if equal.all():
        return ok(f"all {codebooks} x {frames} codes are equal", agreement=share, tie=False)
    # In the order in which they were generated.
    step, k = min((frame + delays[k], k) for k, frame in np.argwhere(~equal))
    frame = step - delays[k]
    scores = expected_logits[k, step]
    gap = float(abs(scores[expected[k, frame]] - scores[actual[k, frame]]))
    largest = float(np.abs(expected_logits - actual_logits).max())
    values: dict[str, Value] = {"agreement": share, "first_step": int(step), "gap": gap}
    text = f"equal up to step {step} of {frames + max(delays)}"
    if logits_agree and gap <= 2 * largest:
        return ok(f"{text}, a tie: two logits {gap:.1e} apart", tie=True, **values)
    return wrong(f"{text}; there the logits of the two codes are {gap:.1e} apart", BUG, tie=False, **values)


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest norm of an error over that of its vector, of vectors `[..., n]`; zeros must be zeros."""
    error = np.linalg.norm(actual.astype(np.float64) - expected, axis=-1)
    size = np.linalg.norm(expected.astype(np.float64), axis=-1)
    return float(np.divide(error, size, out=np.where(error == 0, 0, np.inf), where=size > 0).max())


def mean_kl(expected: np.ndarray, actual: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence, in nats, of the distributions of logits `[..., card]`."""
    p, q = _log_softmax(expected), _log_softmax(actual)
    return float(max(0.0, (np.exp(p) * (p - q)).sum(axis=-1).mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _centered(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(axis=-1, keepdims=True)

"""Operations with gradients equal MLX's own, by MLX on a CPU and by the native extension."""

from __future__ import annotations

from collections.abc import Callable
from math import erfc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from audiocraft_mlx.checkpoints.adapter_places import lm_places
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.ops import training
from audiocraft_mlx.ops.cpu import extension
from audiocraft_mlx.ops.device import gpu_branch
from audiocraft_mlx.tuning.lora import LoRALinear, add_lora
from audiocraft_mlx.tuning.network import TrainedNetwork, make_batch
from audiocraft_mlx.tuning.options import LoRAConfig


@pytest.fixture(params=["mlx", "extension"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way is taken."""
    mx.random.seed(3)
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    monkeypatch.setattr(training, "QUERY_BLOCK", 32)
    if request.param == "mlx":
        monkeypatch.setattr(extension, "cpu_extension", lambda: None)
    elif extension.load_extension() is None:
        pytest.skip("the native extension isn't built")
    return str(request.param)


def normal(*shape: int) -> mx.array:
    return mx.random.normal(shape)


def assert_equal_gradients(
    own: Callable[..., mx.array], plain: Callable[..., mx.array], *inputs: mx.array
) -> None:
    """Values and the gradients of all inputs: within 1e-5 of the largest.

    Where all are 0, as those of scores of a single position, sums of the cotangent's size cancel out.
    """
    cotangent = normal(*plain(*inputs).shape)
    actual = [array for part in mx.vjp(own, list(inputs), [cotangent]) for array in part]
    expected = [array for part in mx.vjp(plain, list(inputs), [cotangent]) for array in part]
    for ours, theirs in zip(actual, expected, strict=True):
        largest = np.abs(np.array(theirs)).max() or np.abs(np.array(cotangent)).max()
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=0, atol=1e-5 * largest)


def heads(x: mx.array, count: int) -> mx.array:
    """A view, as of a linear layer's output: `[B, S, count * dim]` → `[B, count, S, dim]`."""
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def plain_attention(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None) -> mx.array:
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(2, 3)
    if isinstance(mask, str):
        positions = mx.arange(k.shape[2])
        mask = positions <= positions[k.shape[2] - q.shape[2] :, None]
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    out = (mx.softmax(scores, axis=-1) @ v).transpose(0, 2, 1, 3)
    return out.reshape(*out.shape[:2], -1)


def padded(batch: int, queries: int, length: int) -> mx.array:
    """As of rows with a prefix: causal, without the first keys of the later rows, but for oneself."""
    row, query, key = mx.arange(batch)[:, None, None], mx.arange(queries)[:, None], mx.arange(length)
    return (((key >= 3 * row) & (key <= query)) | (key == query))[:, None]


def cross(batch: int, queries: int, length: int) -> mx.array:
    return (mx.arange(length) < mx.array([length, 2, 1])[:batch, None])[:, None, None]


@pytest.mark.parametrize(
    ("batch", "queries", "length", "dim", "mask"),
    [
        (1, 1, 1, 2, "causal"),
        (2, 5, 5, 12, "causal"),
        (2, 77, 77, 64, "causal"),
        (1, 40, 71, 20, "causal"),
        (2, 65, 20, 64, None),
        (1, 3, 130, 33, None),
        (3, 33, 7, 24, cross),
        (2, 70, 70, 16, padded),
    ],
)
def test_attention(
    batch: int, queries: int, length: int, dim: int, mask: str | Callable[..., mx.array] | None
) -> None:
    visible = mask(batch, queries, length) if callable(mask) else mask

    def of(attention: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def compute(x: mx.array, conditions: mx.array) -> mx.array:
            k, v = mx.split(conditions, 2, axis=-1)
            return attention(heads(x, 3), heads(k, 3), heads(v, 3), visible)

        return compute

    inputs = normal(batch, queries, 3 * dim), normal(batch, length, 6 * dim)
    assert_equal_gradients(of(training.attention), of(plain_attention), *inputs)


def test_attention_is_the_same_from_run_to_run() -> None:
    q, k, v = (normal(2, 4, 130, 16) for _ in range(3))
    gradient = mx.grad(lambda q, k, v: (training.attention(q, k, v, "causal") ** 2).sum(), argnums=(0, 1, 2))
    first = [np.array(array) for array in gradient(q, k, v)]
    for again in (gradient(q, k, v) for _ in range(3)):
        assert all(np.array_equal(*pair) for pair in zip(first, map(np.array, again), strict=True))


def test_attention_keeps_no_scores_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "QUERY_BLOCK", 128)
    x = normal(1, 1024, 32)

    def six_layers(x: mx.array) -> mx.array:
        for _ in range(6):
            x = x + training.attention(heads(x, 4), heads(x, 4), heads(x, 4), "causal")
        return (x**2).sum()

    mx.eval(x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(six_layers)(x))
    assert mx.get_peak_memory() - before < 3 * (4 * 1024 * 1024 * 4)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (normal(1, 2, 40, 16) for _ in range(3))
    own = lambda q, k, v: training.attention(30 * q, k, v, "causal")  # noqa: E731
    assert_equal_gradients(own, lambda q, k, v: plain_attention(30 * q, k, v, "causal"), q, k, v)


def test_attention_on_a_gpu_is_mlx_own() -> None:
    q, k, v = (normal(1, 2, 40, 16) for _ in range(3))
    with gpu_branch():
        out = training.attention(q, k, v, "causal")
    np.testing.assert_allclose(np.array(out), np.array(plain_attention(q, k, v, "causal")), atol=1e-6)


def test_gelu() -> None:
    x = mx.concatenate([normal(700) * 3, mx.array([0.0, -0.0, 1e-20, 9.0, -9.0, 40.0, -40.0])])
    assert_equal_gradients(training.gelu, nn.gelu, x)


def test_gelu_of_negative_numbers_is_exact_relatively() -> None:
    # 1 + erf(x) would cancel.
    x = np.linspace(-5, -1, 400, dtype=np.float32)
    expected = [value * 0.5 * erfc(-value / 2**0.5) for value in x.astype(float)]
    np.testing.assert_allclose(np.array(training.gelu(mx.array(x))), expected, rtol=3e-6)


@pytest.mark.parametrize("dim", [5, 7, 33, 256])
def test_layer_norm(dim: int) -> None:
    norm = nn.LayerNorm(dim)

    def of(apply: Callable[[nn.LayerNorm, mx.array], mx.array]) -> Callable[..., mx.array]:
        def compute(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
            norm.weight, norm.bias = weight, bias
            return apply(norm, x)

        return compute

    inputs = 3 * normal(2, 5, dim) + 1, normal(dim), normal(dim)
    assert_equal_gradients(of(training.layer_norm), of(lambda norm, x: norm(x)), *inputs)


def test_cross_entropy() -> None:
    targets = mx.random.randint(0, 33, (2, 9))
    assert_equal_gradients(
        lambda logits: training.cross_entropy(logits, targets),
        lambda logits: nn.losses.cross_entropy(logits, targets),
        5 * normal(2, 9, 33),
    )


def test_cross_entropy_of_a_view() -> None:
    targets = mx.random.randint(0, 33, (9, 2))
    assert_equal_gradients(
        lambda logits: training.cross_entropy(logits.swapaxes(0, 1), targets),
        lambda logits: nn.losses.cross_entropy(logits.swapaxes(0, 1), targets),
        normal(2, 9, 33),
    )


def test_dropout() -> None:
    x, key = 1 + mx.abs(normal(300, 200)), training.random_key()
    (y,), (gradient,) = mx.vjp(lambda x: training.dropout(x, 0.25, key), [x], [mx.ones_like(x)])
    kept = np.array(y) != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.01)
    # Rows and columns, too: no pattern.
    assert kept.mean(axis=0).std() == pytest.approx((0.75 * 0.25 / 300) ** 0.5, rel=0.2)
    assert kept.mean(axis=1).std() == pytest.approx((0.75 * 0.25 / 200) ** 0.5, rel=0.2)
    np.testing.assert_allclose(np.array(y), np.where(kept, np.array(x) / 0.75, 0), rtol=1e-6)
    np.testing.assert_allclose(np.array(gradient), kept / 0.75, rtol=1e-6)
    other = np.array(training.dropout(x, 0.25, training.random_key())) != 0
    assert (kept & other).mean() == pytest.approx(0.75**2, abs=0.01)
    assert np.array_equal(np.array(training.dropout(x, 0.25, key)), np.array(y))


@pytest.mark.parametrize("adapted", [(True,), (True, True, True), (True, False, True)])
def test_lora_layer(adapted: tuple[bool, ...]) -> None:
    base = nn.Linear(10, 6 * len(adapted))
    layer = LoRALinear(base, 6, adapted, LoRAConfig(rank=2, alpha=3, dropout=0))
    layer.lora_b = normal(*layer.lora_b.shape)
    x = normal(2, 4, 10)
    expected, index = base(x), 0
    for part, wanted in enumerate(adapted):
        if wanted:
            expected[..., 6 * part : 6 * part + 6] += 1.5 * (
                x @ layer.lora_a[index].T @ layer.lora_b[index].T
            )
            index += 1
    np.testing.assert_allclose(np.array(layer(x)), np.array(expected), atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("cross_attention", [True, False])
def test_checkpointing_has_the_same_gradients(cross_attention: bool, dropout: float) -> None:
    config = LMConfig(2, 16, 24, 2, 2, 40, (0, 1), cross_attention)
    lm = LM(config)
    add_lora(lm, lm_places(2, 2, cross_attention), LoRAConfig(rank=3, dropout=dropout))
    for name, value in tree_flatten(lm.trainable_parameters()):
        lm.load_weights([(name, 0.3 * normal(*value.shape))], strict=False)
    projection = nn.Linear(20, 24)
    projection.freeze()
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, 16, (2, frames)) for frames in (41, 35)]
    texts = [rng.normal(size=(length, 20)).astype(np.float32) for length in (5, 3)]
    gradients = []
    for checkpointing in (False, True):
        network = TrainedNetwork(lm, projection, checkpointing=checkpointing)
        network.train()
        mx.random.seed(1)
        loss_and_grad = nn.value_and_grad(
            network, lambda batch, network=network: network.losses(batch).mean()
        )
        loss, own = loss_and_grad(make_batch(codes, texts, 20))
        gradients.append([loss, *(value for _, value in tree_flatten(own))])
    for plain, checkpointed in zip(*gradients, strict=True):
        largest = np.abs(np.array(plain)).max()
        np.testing.assert_allclose(np.array(checkpointed), np.array(plain), rtol=0, atol=1e-5 * largest)

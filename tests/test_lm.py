"""The code transformer as a plain network: whole sequences, gradients, adapters; and its cache as a value."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from audiocraft_mlx.decoding.step import DecoderSteps, LMDecoder
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM, LMConfig
from audiocraft_mlx.ops.linear import optimize_layout

DIM, CARD, STEPS = 32, 8, 7


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    mx.random.seed(5)


def lm_of(cross: bool = True, positions: str = "sin") -> LM:
    config = LMConfig(
        num_codebooks=2,
        cardinality=CARD,
        dim=DIM,
        num_heads=2,
        num_layers=3,
        hidden_dim=64,
        delays=(0, 1),
        cross_attention=cross,
        sinusoidal_positions=positions == "sin",
        rotary_positions=positions == "rope",
    )
    lm = LM(config).eval()
    if positions == "rope":
        lm.rotary_frequencies = mx.array([1.0 / 2**k for k in range(8)])
    return lm


def conditions_of(cross: bool, rows: int = 2, length: int = 3) -> ConditionTensors:
    tensor = mx.random.normal((rows, length, DIM))
    return ConditionTensors(cross=tensor) if cross else ConditionTensors(prefix=tensor)


def codes_of(rows: int = 2, steps: int = STEPS) -> mx.array:
    return mx.random.randint(0, CARD, (rows, 2, steps))


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as LoRA has it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.linear = linear
        self.lora_a = 0.1 * mx.random.normal((inputs, 2))
        self.lora_b = 0.1 * mx.random.normal((2, outputs))

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear(x) + (x @ self.lora_a) @ self.lora_b

    def merged(self) -> nn.Linear:
        self.linear.weight = self.linear.weight + (self.lora_a @ self.lora_b).T
        return self.linear


@pytest.mark.parametrize("positions", ["sin", "rope"])
@pytest.mark.parametrize("cross", [True, False])
def test_whole_sequences_give_what_steps_with_a_cache_give(cross: bool, positions: str) -> None:
    lm, conditions, codes = lm_of(cross, positions), conditions_of(cross), codes_of()
    whole = lm(codes, conditions)
    assert whole.shape == (2, 2, STEPS, CARD)
    state = lm.make_cache(conditions, STEPS)
    stepwise = [lm(codes[:, :, step : step + 1], cache=state) for step in range(STEPS)]
    np.testing.assert_allclose(mx.concatenate(stepwise, axis=2), whole, atol=1e-5)
    fast = LMDecoder(lm).start(conditions, STEPS)
    stepwise = [fast(codes[:, :, step : step + 1]) for step in range(STEPS)]
    np.testing.assert_allclose(mx.concatenate(stepwise, axis=2), whole, atol=1e-5)


def test_a_sequence_needs_no_conditions() -> None:
    lm, codes = lm_of(cross=False), codes_of()
    assert lm(codes).shape == (2, 2, STEPS, CARD)


def test_without_causality_each_step_attends_to_all() -> None:
    lm, conditions, codes = lm_of(), conditions_of(True), codes_of()
    other = mx.concatenate([codes[:, :, :-1], (codes[:, :, -1:] + 1) % CARD], axis=2)
    causal = mx.abs(lm(codes, conditions) - lm(other, conditions))[:, :, :-1]
    assert causal.max().item() == 0
    both = mx.abs(lm(codes, conditions, causal=False) - lm(other, conditions, causal=False))
    assert both[:, :, :-1].min(axis=(1, 2, 3)).min().item() > 0


@pytest.mark.parametrize("cross", [True, False])
def test_gradients_reach_every_weight(cross: bool) -> None:
    lm, conditions, codes = lm_of(cross).train(), conditions_of(cross), codes_of()

    def loss(lm: LM) -> mx.array:
        logits = lm(codes, conditions)
        return nn.losses.cross_entropy(logits, codes, reduction="mean")

    _, gradients = nn.value_and_grad(lm, loss)(lm)
    from mlx.utils import tree_flatten

    for name, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all().item(), name
        assert mx.abs(gradient).max().item() > 0, name


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("layer", ["qkv_proj", "out_proj", "linear1", "linear2"])
def test_a_layer_with_an_adapter_takes_the_place_of_a_linear_one(layer: str, optimized: bool) -> None:
    lm, conditions, codes = lm_of(), conditions_of(True), codes_of()
    for block in lm.layers:
        parent = block.self_attn if layer in ("qkv_proj", "out_proj") else block
        parent[layer] = Adapted(parent[layer])
    lm.eval()
    if optimized:
        optimize_layout(lm)
    steps = LMDecoder(lm).start(conditions, STEPS)
    adapted = mx.concatenate([steps(codes[:, :, step : step + 1]) for step in range(STEPS)], axis=2)
    for block in lm.layers:
        parent = block.self_attn if layer in ("qkv_proj", "out_proj") else block
        if not optimized:
            parent[layer] = parent[layer].merged()
    np.testing.assert_allclose(adapted, lm(codes, conditions), atol=1e-5)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("positions", ["sin", "rope"])
@pytest.mark.parametrize("cross", [True, False])
def test_rows_join_and_leave(cross: bool, positions: str, bits: int | None) -> None:
    """Three rows, of which one joins later and one leaves, have the logits of each alone."""
    lm = lm_of(cross, positions)
    lengths = (3, 3, 5)
    conditions = [conditions_of(cross, 1, length) for length in lengths]
    codes = codes_of(3, 12)

    def alone(row: int, steps: int) -> mx.array:
        state = lm.make_cache(conditions[row], 12, bits=bits)
        return mx.concatenate(
            [lm(codes[row : row + 1, :, t : t + 1], cache=state) for t in range(steps)], axis=2
        )

    wanted = [alone(0, 6), alone(1, 10), alone(2, 8)]
    tolerance = 1e-5 if bits is None else 1e-4
    state = lm.make_cache(conditions[0].concat_batch(conditions[1]), 12, bits=bits)
    for step in range(2):
        logits = lm(codes[:2, :, step : step + 1], cache=state)
    late = lm.make_cache(conditions[2], 12, bits=bits)
    logits = lm(codes[2:, :, :1], cache=late)
    np.testing.assert_allclose(logits, wanted[2][:, :, :1], atol=tolerance)
    state.extend(late)
    assert state.lengths == (*[2 + (0 if cross else 3)] * 2, 1 + (0 if cross else 5))
    for step in range(2, 6):
        rows = [codes[row, :, step - (row == 2)] for row in range(3)]
        logits = lm(mx.stack(rows)[:, :, None], cache=state)
        for row in range(3):
            np.testing.assert_allclose(
                logits[row, :, 0],
                wanted[row][0, :, step - (row == 2)],
                atol=tolerance,
                err_msg=str((row, step)),
            )
    state.filter([2, 1])
    for step in range(6, 9):
        logits = lm(mx.stack([codes[2, :, step - 1], codes[1, :, step]])[:, :, None], cache=state)
        np.testing.assert_allclose(logits[0, :, 0], wanted[2][0, :, step - 1], atol=tolerance)
        np.testing.assert_allclose(logits[1, :, 0], wanted[1][0, :, step], atol=tolerance)


@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("bits", [None, 8])
def test_rows_join_and_leave_a_running_decoder(cross: bool, bits: int | None) -> None:
    """The same through `DecoderSteps`, which holds what the machine has fused for the rows."""
    lm = lm_of(cross)
    decoder = LMDecoder(lm, bits)
    conditions = [conditions_of(cross, 1, length) for length in (3, 3, 5)]
    codes = codes_of(3, 12)
    wanted = []
    for row in range(3):
        alone = decoder.start(conditions[row], 12)
        wanted.append(mx.concatenate([alone(codes[row : row + 1, :, t : t + 1]) for t in range(9)], axis=2))
    tolerance = 1e-5 if bits is None else 1e-2

    def check(steps: DecoderSteps, positions: dict[int, int]) -> None:
        logits = steps(mx.stack([codes[row, :, step] for row, step in positions.items()])[:, :, None])
        for index, (row, step) in enumerate(positions.items()):
            np.testing.assert_allclose(
                logits[index, :, 0], wanted[row][0, :, step], atol=tolerance, err_msg=str((row, step))
            )

    both = decoder.start(conditions[0].concat_batch(conditions[1]), 12)
    late = decoder.start(conditions[2], 12)
    for step in range(3):
        check(both, {0: step, 1: step})
    check(late, {2: 0})
    both.state.filter([1, 0])
    check(both, {1: 3, 0: 3})
    both.state.extend(late.state)
    for step in range(4, 6):
        check(both, {1: step, 0: step, 2: step - 3})
    both.state.filter([2])
    for step in range(3, 6):
        check(both, {2: step})


@pytest.mark.parametrize("cross", [True, False])
def test_a_cache_does_not_grow_while_rows_come_and_go(cross: bool) -> None:
    lm, steps = lm_of(cross), 10
    state = lm.make_cache(conditions_of(cross, 1), steps)
    lm(codes_of(1, 6), cache=state)
    capacities = set()
    for _ in range(8):
        late = lm.make_cache(conditions_of(cross, 1), steps)
        lm(codes_of(1, 1), cache=late)
        state.extend(late)
        for _ in range(3):
            lm(codes_of(2, 1), cache=state)
        state.filter([1])  # the one that was there before has ended
        capacities.add(state.caches[0].keys_values.shape)
        lm(codes_of(1, 1), cache=state)
    assert len(capacities) == 1


def test_a_full_cache_and_caches_of_two_kinds_are_refused() -> None:
    lm = lm_of()
    full = lm.make_cache(conditions_of(True, 1), 2)
    lm(codes_of(1, 2), cache=full)
    with pytest.raises(ValueError, match="room for 2 positions"):
        lm(codes_of(1, 1), cache=full)
    with pytest.raises(ValueError, match="int8"):
        full.extend(lm.make_cache(conditions_of(True, 1), 2, bits=8))


def test_a_prefix_that_was_not_read_yet_cannot_be_joined() -> None:
    lm = lm_of(cross=False)
    first, second = (lm.make_cache(conditions_of(False, 1), STEPS) for _ in range(2))
    with pytest.raises(ValueError, match="prefixes"):
        first.extend(second)

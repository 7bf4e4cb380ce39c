"""While a Mac's GPU generates its memory is wired; elsewhere nothing is."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import pytest

from audiocraft_mlx.models.musicgen import MusicGen
from audiocraft_mlx.ops import wired_memory
from audiocraft_mlx.ops.wired_memory import with_wired_memory

RECOMMENDED, BEFORE = 1000, 7


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits that were set, the one before first."""
    limits = [BEFORE]

    def set_wired_limit(limit: int) -> int:
        limits.append(limit)
        return limits[-2]

    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    monkeypatch.setattr(wired_memory, "_recommended_working_set", lambda: RECOMMENDED)
    return limits


def test_memory_is_wired_from_the_first_chunk_to_the_last(limits: list[int]) -> None:
    chunks = with_wired_memory(iter([1, 2]))
    assert limits == [BEFORE]
    assert next(chunks) == 1
    assert limits == [BEFORE, RECOMMENDED]
    assert list(chunks) == [2]
    assert limits == [BEFORE, RECOMMENDED, BEFORE]


def test_generations_that_overlap_put_the_limit_back_after_the_last_one(limits: list[int]) -> None:
    one, other = (with_wired_memory(iter([1, 2])) for _ in range(2))
    next(one), next(other)
    assert list(one) == [2]
    assert limits == [BEFORE, RECOMMENDED]
    other.close()
    assert limits == [BEFORE, RECOMMENDED, BEFORE]


def test_an_error_puts_the_limit_back(limits: list[int]) -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(with_wired_memory(fail()))
    assert limits == [BEFORE, RECOMMENDED, BEFORE]


def test_closing_closes_what_makes_the_chunks(limits: list[int]) -> None:
    closed = []

    def chunks() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(list(limits))

    generation = with_wired_memory(chunks())
    next(generation)
    generation.close()
    # While it is closed memory is still wired.
    assert closed == [[BEFORE, RECOMMENDED]]


def test_without_metal_no_limit_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: pytest.fail("set a limit"))
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert list(with_wired_memory(iter([1]))) == [1]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_wires_memory_and_frees_what_it_cached(
    streamed: bool, limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: events.append(list(limits)))
    model = MusicGen.get_pretrained("demo")
    model.set_generation_params(duration=0.2, seed=0)
    if streamed:
        list(model.stream(["a tune"], chunk_seconds=0.1))
    else:
        model.generate(["a tune"])
    assert events == [[BEFORE, RECOMMENDED, BEFORE]]

"""How many clips fit into memory at a time, and giving memory back."""

from __future__ import annotations

import gc
from typing import Any, Protocol

import mlx.core as mx

from audiocraft_mlx.machine import memory_below_rlimits, memory_size, require_memory, trim_heap
from audiocraft_mlx.networks.lm import LM

MAX_BATCH_SIZE = 8
"""Larger batches make a step longer and are hardly faster."""
# Positions in front of the codes: a melody's frames and a text, unless it is longer.
_PREFIX = 512
# Measured: the released codec decoding a second of one channel.
_CODEC_BYTES = 208 << 20
# Measured: address space that the threads of MLX, the BLAS and the tokenizer take with the first clip.
_THREADS_BYTES = 256 << 20
# Measured: address space that isn't given back after some larger batches.
_FRAGMENTS_BYTES = 128 << 20
# The part of a card's memory, or of a Mac's that is meant for its GPU, that clips and weights may take.
_GPU_SHARE = 0.8


class _Model(Protocol):
    """What counts of a `GenModel`."""

    lm: LM

    @property
    def max_duration(self) -> float: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def audio_channels(self) -> int: ...


_granted = 0
"""Bytes that the largest batch of this process had: what it gave back the next one gets."""


def max_batch_size(
    model: _Model,
    seconds: float,
    branches: int,
    tokens: int = 0,
    running: int = 0,
    most: int = MAX_BATCH_SIZE,
    reserved: int = 0,
) -> int:
    """How many clips of `seconds` fit into memory beside the loaded model, 1 to `most`.

    Each needs the keys and values of one window and of the `tokens` of the longest prompt, for each of the
    `branches` of guidance, and the codec's activations. Generated audio waits on disk. Beside clips that are
    `running` already: 0 to `most` less these. Their memory is taken, but for the bytes `reserved`.
    """
    fitting = (available_memory() - reserved) // bytes_per_clip(model, seconds, branches, tokens)
    return max(0 if running else 1, min(most - running, fitting))


def available_memory() -> int:
    """Bytes that clips may take: half of the machine's memory or of a container's, less what arrays take.

    No more than a limit of `ulimit` leaves; on a GPU no more than is meant for it. A card with memory of its
    own counts instead of the machine's.
    """
    gpu, has_own_memory = _gpu_memory()
    limits = [] if has_own_memory else [memory_size() // 2 - mx.get_active_memory()]
    if gpu is not None:
        limits.append(int(_GPU_SHARE * gpu) - mx.get_active_memory())
    below_rlimits = memory_below_rlimits()
    if below_rlimits is not None:
        limits.append(below_rlimits - _THREADS_BYTES - _FRAGMENTS_BYTES)
    return min(limits)


def give_back_memory() -> None:
    """To the system, what nobody needs any more.

    The exception that ends a cancelled clip and the generators it went through hold each other and the clip's
    arrays, of whose size Python's collector knows nothing. What is freed MLX keeps for later, and then the C
    library.
    """
    gc.collect()
    mx.clear_cache()
    trim_heap()


def require_memory_for(size: int) -> None:
    """Raise `MemoryError` if clips, which need `size` bytes, would exceed a limit of `ulimit`."""
    global _granted
    if size > _granted:
        require_memory(_THREADS_BYTES + size)
        _granted = size


def bytes_per_clip(model: _Model, seconds: float, branches: int, tokens: int = 0) -> int:
    """The memory that a clip needs beside the weights while it is generated.

    `tokens` are those of the longest prompt of its batch.
    """
    config = model.lm.config
    positions = int(min(seconds, model.max_duration) * model.frame_rate) + max(_PREFIX, tokens)
    cache = branches * config.num_layers * 2 * config.dim * positions * model.lm.dtype.size
    return cache + model.audio_channels * _CODEC_BYTES


def _gpu_memory() -> tuple[int | None, bool]:
    """Bytes of the default device that a process should stay within, and whether they are its own.

    None on a CPU, or where MLX doesn't tell.
    """
    if mx.default_device() != mx.gpu:
        return None, False
    info: dict[str, Any] = mx.device_info()
    if "max_recommended_working_set_size" in info:
        return int(info["max_recommended_working_set_size"]), False
    total = info.get("total_memory")
    return (None, False) if total is None else (int(total), True)

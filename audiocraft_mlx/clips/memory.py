"""How many clips fit into memory at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

MAX_BATCH_SIZE = 8
"""Larger batches make a step longer and are hardly faster."""
# Positions in front of the codes: a melody's frames and a long text.
_PREFIX = 512
# Measured: the released codec decoding a second of one channel.
_CODEC_BYTES = 208 << 20


def max_batch_size(model: GenModel, seconds: float, branches: int) -> int:
    """How many clips of `seconds` fit into half of the machine's memory beside the loaded model, 1 to 8.

    Each needs the keys and values of one window, for each of the `branches` of guidance, and the codec's
    activations. Generated audio waits on disk.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = memory // 2 - mx.get_active_memory()
    return max(1, min(MAX_BATCH_SIZE, available // bytes_per_clip(model, seconds, branches)))


def bytes_per_clip(model: GenModel, seconds: float, branches: int) -> int:
    """The memory that a clip needs beside the weights while it is generated."""
    config = model.lm.config
    positions = int(min(seconds, model.max_duration) * model.frame_rate) + _PREFIX
    cache = branches * config.num_layers * 2 * config.dim * positions * model.lm.dtype.size
    return cache + model.audio_channels * _CODEC_BYTES

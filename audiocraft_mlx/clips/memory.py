"""How many clips are made at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from audiocraft_mlx.models.genmodel import GenModel

MAX_BATCH_SIZE = 8
"""More make a step longer and bring little."""
# Positions in front of the codes: a melody's frames and a long text.
_PREFIX = 512
# Measured: the released codec at work on a second of one channel.
_CODEC_BYTES = 208 << 20


def max_batch_size(model: GenModel, seconds: float, branches: int) -> int:
    """How many clips of `seconds` fit into half of the machine's memory beside what is loaded, 1 to 8.

    For each there is room for keys and values of one window, of as many `branches` as guidance has, and for
    the codec at work. Audio that is made waits on disk.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = memory // 2 - mx.get_active_memory()
    return max(1, min(MAX_BATCH_SIZE, room // bytes_per_clip(model, seconds, branches)))


def bytes_per_clip(model: GenModel, seconds: float, branches: int) -> int:
    """The memory that one clip takes beside the weights while it is made."""
    config = model.lm.config
    positions = int(min(seconds, model.max_duration) * model.frame_rate) + _PREFIX
    cache = branches * config.num_layers * 2 * config.dim * positions * model.lm.dtype.size
    return cache + model.audio_channels * _CODEC_BYTES

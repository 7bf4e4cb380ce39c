"""AudioGen: text to sounds. audiocraft's class of the same name, on MLX."""

from __future__ import annotations

from audiocraft_mlx.models.genmodel import GenModel


class AudioGen(GenModel):
    """See `GenModel`."""

    default_name = "facebook/audiogen-medium"
    default_duration = 5.0
    default_extend_stride = 2.0

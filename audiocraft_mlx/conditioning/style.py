"""Audio → an excerpt → MERT → style encoder: the style condition.

Equal to audiocraft's `StyleConditioner` (`modules/conditioners.py`), except that each audio is encoded by
itself: its excerpt is drawn from its own seed and length, where the reference draws one position for a batch;
and audio shorter than the excerpt is used whole, where the reference fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.resample import resample
from audiocraft_mlx.configs import CODEBOOKS, ConfigSection
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.validation import use_python_numbers, validate_int, validate_number

if TYPE_CHECKING:
    from audiocraft_mlx.networks.mert import MERT
    from audiocraft_mlx.networks.style_encoder import StyleEncoder

MAX_EXCERPT_SECONDS = 30.0
"""The memory of attention grows with the square of it. Training had at most 4.5 s."""
# Separates the random numbers of excerpts from those of the codes, which come from the same seeds.
_RNG_STREAM = 1


@dataclass(frozen=True)
class StyleParams:
    """How closely an audio's style is followed. Raises `UsageError` for values out of range.

    Attributes:
        eval_q: codebooks of the style's quantizer that are used: the fewer, the looser the music follows.
        excerpt_length: seconds (training had 1.5 to 4.5); shorter audio is used whole.
        ds_factor: every n-th frame becomes a token (None: as in training).
    """

    eval_q: int = 3
    excerpt_length: float = 3.0
    ds_factor: int | None = None

    def __post_init__(self) -> None:
        validate_int("eval_q", self.eval_q, "an integer of at least 1", lambda q: q >= 1)
        validate_number(
            "excerpt_length",
            self.excerpt_length,
            f"more than 0 and at most {MAX_EXCERPT_SECONDS:g} seconds",
            lambda seconds: 0 < seconds <= MAX_EXCERPT_SECONDS,
        )
        if self.ds_factor is not None:
            validate_int("ds_factor", self.ds_factor, "None or an integer of at least 1", lambda n: n >= 1)
        use_python_numbers(self, "eval_q", "excerpt_length", "ds_factor")

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> StyleParams:
        """Read `xp.cfg` of a release file. Raises `CheckpointError`."""
        style = config.section("conditioners").section("self_wav").section("style")
        try:
            return cls(eval_q=style.integer("eval_q", 3, CODEBOOKS), excerpt_length=style.number("length"))
        except UsageError as error:
            raise style.error("length", f"doesn't fit: {error}") from error


class StyleConditioner:
    """MERT and the style encoder, for audio at `sample_rate`, the rate of the model that they belong to."""

    def __init__(self, mert: MERT, encoder: StyleEncoder, sample_rate: int) -> None:
        self.mert = mert
        self.encoder = encoder
        self.sample_rate = sample_rate

    def validate_params(self, params: StyleParams) -> None:
        """Raise `UsageError` if the model has fewer codebooks than `params` use."""
        if params.eval_q > self.encoder.config.num_codebooks:
            raise UsageError(
                f"eval_q must be at most {self.encoder.config.num_codebooks}, the number of codebooks of this"
                f" model's style, not {params.eval_q}"
            )

    def encode(
        self,
        audios: Sequence[mx.array | None],
        params: StyleParams,
        seeds: Sequence[int],
        window: int = 0,
    ) -> tuple[mx.array, mx.array]:
        """Style tokens of each row's audio.

        Args:
            audios: float `[C, T]`, of any channels and length; None is no style.
            seeds: one per row. A row's excerpt is drawn from its seed and `window` alone.
            window: the index of the window of a long generation.

        Returns:
            Tokens `[B, N, dim]` and their mask bool `[B, N]`, N at least 1. Tokens are zero where the mask is
            False: in rows without style, and at the end of rows with a shorter excerpt.

        Raises:
            UsageError: an audio isn't `[C, T]` or is too short to have a style.
        """
        self.validate_params(params)
        rows = []
        for row, (audio, seed) in enumerate(zip(audios, seeds, strict=True)):
            if audio is None:
                rows.append(mx.zeros((0, self.encoder.config.output_dim)))
            else:
                rows.append(self.tokens(self._mert_excerpt(audio, row, params, seed, window), params))
        lengths = [len(row) for row in rows]
        longest = max([1, *lengths])
        padded = [mx.pad(row, [(0, longest - len(row)), (0, 0)]) for row in rows]
        return mx.stack(padded), mx.arange(longest) < mx.array(lengths)[:, None]

    def tokens(self, excerpt: mx.array, params: StyleParams) -> mx.array:
        """Tokens `[N, dim]` of an excerpt, mono float `[T]` at MERT's rate."""
        ds_factor = params.ds_factor or self.encoder.config.ds_factor
        return self.encoder(self.mert(excerpt[None]), params.eval_q, ds_factor)[0]

    def excerpt(
        self, audio: mx.array, params: StyleParams, seed: int, window: int = 0
    ) -> tuple[mx.array, int]:
        """The excerpt of `audio` float `[C, T]` that is encoded, mono float32 `[t]`, and its first sample."""
        length = int(params.excerpt_length * self.sample_rate)
        start = self.excerpt_start(audio.shape[1] - length, seed, window)
        return audio[:, start : start + length].astype(mx.float32).mean(axis=0), start

    def excerpt_start(self, last: int, seed: int, window: int) -> int:
        """The first sample of an excerpt, from 0 to `last` (0 if that is negative)."""
        if last <= 0:
            return 0
        if self.encoder.config.middle_excerpt:
            return last // 2
        sequence = np.random.SeedSequence(seed % 2**32, spawn_key=(window, _RNG_STREAM))
        return int(sequence.generate_state(1, np.uint64)[0]) % (last + 1)

    def _mert_excerpt(
        self, audio: mx.array, row: int, params: StyleParams, seed: int, window: int
    ) -> mx.array:
        """The excerpt at MERT's rate: mono float32 `[T]`."""
        if audio.ndim != 2 or audio.shape[0] < 1:
            raise UsageError(
                f"style audio {row} must be of shape [channels, samples], not {list(audio.shape)}"
            )
        excerpt, _ = self.excerpt(audio, params, seed, window)
        config = self.mert.config
        if excerpt.shape[0] * config.sample_rate // self.sample_rate < config.receptive_field:
            raise UsageError(
                f"the excerpt of style audio {row} is {excerpt.shape[0] / self.sample_rate:.3f} s long, too"
                " short to have a style; give audio and an excerpt_length of a few seconds"
            )
        return mx.array(resample(np.asarray(excerpt), self.sample_rate, config.sample_rate))

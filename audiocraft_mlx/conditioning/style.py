"""Audio → an excerpt of it → MERT → style encoder: the style condition of the code transformer.

Equal to audiocraft's `StyleConditioner` (`modules/conditioners.py`), except that each audio is heard by
itself: its excerpt is drawn from its own seed and length, where the reference draws one place for a whole
batch; and audio that is shorter than an excerpt is heard as it is, where the reference fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.resample import resample
from audiocraft_mlx.configs import ConfigSection
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.networks.mert import MERT
from audiocraft_mlx.networks.style_encoder import StyleEncoder
from audiocraft_mlx.validation import validate_int, validate_number

MAX_EXCERPT_SECONDS = 30.0
"""Seconds. Attention takes memory with the square of it, and training had at most 4.5."""
# Tells the excerpts' random numbers from those that draw the codes, which are of the same seeds.
_RNG_STREAM = 1


@dataclass(frozen=True)
class StyleParams:
    """How much of an audio's style is heard. Raises `UsageError` for values that make no sense.

    `eval_q` codebooks of the style's quantizer are used: the fewer, the looser the music follows.
    `excerpt_length` is in seconds (training had 1.5 to 4.5); of shorter audio all is heard. Every
    `ds_factor`-th frame becomes a token (None: as in training). `encodec_n_q` is there for scripts written
    for audiocraft, where it is of use to models that hear style through EnCodec; none was released.
    """

    eval_q: int = 3
    excerpt_length: float = 3.0
    ds_factor: int | None = None
    encodec_n_q: int | None = None

    def __post_init__(self) -> None:
        validate_int("eval_q", self.eval_q, "a whole number of at least 1", lambda q: q >= 1)
        validate_number(
            "excerpt_length",
            self.excerpt_length,
            f"more than 0 and at most {MAX_EXCERPT_SECONDS:g} seconds",
            lambda seconds: 0 < seconds <= MAX_EXCERPT_SECONDS,
        )
        if self.ds_factor is not None:
            validate_int(
                "ds_factor", self.ds_factor, "None or a whole number of at least 1", lambda n: n >= 1
            )
        if self.encodec_n_q is not None:
            raise UsageError(
                f"encodec_n_q is {self.encodec_n_q!r}, but style is heard through MERT, not EnCodec;"
                " leave it out"
            )

    @classmethod
    def from_audiocraft(cls, config: ConfigSection) -> StyleParams:
        """As `xp.cfg` of a release file has them. Raises `CheckpointError`."""
        style = config.section("conditioners").section("self_wav").section("style")
        try:
            return cls(eval_q=style.integer("eval_q", 3), excerpt_length=style.number("length"))
        except UsageError as error:
            raise style.error("length", f"doesn't fit: {error}") from error


class StyleConditioner:
    """MERT and the style encoder, for audio at the rate of the model that they belong to."""

    def __init__(self, mert: MERT, encoder: StyleEncoder, sample_rate: int) -> None:
        self.mert = mert
        self.encoder = encoder
        self.sample_rate = sample_rate

    def validate_params(self, params: StyleParams) -> None:
        """Raises `UsageError` if the model hasn't what `params` ask for."""
        if params.eval_q > self.encoder.config.num_codebooks:
            raise UsageError(
                f"eval_q must be at most {self.encoder.config.num_codebooks}, which is how many codebooks"
                f" the style of this model has, not {params.eval_q}"
            )

    def encode(
        self,
        audios: Sequence[mx.array | None],
        params: StyleParams,
        seeds: Sequence[int],
        window: int = 0,
    ) -> tuple[mx.array, mx.array]:
        """What stands in front of the codes, for each of `audios`: tokens `[B, N, dim]`, mask bool `[B, N]`.

        An audio is float `[C, T]`, of any channels and length; None is no style. Tokens are zero where the
        mask is False: all of a row without style, and what a row with a shorter excerpt lacks. Without any
        style there is a single token. The excerpt of row r is drawn from `seeds[r]` and `window`
        (which tells the windows of a long generation apart) alone.
        Raises `UsageError` for audio that isn't `[C, T]` or too short to have a style.
        """
        self.validate_params(params)
        rows = [
            None
            if audio is None
            else self.tokens(self._excerpt(audio, row, params, seeds[row], window), params)
            for row, audio in enumerate(audios)
        ]
        lengths = [0 if row is None else row.shape[0] for row in rows]
        longest = max([1, *lengths])
        nothing = mx.zeros((0, self.encoder.config.output_dim))
        padded = [
            mx.pad(nothing if row is None else row, [(0, longest - length), (0, 0)])
            for row, length in zip(rows, lengths, strict=True)
        ]
        return mx.stack(padded), mx.arange(longest) < mx.array(lengths)[:, None]

    def tokens(self, excerpt: mx.array, params: StyleParams) -> mx.array:
        """Tokens `[N, dim]` of a whole excerpt, mono float `[T]` at MERT's rate."""
        ds_factor = params.ds_factor or self.encoder.config.ds_factor
        return self.encoder(self.mert(excerpt[None]), params.eval_q, ds_factor)[0]

    def excerpt(
        self, audio: mx.array, params: StyleParams, seed: int, window: int = 0
    ) -> tuple[mx.array, int]:
        """What is heard of `audio` float `[C, T]`, mono float32 `[t]`, and its first sample's place there."""
        length = int(params.excerpt_length * self.sample_rate)
        start = self.excerpt_start(audio.shape[1] - length, seed, window)
        return audio[:, start : start + length].astype(mx.float32).mean(axis=0), start

    def _excerpt(self, audio: mx.array, row: int, params: StyleParams, seed: int, window: int) -> mx.array:
        """Mono float32 `[T]` at MERT's rate."""
        if audio.ndim != 2 or audio.shape[0] < 1:
            raise UsageError(
                f"style audio {row} must be of shape [channels, samples], not {list(audio.shape)}"
            )
        excerpt, _ = self.excerpt(audio, params, seed, window)
        config = self.mert.config
        if excerpt.shape[0] * config.sample_rate // self.sample_rate < config.receptive_field:
            raise UsageError(
                f"the excerpt of style audio {row} is {excerpt.shape[0] / self.sample_rate:.3f} s long, too"
                " short to have a style; give it audio and an excerpt_length of a few seconds"
            )
        return resample(excerpt, self.sample_rate, config.sample_rate)

    def excerpt_start(self, room: int, seed: int, window: int) -> int:
        """The first sample of an excerpt that can begin at any of `room + 1` samples."""
        if room <= 0:
            return 0
        if self.encoder.config.middle_excerpt:
            return room // 2
        sequence = np.random.SeedSequence(seed % 2**32, spawn_key=(window, _RNG_STREAM))
        return int(sequence.generate_state(1, np.uint64)[0]) % (room + 1)

"""MAGNeT: text to music or sounds by filling masks. audiocraft's class of the same name, on MLX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat

import mlx.core as mx
import numpy as np

from audiocraft_mlx.audio.loop import Loop, fill_join
from audiocraft_mlx.audio.splice import replace_part
from audiocraft_mlx.decoding.frames import OnStep
from audiocraft_mlx.decoding.masked import MaskedParams, generate_masked
from audiocraft_mlx.decoding.params import GenerationParams, params_of_rows
from audiocraft_mlx.decoding.step import LMStep, alone
from audiocraft_mlx.decoding.stream import in_chunks
from audiocraft_mlx.decoding.windows import Window, first_frame, infill_region, plan_windows
from audiocraft_mlx.errors import UsageError
from audiocraft_mlx.models.genmodel import (
    AudioArray,
    Decoded,
    GenerationInputs,
    GenerationOutput,
    GenModel,
    Infill,
    clips_of,
    decode_chunks,
)
from audiocraft_mlx.models.holes import Hole, hole_frames
from audiocraft_mlx.models.loop_join import closing_seed, join_hole, seen_frames
from audiocraft_mlx.networks.encodec import CHUNK_FRAMES
from audiocraft_mlx.ops.device import require_mlx_threads
from audiocraft_mlx.validation import validate_decoding_steps, validate_number


class MAGNeT(GenModel):
    """See `GenModel`. All codes of a clip are made at once, so a stream begins when all is done.

    Attributes:
        masked: see `set_generation_params`.
    """

    default_name = "facebook/magnet-small-10secs"
    default_duration = math.inf
    fills_masks = True
    masked: MaskedParams

    def set_generation_params(  # type: ignore[override]  # other parameters, as in audiocraft
        self,
        use_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        max_cfg_coef: float | None = None,
        min_cfg_coef: float | None = None,
        decoding_steps: Sequence[int] | None = None,
        span_arrangement: str | None = None,
        duration: float | None = None,
        extend_stride: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Set the default parameters of the generations to come; those that run already keep theirs.

        What is left out takes the model's own default: that of `generate.lm` in its release's configuration,
        else audiocraft's.

        Args:
            use_sampling: draw the codes, or (False) take the most likely ones.
            top_k: draw from the `top_k` most likely codes; 0 from all. Default 0.
            top_p: if > 0, draw from the most likely codes that together have this probability; `top_k` is
                not used then. Default 0.9.
            temperature: in a codebook's first iteration; it falls to about 0 in the last one. 0 is greedy.
                Default 3.
            max_cfg_coef: how strongly the conditions guide where all is masked. Default 10.
            min_cfg_coef: the same at the end. Default 1.
            decoding_steps: iterations of each codebook. Default 20, 10, 10, 10.
            span_arrangement: `nonoverlap`: three frames side by side are masked together, and a clip has a
                multiple of three frames (10 s: 9.96 s); `stride1`: those three begin at any frame.
            duration: seconds. Default: `max_duration`, 10 or 30 for the released models.
            extend_stride: beyond `max_duration`, seconds by which each window moves on; see `MusicGen`.
            seed: of the first row; row i has `seed + i`. Default: a new one for each generation.

        Raises:
            UsageError: a value is out of its range.
        """
        params = self.make_params(
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            max_cfg_coef=max_cfg_coef,
            min_cfg_coef=min_cfg_coef,
            decoding_steps=decoding_steps,
            span_arrangement=span_arrangement,
            duration=duration,
            extend_stride=extend_stride,
        )
        self._set_defaults(params, seed)

    def make_params(  # type: ignore[override]
        self,
        *,
        use_sampling: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        max_cfg_coef: float | None = None,
        min_cfg_coef: float | None = None,
        decoding_steps: Sequence[int] | None = None,
        span_arrangement: str | None = None,
        duration: float | None = None,
        extend_stride: float | None = None,
        cfg_coef: None = None,
        cfg_coef_beta: None = None,
    ) -> GenerationParams:
        """The parameters of a row for `generate_stream`; see `set_generation_params`, which has the same.

        `cfg_coef` and `cfg_coef_beta`, which other models have, are refused.
        """
        if cfg_coef is not None or cfg_coef_beta is not None:
            name = "cfg_coef_beta" if cfg_coef is None else "cfg_coef"
            raise UsageError(f"{name}: a MAGNeT has max_cfg_coef and min_cfg_coef instead")
        own = self._bundle.masked or MaskedParams()
        masked = MaskedParams(
            max_cfg_coef=own.max_cfg_coef if max_cfg_coef is None else max_cfg_coef,
            min_cfg_coef=own.min_cfg_coef if min_cfg_coef is None else min_cfg_coef,
            decoding_steps=own.decoding_steps
            if decoding_steps is None
            else validate_decoding_steps(decoding_steps),
            span_arrangement=own.span_arrangement if span_arrangement is None else span_arrangement,
        )
        masked.require_codebooks(self.lm.config.num_codebooks)
        params = super().make_params(
            use_sampling=use_sampling,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            duration=duration,
            extend_stride=extend_stride,
        )
        least = self.lm.config.span_len / self.frame_rate
        limited = {"duration": params.duration, "max_duration": params.max_duration}
        if params.duration > params.max_duration:
            limited["extend_stride"] = params.extend_stride
        for name, seconds in limited.items():
            validate_number(name, seconds, f"at least one span, {least:g} s", lambda s: s >= least - 1e-9)
        return replace(params, masked=masked)

    def _set_defaults(self, params: GenerationParams, seed: int | None) -> None:
        super()._set_defaults(params, seed)
        assert params.masked is not None
        self.masked = params.masked

    @property
    def params(self) -> GenerationParams:
        """The default parameters, as `set_generation_params` left them."""
        return replace(super().params, masked=self.masked)

    def generate_infill(  # type: ignore[override]  # as `prepare_infill` below
        self,
        audio: AudioArray,
        sample_rate: int,
        holes: Sequence[Hole],
        descriptions: Sequence[str | None] | None = None,
        progress: bool = False,
        return_tokens: bool = False,
    ) -> GenerationOutput:
        """Fill `holes` in `audio`, float `[batch, channels, samples]` or `[channels, samples]`.

        The model sees what is on both sides, up to its trained length in all.

        Args:
            sample_rate: samples per second of `audio`.
            holes: from which second to which; the same in all clips.
            descriptions: one text for each clip, None is none at all.

        Returns:
            Audio float32 `[batch, channels, samples]` at the model's rate, outside of the holes as it was
            given (resampled); with `return_tokens` also the codes int32 of the part that the model saw,
            `[batch, codebooks, frames]`.

        Raises:
            UsageError: also for holes outside of the audio, or that leave nothing of it.
        """
        clips = clips_of(audio, "the audio")
        texts = [None] * len(clips) if descriptions is None else descriptions
        inputs = self.prepare_infill(texts, self._seeds(texts), clips, sample_rate, holes, self.params)
        assert inputs.infill is not None
        new, codes = self._generate(inputs, progress, return_tokens=True)
        sources, index_of_row = self._prepare_clips(clips, sample_rate, len(texts), "clip")
        new_start = min(first_frame(start, self.frame_rate) for start, _ in holes) / self.frame_rate
        rows = []
        for source, row in zip(np.array(sources)[index_of_row], np.array(new), strict=True):
            for start, end in holes:
                source = replace_part(
                    source, self.sample_rate, start, end, row, self.sample_rate, new_start, self.sample_rate
                )
            rows.append(source)
        whole = mx.array(np.stack(rows))
        return (whole, codes) if return_tokens else whole

    def prepare_infill(  # type: ignore[override]  # it sees both sides, so there is nothing to choose
        self,
        descriptions: Sequence[str | None],
        seeds: Sequence[int],
        audio: Sequence[AudioArray],
        sample_rate: int,
        holes: Sequence[Hole],
        params: GenerationParams,
    ) -> GenerationInputs:
        """What `generate_stream` fills holes from: it yields the audio from the first hole to the last.

        `audio` has float `[channels, samples]` for each row, all of one length; `params` are those of the
        generation, whose `duration` doesn't count. See `generate_infill` for the rest.
        """
        inputs = self.prepare_inputs(descriptions, seeds)
        clips, index_of_row = self._prepare_clips(audio, sample_rate, len(descriptions), "clip")
        hop = round(self.sample_rate / self.frame_rate)
        frames = -(-clips.shape[2] // hop)
        part_frames = hole_frames(holes, clips.shape[2] / self.sample_rate, frames, self.frame_rate)
        first, last = min(start for start, _ in part_frames), max(end for _, end in part_frames)
        # Where the holes and a frame on either side aren't in view at once, windows must be possible.
        longest, stride = self._window_frames(params, min(frames, last - first + 2))
        region = infill_region(frames, part_frames, longest, stride)
        part = clips[:, :, region[0] * hop : region[1] * hop]
        codes = self.compression_model.encode(part)[mx.array(index_of_row)]
        # Whole spans: what is beyond the clip's end is filled, too, and dropped.
        assert params.masked is not None
        size = -(-codes.shape[2] // self._unit(params)) * self._unit(params)
        known = np.zeros(size, bool)
        known[: codes.shape[2]] = True
        for start, end in part_frames:
            known[start - region[0] : end - region[0]] = False
        if not known.any():
            raise UsageError("the holes leave nothing of the clip; generate a new one instead")
        codes = mx.pad(codes, [(0, 0), (0, 0), (0, size - codes.shape[2])])
        mx.eval(codes)  # another thread may use it
        return replace(inputs, infill=Infill(codes, known, first - region[0], last - region[0]))

    def closing_steps(self, samples: int, params: GenerationParams) -> int:
        """See `GenModel.closing_steps`. 0 for a loop too short to have a hole."""
        assert params.masked is not None
        return sum(params.masked.decoding_steps) if self._seen_frames(samples, params) else 0

    def close_loop(
        self,
        loop: Loop,
        description: str | None,
        seed: int,
        params: GenerationParams,
        on_step: OnStep | None = None,
    ) -> Loop:
        """`loop` with a hole over its join, filled with both sides in view; see `GenModel.close_loop`.

        All samples outside of the hole stay as they are, and where it is too short for one, all of it. So it
        does if the filled hole's edges would stand out, and more so than the join that is there.
        """
        hop = round(self.sample_rate / self.frame_rate)
        seen = self._seen_frames(loop.audio.shape[1], params)
        if not seen:
            return loop
        hole = join_hole(loop, self.sample_rate, hop, seen, self.lm.config.span_len)
        part = hole.before / self.frame_rate, (hole.before + hole.frames) / self.frame_rate
        view, seeds = hole.view(loop.audio), [closing_seed(seed)]
        inputs = self.prepare_infill([description], seeds, [view], self.sample_rate, [part], params)
        chunks = [np.asarray(chunk)[0] for chunk in self.generate_stream(inputs, params, on_step=on_step)]
        filled = fill_join(loop, self.sample_rate, hole.start, np.concatenate(chunks, axis=1))
        return filled if filled.measure.score <= max(1.0, loop.measure.score) else loop

    def _seen_frames(self, samples: int, params: GenerationParams) -> int:
        hop = round(self.sample_rate / self.frame_rate)
        longest = self._frames(params, params.max_duration)
        return seen_frames(samples, hop, longest, self.lm.config.span_len)

    def _unit(self, params: GenerationParams) -> int:
        """Clips have a multiple of this many frames."""
        assert params.masked is not None
        return self.lm.config.span_len if params.masked.span_arrangement == "nonoverlap" else 1

    def _frames(self, params: GenerationParams, seconds: float) -> int:
        unit = self._unit(params)
        return super()._frames(params, seconds) // unit * unit

    def _plan(self, inputs: GenerationInputs, rows: Sequence[GenerationParams]) -> list[Window]:
        if any(inputs.sections) or inputs.negative is not None:
            raise UsageError("a MAGNeT can't use sections or negative prompts: it fills masks; omit them")
        if inputs.infill is None:
            return super()._plan(inputs, rows)
        frames = len(inputs.infill.known)
        return plan_windows(frames, *self._window_frames(rows[0], frames))

    def _decode(
        self,
        inputs: GenerationInputs,
        params: GenerationParams | Sequence[GenerationParams],
        chunk_frames: Iterator[int],
        without_prompt: bool = False,
        on_step: OnStep | None = None,
    ) -> Iterator[Decoded | LMStep]:
        infill = inputs.infill
        if infill is None:
            yield from super()._decode(inputs, params, chunk_frames, without_prompt, on_step)
            return
        require_mlx_threads()
        rows = params_of_rows(params, len(inputs.descriptions))
        codes = self._fill(inputs, rows, self._plan(inputs, rows), on_step)
        decoder, position = self.compression_model.make_decoder_stream(), 0
        hop = round(self.sample_rate / self.frame_rate)
        chunks = in_chunks(codes, repeat(CHUNK_FRAMES))
        for chunk, audio in alone(decode_chunks(decoder, chunks, codes.shape[2])):
            if audio is None:
                continue
            start, end = (max(0, frame * hop - position) for frame in (infill.start, infill.end))
            position += audio.shape[2]
            wanted = audio[:, :, start:end]
            mx.eval(wanted)  # else it keeps the whole array in memory
            yield chunk, wanted if wanted.size else None

    def _code_frames(
        self,
        inputs: GenerationInputs,
        params: Sequence[GenerationParams],
        windows: Sequence[Window],
        chunk_frames: Iterator[int],
        on_step: OnStep | None,
    ) -> Iterator[mx.array | LMStep]:
        codes = self._fill(inputs, params, windows, on_step)
        return in_chunks(codes[:, :, inputs.prompt_frames :], chunk_frames)

    def _fill(
        self,
        inputs: GenerationInputs,
        params: Sequence[GenerationParams],
        windows: Sequence[Window],
        on_step: OnStep | None,
    ) -> mx.array:
        """All codes int32 `[B, K, F]`, those that are given included."""
        frames = windows[-1].start + windows[-1].frames
        if inputs.infill is not None:
            codes, known = inputs.infill.codes, inputs.infill.known
        else:
            known = np.zeros(frames, bool)
            known[: inputs.prompt_frames] = True
            shape = (len(params), self.lm.config.num_codebooks, frames - inputs.prompt_frames)
            codes = mx.zeros(shape, mx.int32)
            if inputs.prompt is not None:
                codes = mx.concatenate([inputs.prompt, codes], axis=2)
        # One by one: a text's hidden states are then the same to the last bit, whatever is beside it.
        texts = {text: self.text_conditioner.encode([text]) for text in dict.fromkeys(inputs.descriptions)}
        return generate_masked(
            self.lm,
            [texts[text] for text in inputs.descriptions],
            windows,
            codes,
            known,
            [row.sampling for row in params],
            [row.masked for row in params if row.masked is not None],
            inputs.seeds,
            on_step,
        )

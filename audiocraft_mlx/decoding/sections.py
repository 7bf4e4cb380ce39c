"""Texts that change while a sequence grows.

A text is read by the cross-attention alone. So at the step that predicts a section's first frame its keys and
values take the place of the text's before, and the self-attention's cache stays. Where two texts cross-fade,
the row is continued under both: its cache is copied where the fade begins, and the copy dropped at its end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from audiocraft_mlx.decoding.step import DecoderSteps, LMStep, last_logits
from audiocraft_mlx.networks.condition_tensors import ConditionTensors
from audiocraft_mlx.networks.lm import LM


@dataclass(frozen=True)
class TextChange:
    """From `frame` on a row has another text, one of a table; over `fade` frames the logits cross-fade."""

    frame: int
    text: int
    fade: int = 0


@dataclass(frozen=True)
class SectionConditions:
    """Conditions of a batch whose rows have texts that change.

    Attributes:
        texts: float `[U, C, dim]`, for cross-attention: every text once.
        lengths: the tokens of each text, of the C; 0 for no text, which is zeros that all can be attended to.
        first: the text of each row at the beginning.
        unconditional: what guidance leads away from, a text for each row.
        changes: of each row, in order. A frame below 0 is before the sequence's beginning.
    """

    texts: mx.array
    lengths: tuple[int, ...]
    first: tuple[int, ...]
    unconditional: tuple[int, ...]
    changes: tuple[tuple[TextChange, ...], ...]

    @property
    def batch(self) -> int:
        return len(self.first)

    def at_beginning(self) -> ConditionTensors:
        conditions = self._of_rows(self.first)
        unconditional = self._of_rows(self.unconditional)
        return ConditionTensors(conditions.cross, conditions.cross_mask, unconditional=unconditional)

    def window(self, start: int, frames: int) -> SectionConditions:
        """Those of the `frames` frames from frame `start` on, counted from there."""
        first, changes = list(self.first), []
        for row, of_row in enumerate(self.changes):
            left = [TextChange(c.frame - start, c.text, c.fade) for c in of_row if c.frame < start + frames]
            while left and left[0].frame <= 0 and left[0].frame + left[0].fade <= 0:
                first[row] = left.pop(0).text
            changes.append(tuple(left))
        return SectionConditions(self.texts, self.lengths, tuple(first), self.unconditional, tuple(changes))

    def mask(self, texts: Sequence[int]) -> tuple[int, mx.array | None]:
        """The tokens of the longest of `texts`, and which are its own, bool `[N, longest]`; None: all."""
        lengths = np.array([self.lengths[text] for text in texts])
        longest = max(1, int(lengths.max()))
        own = (np.arange(longest) < lengths[:, None]) | (lengths[:, None] == 0)
        return longest, None if own.all() else mx.array(own)

    def _of_rows(self, texts: Sequence[int]) -> ConditionTensors:
        longest, mask = self.mask(texts)
        return ConditionTensors(self.texts[mx.array([*texts])][:, :longest], mask)


@dataclass(frozen=True)
class _Fade:
    """A row's branch under the text before, until the cross-fade to the new one is over."""

    row: int
    text: int
    start: int
    """The step that its first frame is predicted from; may be before the sequence's beginning."""
    steps: int

    @property
    def end(self) -> int:
        return self.start + self.steps

    def weight(self, step: int) -> float:
        """Of the new text, in what is predicted from `step`."""
        return (step - self.start + 0.5) / self.steps


class SectionedSteps:
    """The steps of rows whose texts change: `steps` is advanced, and its rows' cross-attention changed.

    `steps` has a row for each of the conditions, then perhaps one for each of `unconditional`, and at last
    one for each row that cross-fades.
    """

    def __init__(self, lm: LM, conditions: SectionConditions, steps: DecoderSteps) -> None:
        self._steps = steps
        self._conditions = conditions
        # Projected once, so that no later step is longer for it.
        self._cross_kv = lm.project_cross_attention(conditions.texts)
        mx.eval(self._cross_kv)
        batched = steps.state.batch > conditions.batch
        self._texts = [*conditions.first, *(conditions.unconditional if batched else ())]
        self._fades: list[_Fade] = []
        self._position = 0
        # The step that a frame's first codes are predicted from: see `DelayPattern.first_step`.
        delay = min(lm.config.delays)
        changes = [
            (change.frame + delay, row, change)
            for row, of_row in enumerate(conditions.changes)
            for change in of_row
        ]
        self._changes = sorted(changes, key=lambda change: change[0])
        self._borders = {max(0, step) for step, _, _ in changes}
        self._borders |= {max(0, step + change.fade) for step, _, change in changes}

    def __call__(
        self, codes: mx.array, others: Sequence[tuple[DecoderSteps, mx.array]]
    ) -> Generator[LMStep, None, list[mx.array]]:
        """Logits float32 `[N, K, card]` of the step after the next steps `codes` `[B, K, S]`.

        The rows are the conditions' and those of `unconditional`. Then the logits of `others`, which take
        their steps along with the last ones.
        """
        end = self._position + codes.shape[2]
        for part in self._parts(codes):
            step = LMStep((self._steps, self._for_all_rows(part)), *(others if self._position == end else ()))
            yield step
        logits, *of_others = map(last_logits, step.logits)
        if self._fades:
            # Guidance is linear: to fade what it begins with is to fade what it makes of it.
            before, logits = logits[len(self._texts) :], logits[: len(self._texts)]
            fading = mx.array([fade.row for fade in self._fades])
            weights = mx.array([fade.weight(self._position - 1) for fade in self._fades])[:, None, None]
            logits[fading] = before + (logits[fading] - before) * weights
        return [logits, *of_others]

    def _parts(self, codes: mx.array) -> Iterator[mx.array]:
        """`codes` between the borders, each after what changes there."""
        start, end = self._position, self._position + codes.shape[2]
        if self._position in self._borders:
            self._change()
        for border in sorted({end, *(border for border in self._borders if start < border < end)}):
            part = codes[:, :, self._position - start : border - start]
            self._position = border
            yield part
            if border < end:
                self._change()

    def _for_all_rows(self, codes: mx.array) -> mx.array:
        copies = [codes] * (len(self._texts) // self._conditions.batch)
        if self._fades:
            copies.append(codes[mx.array([fade.row for fade in self._fades])])
        return copies[0] if len(copies) == 1 else mx.concatenate(copies)

    def _change(self) -> None:
        """What happens at this step: texts change, cross-fades begin and end."""
        rows = len(self._texts)
        kept = [(rows + i, fade) for i, fade in enumerate(self._fades) if fade.end > self._position]
        while self._changes and max(0, self._changes[0][0]) == self._position:
            step, row, change = self._changes.pop(0)
            if change.fade:
                kept.append((row, _Fade(row, self._texts[row], step, change.fade)))
            self._texts[row] = change.text
        order = [*range(rows), *(index for index, _ in kept)]
        state = self._steps.state
        if order != list(range(state.batch)):
            state.filter(order)
        self._fades = [fade for _, fade in kept]
        texts = [*self._texts, *(fade.text for fade in self._fades)]
        longest, mask = self._conditions.mask(texts)
        index = mx.array(texts)
        state.cross_kv = [
            (mx.contiguous(keys[index][:, :, :longest]), mx.contiguous(values[index][:, :, :longest]))
            for keys, values in self._cross_kv
        ]
        state.cross_mask = None if mask is None else mask[:, None, None, :]
        mx.eval(state.cross_kv, state.cross_mask)

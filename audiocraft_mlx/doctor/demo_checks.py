"""The demo model at the tested place against the CPU's own way."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from audiocraft_mlx.doctor import rounding
from audiocraft_mlx.doctor.comparison import Bounds, compare, compare_greedy, compare_logits
from audiocraft_mlx.doctor.demo import CPU, FRAMES, PROMPTS, DemoModel, Place
from audiocraft_mlx.doctor.finding import Finding, Verdict


class DemoChecks:
    """Each method is one check. Inputs are always the reference's, so that a fault shows where it is."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._reference = DemoModel(CPU)
        self._models = {half: DemoModel(place, half) for half in (False, True)}
        self._logits: dict[bool, np.ndarray] = {}
        self._greedy: dict[bool, np.ndarray] = {}

    def text_encoder(self) -> Finding:
        """T5's hidden states, with the projection."""
        # A batch, and a prompt alone: a CPU multiplies with few rows and with many in different ways.
        expected, actual = (
            np.concatenate([model.hidden_states(*PROMPTS), model.hidden_states(PROMPTS[-1])])
            for model in (self._reference, self._models[False])
        )
        conditioner = self._reference.bundle.text_conditioner
        config, projected = conditioner.t5.config, conditioner.output_proj is not None
        sums = rounding.t5_sums(config, len(expected), projected)
        return compare(expected, actual, self._bounds(sums, rounding.t5_products(config)))

    def logits(self, half: bool) -> Finding:
        """Teacher-forced with the reference's greedy codes, with and without the prompt."""
        config = self._reference.bundle.lm.config
        operations = rounding.lm_operations(config)
        if half:
            bounds = Bounds(rounding.bound(operations, rounding.HALF))
        else:
            bounds = self._bounds(rounding.lm_sums(config, FRAMES), operations)
        return compare_logits(self._expected_logits, self._actual_logits(half), bounds)

    def greedy(self, half: bool) -> Finding:
        """A whole greedy generation, with guidance."""
        model = self._models[half]
        actual = model.greedy_codes(self._prompt)
        return compare_greedy(
            self._codes,
            actual,
            self._guided(self._expected_logits),
            self._guided(self._actual_logits(half)),
            self._reference.bundle.lm.config.delays,
            logits_agree=self.logits(half).verdict is Verdict.OK,
        )

    def codec(self) -> Finding:
        """The audio of the reference's greedy codes."""
        expected = self._reference.decode(self._codes)
        actual = self._models[False].decode(self._codes)
        config = self._reference.bundle.mono_codec.config
        bounds = self._bounds(rounding.codec_sums(config, FRAMES), rounding.codec_products(config, FRAMES))
        return compare(expected, actual, bounds)

    def _bounds(self, sums: float, products: int) -> Bounds:
        tf32 = rounding.bound(products, rounding.HALF) if self._place.tf32 else None
        return Bounds(rounding.bound(sums, rounding.SINGLE), tf32)

    @cached_property
    def _prompt(self) -> np.ndarray:
        """A prompt's hidden states."""
        return self._reference.hidden_states(PROMPTS[0])

    @cached_property
    def _codes(self) -> np.ndarray:
        return self._reference.greedy_codes(self._prompt)

    @cached_property
    def _expected_logits(self) -> np.ndarray:
        return self._reference.logits(self._codes, self._prompt)

    def _actual_logits(self, half: bool) -> np.ndarray:
        if half not in self._logits:
            self._logits[half] = self._models[half].logits(self._codes, self._prompt)
        return self._logits[half]

    def _guided(self, logits: np.ndarray) -> np.ndarray:
        conditional, unconditional = logits
        return unconditional + self._reference.bundle.guidance.coef * (conditional - unconditional)

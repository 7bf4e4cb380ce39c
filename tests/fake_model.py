"""A stand-in for the model, for tests of what is around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import audiocraft_mlx

MODULES = {"MusicGen": "audiocraft_mlx.models.musicgen", "AudioGen": "audiocraft_mlx.models.audiogen"}


@dataclass(frozen=True)
class FakeParams:
    """Stands in for `GenerationParams`: what `make_params` was called with."""

    options: dict[str, Any]

    @property
    def duration(self) -> float:
        return self.options["duration"]

    @property
    def batch_key(self) -> tuple[object, ...]:
        return (self.duration, self.options["cfg_coef_beta"] is None)


@dataclass(frozen=True)
class FakeInputs:
    """Stands in for `GenerationInputs`."""

    descriptions: Sequence[str | None]
    prompt_samples: int


class FakeModel:
    """Stands in for the model: records what it is called with, and generates a ramp, in three chunks.

    Attributes:
        load_options: what it was loaded with; empty if it wasn't.
        params: of each row that was generated, in order.
        prompts, seeds: of each row; `batches` has how many there were at a time.
        condition_inputs: the audio that the last batch was given.
        before, during: called before the first and the last chunk.
    """

    sample_rate = 32000
    frame_rate = 50
    audio_channels = 2
    max_duration = 30.0
    audio_conditioner: Any = None
    style_params: Any = None
    fills_masks = False
    lm = SimpleNamespace(config=SimpleNamespace(num_layers=2, dim=8), dtype=SimpleNamespace(size=4))

    def __init__(self) -> None:
        self.load_options: dict[str, Any] = {}
        self.params: list[dict[str, Any]] = []
        self.prompts: list[str | None] = []
        self.seeds: list[int] = []
        self.batches: list[int] = []
        self.condition_inputs: dict[str, Any] = {}
        self.condition_types = frozenset({"text"})
        self.peak = 0.5
        self.before: Callable[[], None] = lambda: None
        self.during: Callable[[], None] = lambda: None
        self.closed = 0

    @property
    def loaded(self) -> bool:
        return bool(self.load_options)

    @property
    def frames(self) -> int:
        """Of the last row, with its prompt."""
        return int(self.params[-1]["duration"] * self.frame_rate)

    def get_pretrained(self, name: str, **options: object) -> FakeModel:
        self.load_options = {"name": name, **options}
        return self

    def max_condition_duration(self, duration: float) -> float:
        return max(duration, self.max_duration) + 60.0

    def make_params(self, **options: Any) -> FakeParams:
        if int(options["duration"] * self.frame_rate) < 1:
            raise audiocraft_mlx.UsageError("duration must be at least one frame")
        return FakeParams(options)

    def count_tokens(self, prompt: str) -> int:
        return len(prompt)

    def clip_frames(self, params: FakeParams) -> int:
        return int(params.duration * self.frame_rate)

    def closing_steps(self, samples: int, params: FakeParams) -> int:
        return 0

    def close_loop(self, loop: Any, *given: object) -> Any:
        return loop

    def prepare_inputs(
        self,
        descriptions: Sequence[str | None],
        seeds: Sequence[int],
        *,
        prompt: Sequence[np.ndarray] | None = None,
        duration: float | None = None,
        **conditions: Any,
    ) -> FakeInputs:
        assert len(descriptions) == len(seeds)
        self.prompts += descriptions
        self.seeds += seeds
        self.batches.append(len(seeds))
        self.condition_inputs = conditions if prompt is None else {"prompt": prompt, **conditions}
        return FakeInputs(descriptions, 0 if prompt is None else -(-prompt[0].shape[1] // 640) * 640)

    def stream_steps(
        self,
        inputs: FakeInputs,
        params: Sequence[FakeParams],
        *,
        chunk_seconds: float,
        first_chunk_seconds: float | None,
        on_step: Callable[[int, int], None],
        on_codes: Callable[[Any], None],
    ) -> Iterator[np.ndarray]:
        assert len(params) == len(inputs.descriptions)
        self.params += [row.options for row in params]
        samples = int(params[0].duration * self.frame_rate) * 640 - inputs.prompt_samples
        ramp = np.linspace(-self.peak, self.peak, samples, dtype=np.float32)
        audio = np.stack([np.stack([ramp, -ramp])[: self.audio_channels]] * len(params))
        try:
            self.before()
            for step, chunk in enumerate(np.array_split(audio, 3, axis=2)):
                on_step(step + 1, 3)
                if step == 2:
                    self.during()
                yield chunk
        finally:
            self.closed += 1


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> FakeModel:
    """Have the commands find this model, whichever they ask for, and work in `folder`."""
    monkeypatch.chdir(folder)
    model = FakeModel()
    for name, path in MODULES.items():
        module = ModuleType(path)
        setattr(module, name, model)
        monkeypatch.setitem(sys.modules, path, module)
    return model


def raiser(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail

"""A stand-in for the model, for tests of what the command does around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import audiocraft_mlx

MODULES = {"MusicGen": "audiocraft_mlx.models.musicgen", "AudioGen": "audiocraft_mlx.models.audiogen"}


class FakeModel:
    """Stands in for the model: records what it is asked for, and answers with a ramp, in three pieces."""

    sample_rate = 32000
    frame_rate = 50
    audio_channels = 2
    max_duration = 30.0
    max_condition_duration = 90.0
    lm = SimpleNamespace(config=SimpleNamespace(num_layers=2, dim=8), dtype=SimpleNamespace(size=4))

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.prompts: list[str | None] = []
        self.heard: dict[str, Any] = {}
        self.seeds: list[int] = []
        self.condition_types = frozenset({"text"})
        self.peak = 0.5
        self.during: Callable[[], None] = lambda: None
        self.frames = 0

    def get_pretrained(self, name: str, **options: object) -> FakeModel:
        self.asked.update(name=name, **options)
        return self

    def set_generation_params(self, **parameters: Any) -> None:
        self.asked.update(parameters)
        self.frames = int(parameters["duration"] * self.frame_rate)
        if not self.frames:
            raise audiocraft_mlx.UsageError("duration must be at least one frame")

    def set_custom_progress_callback(self, callback: Callable[[int, int], None]) -> None:
        self.callback = callback

    def stream(
        self, prompts: list[str | None], chunk_seconds: float, prompt: np.ndarray | None = None, **heard: Any
    ) -> Iterator[np.ndarray]:
        self.prompts += prompts
        self.seeds.append(self.asked["seed"])
        self.heard = heard if prompt is None else {"prompt": prompt, **heard}
        samples = self.frames * 640 - (0 if prompt is None else -(-prompt.shape[2] // 640) * 640)
        ramp = np.linspace(-self.peak, self.peak, samples, dtype=np.float32)
        audio = np.stack([np.stack([ramp, -ramp])[: self.audio_channels]] * len(prompts))
        for step, piece in enumerate(np.array_split(audio, 3, axis=2)):
            self.callback(step + 1, 3)
            if step == 2:
                self.during()
            yield piece


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

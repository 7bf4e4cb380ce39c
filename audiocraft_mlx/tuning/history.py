"""The losses of a training so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from audiocraft_mlx.tuning.loop import Evaluation, Step


@dataclass
class History:
    """All steps and evaluations, in their order."""

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, event: Step | Evaluation) -> None:
        if isinstance(event, Step):
            self.steps.append(event)
        else:
            self.evaluations.append(event)

    def has_evaluation(self, step: int) -> bool:
        return bool(self.evaluations) and self.evaluations[-1].step == step

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [
                [each.step, each.loss, each.grad_norm, each.learning_rate, each.seconds]
                for each in self.steps
            ],
            "evaluations": [[each.step, list(each.losses)] for each in self.evaluations],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> History:
        """Raises `KeyError`, `TypeError` or `ValueError` for something else."""
        return cls(
            [Step(int(step), *map(float, rest)) for step, *rest in value["steps"]],
            [Evaluation(int(step), tuple(map(float, losses))) for step, losses in value["evaluations"]],
        )

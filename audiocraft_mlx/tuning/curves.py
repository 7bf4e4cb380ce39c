"""`curves.png`: the losses of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from audiocraft_mlx.audio.plot import drawing, require_matplotlib, save_figure
from audiocraft_mlx.files import write_file
from audiocraft_mlx.tuning.history import History

_SIZE, _DPI = (10.0, 4.2), 110
# Steps whose mean a point of the smooth curve is, of all steps.
_SMOOTH = 40


def save_curves(path: Path, history: History, title: str) -> None:
    """Draw the loss of each step and of the validation, and that of each codebook.

    Raises:
        UsageError: matplotlib is not installed.
        OutputError: the file can't be written.
    """
    require_matplotlib()
    with drawing():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        losses, codebooks = figure.subplots(1, 2)
        figure.suptitle(title, parse_math=False)
        _draw_losses(losses, history)
        _draw_codebooks(codebooks, history)
        write_file(path, lambda file: save_figure(figure, file))


def _draw_losses(panel: Any, history: History) -> None:
    steps = np.array([each.step for each in history.steps])
    losses = np.array([each.loss for each in history.steps])
    add = panel.plot
    add(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="a step's batch")
    width = max(1, len(losses) // _SMOOTH)
    if width > 1:
        means = np.convolve(losses, np.ones(width) / width, "valid")
        add(steps[width - 1 :], means, color="tab:blue", label=f"mean of {width} steps")
    if history.evaluations:
        add(
            [each.step for each in history.evaluations],
            [each.loss for each in history.evaluations],
            color="tab:orange",
            marker="o",
            markersize=3,
            label="validation",
        )
    _finish(panel, "loss")


def _draw_codebooks(panel: Any, history: History) -> None:
    steps = [each.step for each in history.evaluations]
    for k, losses in enumerate(zip(*(each.losses for each in history.evaluations), strict=True)):
        panel.plot(steps, losses, marker="o", markersize=3, label=f"codebook {k + 1}")
    _finish(panel, "validation loss of each codebook")


def _finish(panel: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set(xlabel="step", ylabel=label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()

"""The findings as text and as JSON, without anything that names their user."""

from __future__ import annotations

import os
import re
import textwrap
from typing import Any

from audiocraft_mlx.doctor.finding import Verdict
from audiocraft_mlx.doctor.privacy import redact
from audiocraft_mlx.doctor.suite import DEMO, DOWNLOADS, MACHINE, PROGRAM, SPEED, Report, Result
from audiocraft_mlx.version import __version__

WIDTH = 79
_VERDICT = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.WRONG: "WRONG"}
_INDENT = 26
# Settings that change what is computed or downloaded.
_VARIABLES = re.compile(r"(MUSICGEN_MLX|MLX|OPENBLAS|OMP|CUDA|HF_HUB)_\w+|HF_(HOME|ENDPOINT)|\w+_PROXY", re.I)
_SECRET = re.compile(r"TOKEN|PROXY|KEY|SECRET", re.I)


def title() -> str:
    return f"musicgen-mlx-doctor {__version__}: is everything right on this machine? Half a minute."


def heading(section: str, gpu_branch: bool) -> str:
    """The line above a section."""
    tested = "the GPU's branch, forced on the CPU," if gpu_branch else "the GPU"
    return {
        MACHINE: "Machine",
        PROGRAM: "Program",
        DOWNLOADS: "Downloads",
        DEMO: f"Demo model: {tested} against the CPU's own way",
        SPEED: "Speed of the language model, on the default device",
    }[section]


def line(result: Result) -> str:
    """One finding: verdict, name and text, wrapped, and below it what to do."""
    finding = result.finding
    head = f"  {_VERDICT[finding.verdict]:9}{result.name:15}"
    wrapper = textwrap.TextWrapper(
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * _INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )
    lines = wrapper.wrap(redact(finding.text))
    if finding.advice:
        wrapper.initial_indent = " " * (_INDENT - 3) + "-> "
        lines += wrapper.wrap(redact(finding.advice))
    return "\n".join(lines)


def summary(report: Report) -> str:
    """The verdict on everything, in a line."""
    wrong, warnings = report.count(Verdict.WRONG), report.count(Verdict.WARNING)
    text = f"{wrong} of {len(report.results)} checks went wrong" if wrong else "Nothing is wrong"
    if not wrong and not warnings:
        text = "Everything is right"
    if warnings:
        text += f"; {warnings} warning{'' if warnings == 1 else 's'}"
    seconds = sum(result.seconds for result in report.results)
    return f"{text} ({seconds:.0f} s)."


def bug_report(report: Report) -> str:
    """A block of Markdown to paste into a bug report."""
    rows = [f"musicgen-mlx-doctor {__version__}: {summary(report)}"]
    if report.gpu_branch:
        rows.append("No GPU: the demo model ran in the GPU's branch, forced on the CPU.")
    section = None
    for result in report.results:
        if result.section != section:
            section = result.section
            rows.append(f"[{section}]")
        verdict = result.finding.verdict
        mark = "" if verdict is Verdict.OK else f"{_VERDICT[verdict]}: "
        rows.append(f"{result.name}: {mark}{result.finding.text}")
    if report.settings:
        rows += ["[environment]", *(f"{name}={value}" for name, value in report.settings.items())]
    # A fence inside would end it.
    return "```text\n" + redact("\n".join(rows)).replace("```", "'''") + "\n```"


def as_json(report: Report) -> dict[str, Any]:
    """Everything, for other programs; docs/DOCTOR.md describes it."""
    return {
        "version": __version__,
        "verdict": report.verdict.value,
        "gpu_branch": report.gpu_branch,
        "seconds": round(sum(result.seconds for result in report.results), 2),
        "environment": {name: redact(value) for name, value in report.settings.items()},
        "checks": [
            {
                "section": result.section,
                "name": result.name,
                "verdict": result.finding.verdict.value,
                "text": redact(result.finding.text),
                "advice": redact(result.finding.advice),
                "seconds": round(result.seconds, 2),
                "values": {
                    name: redact(value) if isinstance(value, str) else _finite(value)
                    for name, value in result.finding.values.items()
                },
            }
            for result in report.results
        ],
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and value - value != 0 else value


def settings() -> dict[str, str]:
    """Environment variables that matter; of those that may hold a secret only that they are set."""
    return {
        name: "(set)" if _SECRET.search(name) else value
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name) and value
    }

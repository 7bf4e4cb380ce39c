"""The checks, in the order in which they are shown."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from audiocraft_mlx.doctor import command_facts, hub_facts, machine_facts, program_facts, speed
from audiocraft_mlx.doctor.comparison import BUG
from audiocraft_mlx.doctor.demo import tested_place
from audiocraft_mlx.doctor.demo_checks import DemoChecks
from audiocraft_mlx.doctor.finding import Finding, Verdict, wrong
from audiocraft_mlx.errors import MusicGenError

MACHINE, PROGRAM, DOWNLOADS, DEMO, SPEED = "machine", "program", "downloads", "demo model", "speed"


@dataclass(frozen=True)
class Check:
    section: str
    name: str
    work: Callable[[], Finding]


@dataclass(frozen=True)
class Result:
    """A check's outcome; `seconds` is how long it took."""

    section: str
    name: str
    finding: Finding
    seconds: float


@dataclass(frozen=True)
class Report:
    """The outcome of all checks.

    Attributes:
        gpu_branch: whether the GPU's branch was forced, for want of a GPU.
        settings: environment variables that matter.
    """

    results: Sequence[Result]
    gpu_branch: bool
    settings: Mapping[str, str]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        found = {result.finding.verdict for result in self.results}
        return next((v for v in (Verdict.WRONG, Verdict.WARNING) if v in found), Verdict.OK)

    def count(self, verdict: Verdict) -> int:
        return sum(result.finding.verdict is verdict for result in self.results)


def forces_gpu_branch() -> bool:
    """Whether there is no GPU here, so that its branch is taken on the CPU."""
    return mx.default_device() != mx.gpu


def all_checks() -> list[Check]:
    """Nothing is computed before they are run, one after the other."""
    # On Apple's and NVIDIA's newer GPUs MLX multiplies float32 with TF32 unless this forbids it.
    place = tested_place(tf32=os.environ.get("MLX_ENABLE_TF32") != "0")
    demo = DemoChecks(place)
    found: dict[str, float] = {}

    def bandwidth() -> Finding:
        finding = speed.bandwidth()
        found["bandwidth"] = float(finding.values["bytes_per_second"] or 0)
        return finding

    def known_bandwidth() -> float:
        if "bandwidth" not in found:
            bandwidth()
        return found["bandwidth"]

    return [
        Check(MACHINE, "system", machine_facts.system),
        Check(MACHINE, "processor", machine_facts.processor),
        Check(MACHINE, "memory", machine_facts.memory),
        Check(MACHINE, "python", machine_facts.python),
        Check(PROGRAM, "musicgen-mlx", program_facts.program),
        Check(PROGRAM, "commands", command_facts.commands),
        Check(PROGRAM, "extras", program_facts.extras),
        Check(PROGRAM, "mlx", program_facts.mlx),
        Check(PROGRAM, "device", program_facts.device),
        Check(PROGRAM, "extension", program_facts.native_extension),
        Check(PROGRAM, "blas", program_facts.openblas),
        Check(DOWNLOADS, "cache", hub_facts.cache),
        Check(DOWNLOADS, "hub", hub_facts.hub),
        Check(DEMO, "text encoder", demo.text_encoder),
        Check(DEMO, "logits", lambda: demo.logits(half=False)),
        Check(DEMO, "codes", lambda: demo.greedy(half=False)),
        Check(DEMO, "codec", demo.codec),
        Check(DEMO, "logits, half", lambda: demo.logits(half=True)),
        Check(DEMO, "codes, half", lambda: demo.greedy(half=True)),
        Check(SPEED, "bandwidth", bandwidth),
        Check(SPEED, "demo model", speed.demo_speed),
        Check(SPEED, "small's shape", lambda: speed.small_speed(known_bandwidth)),
    ]


def run(check: Check) -> Result:
    """The outcome of a check; what it raises is its outcome, so that the others still run."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each check says what there is to say
        try:
            finding = check.work()
        except MusicGenError as error:
            finding = wrong(_one_line(str(error)), error=type(error).__name__)
        # Also MLX's own errors, and whatever a broken installation raises.
        except Exception as error:
            name = type(error).__name__
            finding = wrong(f"it fails: {name}: {_one_line(str(error))}", BUG, error=name)
    return Result(check.section, check.name, finding, time.perf_counter() - start)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]

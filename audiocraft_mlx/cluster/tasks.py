"""What the machines of a cluster do. Each function runs as a task of Dask in one of its threads."""

from __future__ import annotations

import platform
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.audio.spool import AudioSpool
from audiocraft_mlx.clips.existing import Existing, find_existing
from audiocraft_mlx.clips.metadata import GenerationMetadata
from audiocraft_mlx.clips.prompt_lines import ListedClip
from audiocraft_mlx.clips.requests import ClipRequest, OutputOptions
from audiocraft_mlx.cluster.engine import Generated, Unwanted, clip_engine
from audiocraft_mlx.cluster.inputs import with_inputs
from audiocraft_mlx.cluster.values import (
    ClipTask,
    Failed,
    InputKey,
    MadeClip,
    MadeFile,
    ModelFacts,
    ModelSpec,
    Needs,
)
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.files import check_writable
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from audiocraft_mlx.clips.finishing import FinishedAudio
    from audiocraft_mlx.models.genmodel import GenModel


def describe_machine() -> dict[str, str | None]:
    """What is compared before a machine gets work; every version of this package knows it by these names."""
    return {
        "host": socket.gethostname(),
        "version": __version__,
        "mlx": _installed("mlx"),
        "extension": _installed("audiocraft-mlx-native"),
        "processor": f"{platform.system()} {platform.machine()}",
    }


def load_machine(spec: ModelSpec, needs: Needs) -> ModelFacts | Failed:
    """Load the model, and find out whether the machine can do what a list needs."""

    def facts(model: GenModel) -> ModelFacts:
        from audiocraft_mlx.models.memory import MAX_BATCH_SIZE, max_batch_size

        if needs.stems:
            _separator()
        alone = needs.alone or model.fills_masks
        slots = 1 if alone else max_batch_size(model, needs.seconds, needs.branches, 0, 0, MAX_BATCH_SIZE)
        return ModelFacts(model.condition_types, model.fills_masks, slots)

    try:
        for folder in needs.folders:
            check_writable(folder / "clip")
        return clip_engine().call(spec, facts)
    except MusicGenError as error:
        return Failed(error)


def check_clips(
    spec: ModelSpec,
    clips: Sequence[tuple[ClipRequest, OutputOptions, Path | None]],
    keys: Sequence[InputKey],
    inputs: Sequence[Any],
) -> dict[int, MusicGenError]:
    """What of `clips` the model can't do: the error of each, by its place.

    `inputs` are the audio that they are made from, by its `keys`.
    """
    given = dict(zip(keys, inputs, strict=True))

    def check(model: GenModel) -> dict[int, MusicGenError]:
        from audiocraft_mlx.clips.planning import plan_clips
        from audiocraft_mlx.clips.saving import check_size

        requests = [with_inputs(request, given) for request, _, _ in clips]
        errors: dict[int, MusicGenError] = {}
        checked: set[tuple[float, object, object]] = set()
        for place, (request, (_, output, path)) in enumerate(zip(requests, clips, strict=True)):
            key = (request.duration, request.source, output)
            if path is None or key in checked:
                continue
            checked.add(key)
            try:
                check_size(path, request, output, model)
            except MusicGenError as error:
                errors[place] = error
        try:
            plan_clips(model, requests)
        except UsageError:
            for place, request in enumerate(requests):
                try:
                    plan_clips(model, [request])
                except UsageError as error:
                    errors[place] = error
        return errors

    return clip_engine().call(spec, check)


def look_for_clips(
    clips: Sequence[ListedClip],
    files: Mapping[int, Sequence[Path]],
    metadata: Mapping[int, GenerationMetadata],
    in_manifest: frozenset[str] | None,
) -> tuple[Existing, list[dict[str, Any]]]:
    """`find_existing` where the machine writes clips, and the lines that a manifest lacks (None: there is
    none) of those that are there."""
    existing = find_existing(clips, lambda clip: files[clip.index], lambda clip: metadata[clip.index])
    lines = []
    if in_manifest is not None:
        from audiocraft_mlx.clips.manifest import line_of_existing

        for clip in clips:
            path = next(iter(files[clip.index]), None)
            if clip.index in existing.made and path is not None and str(path) not in in_manifest:
                lines.append(line_of_existing(path, clip, existing.made[clip.index]))
    return existing, lines


def make_clip(task: ClipTask, keys: Sequence[InputKey], inputs: Sequence[Any]) -> MadeClip | Failed:
    """Make a clip, beside all others that this machine makes.

    It waits outside of Dask's threads, so that the machine takes others, however many threads Dask has here.
    """
    is_wanted = _leave_threads()
    request = with_inputs(task.request, dict(zip(keys, inputs, strict=True)))
    try:
        with tempfile.TemporaryDirectory(prefix="musicgen-mlx-") as folder:
            path = Path(folder, f"clip.{task.output.audio_format}") if task.path is None else task.path
            return _make(replace(task, request=request), path, is_wanted)
    except Unwanted as error:
        return Failed(MusicGenError(f"nobody waits for it any more{error}"))
    except MusicGenError as error:
        return Failed(error)
    except MemoryError:
        return Failed(MusicGenError("out of memory; ask for a shorter duration or a smaller model"))


def _make(task: ClipTask, path: Path, is_wanted: Callable[[], bool]) -> MadeClip:
    from audiocraft_mlx.clips.finishing import finish_audio
    from audiocraft_mlx.clips.saving import save_clip

    engine, spools = clip_engine(), list[AudioSpool]()

    def keep(audio: np.ndarray) -> None:
        if not spools:
            spools.append(AudioSpool(len(audio), path))
        spools[0].append(audio)

    try:
        made: Generated = engine.generate(task.model, task.request, keep, is_wanted)
        plan = made.plan
        clip = finish_audio(
            spools[0], made.sample_rate, task.output, plan.source, plan.replacement, made.loop, plan.loop
        )
        saved = save_clip(path, clip, task.metadata, made.codes)
        files = [_made_file(task, None, saved.path, clip, saved.peak)]
        if task.output.stems:
            files += _save_stems(task, path, clip.in_memory(), saved.peak)
    finally:
        for spool in spools:
            spool.close()
    line = None
    if task.path is not None and task.manifest is not None:
        from audiocraft_mlx.clips.manifest import manifest_line

        seconds = saved.samples / saved.sample_rate
        line = manifest_line(path, task.manifest, seconds, saved.sample_rate, task.line, task.output.stems)
    loop = None if clip.loop is None else (clip.loop.measure.score, str(clip.loop))
    return MadeClip(plan.seconds, made.elapsed, tuple(files), loop, line)


def _save_stems(task: ClipTask, path: Path, clip: FinishedAudio, peak: float) -> list[MadeFile]:
    from audiocraft_mlx.clips.finishing import separate_stems
    from audiocraft_mlx.clips.saving import save_clip

    def separate(model: GenModel) -> list[tuple[str, FinishedAudio]]:
        return list(separate_stems(clip, peak, _separator()))

    files = []
    for name, stem in clip_engine().call(task.model, separate):
        saved = save_clip(path.with_stem(f"{path.stem}-{name}"), stem, task.metadata)
        files.append(_made_file(task, name, saved.path, stem, saved.peak))
    return files


def _made_file(task: ClipTask, stem: str | None, path: Path, clip: FinishedAudio, peak: float) -> MadeFile:
    data = path.read_bytes() if task.path is None else None
    return MadeFile(stem, data, clip.channels, clip.samples, clip.sample_rate, peak)


def _separator() -> Any:
    """In the engine's thread, since its arrays are there."""
    global _loaded_separator
    if _loaded_separator is None:
        from audiocraft_mlx.checkpoints.demucs import load_htdemucs

        _loaded_separator = load_htdemucs()
    return _loaded_separator


_loaded_separator: Any = None


def _leave_threads() -> Callable[[], bool]:
    """Leave Dask's threads; what says whether the task is still wanted.

    Dask doesn't interrupt a task that was cancelled, or whose client has gone.
    """
    from distributed import get_worker, secede

    worker = get_worker()
    key = worker.get_current_task()
    secede()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state not in ("cancelled", "resumed", "released", "forgotten")

    return is_wanted


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

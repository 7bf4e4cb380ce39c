"""Puts the history in order when a server starts, and finds clips that the database has lost."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from audiocraft_mlx.audio.decoders import open_decoder
from audiocraft_mlx.audio.formats import BIT_DEPTHS
from audiocraft_mlx.checkpoints.lora_spec import LoraSpec
from audiocraft_mlx.clips.metadata import GenerationMetadata, read_metadata
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import MusicGenError, OutputError, UsageError
from audiocraft_mlx.files import remove_stale_parts, write_error
from audiocraft_mlx.server.folder import DataFolder, is_id, split_clip_name
from audiocraft_mlx.server.models import adapted_name, display_name
from audiocraft_mlx.server.peaks import peaks_of
from audiocraft_mlx.server.recipes import request_of
from audiocraft_mlx.server.schema import Id, Status
from audiocraft_mlx.server.store import STOPPED, AudioRecord, AudioShape, ClipRecord, JobRecord, Store
from audiocraft_mlx.server.uploads import measure_audio

_log = logging.getLogger(__name__)
TRASH_SECONDS = 600.0
"""How long a job that was removed can be restored."""
_MOST_REMOVED = 20
# Uploads that no job uses are kept this long.
_UPLOAD_SECONDS = 24 * 3600.0


def rebuild(folder: Path) -> int:
    """Make the database in a data folder again, from the tags of its clips; how many jobs it has.

    The old one is kept as `history.sqlite3.old`, and in place until the new one is complete. Titles,
    favourites and the order within a second are lost.

    Raises `UsageError` if a server uses the folder, `OutputError`.
    """
    data = DataFolder(folder)
    try:
        store = Store(data.new_database)
        try:
            _adopt_uploads(data, store)
            count = tidy_at_start(data, store)
        finally:
            store.close()  # into one file
        names = (data.database.name, f"{data.database.name}.old")
        # Its log first: it must not be taken for the new one's.
        for suffix in ("-wal", "-shm", ""):
            path, kept = (data.database.with_name(name + suffix) for name in names)
            kept.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                os.replace(path, kept)
        os.replace(data.new_database, data.database)
        return count
    except OSError as error:
        raise write_error(data.database, error) from error
    finally:
        data.close()


def tidy_at_start(folder: DataFolder, store: Store) -> int:
    """Make the folder and the database agree; how many jobs of the folder were new to the database."""
    for job in store.jobs_with_status(Status.RUNNING):
        store.set_status(job.id, Status.FAILED, STOPPED)
    empty_trash(folder, store, time.time() - TRASH_SECONDS)
    added, statuses = 0, store.statuses()
    for id in folder.job_folders():
        remove_stale_parts(folder.clips / id)
        status = statuses.get(id)
        if status is None:
            # A folder may be a copy of another one, and tags may say anything.
            try:
                added += _adopt(folder, store, id)
            except (MusicGenError, ValueError, RuntimeError, OSError) as error:
                _log.warning("not in the history: %s: %s", folder.clips / id, error)
        elif status != Status.DONE.value:
            folder.remove_job(id, [])
    _remove_old_uploads(folder, store)
    return added


def empty_trash(folder: DataFolder, store: Store, before: float) -> None:
    """Remove for good some of what was put into the trash before then; the rest at the next calls.

    Thousands would take seconds, in which clips that are being made wait.
    """
    for job, clips in store.expired_jobs(before, _MOST_REMOVED).items():
        store.remove_expired(job, before, partial(folder.remove_job, job, clips))


def _adopt(folder: DataFolder, store: Store, id: Id) -> bool:
    """Put a job into the database whose files are there; False if they can't be used."""
    clips: dict[Id, tuple[Path, str]] = {}
    stems: dict[Id, list[str]] = {}
    made = time.time()
    for path in sorted((folder.clips / id).iterdir()):
        split = split_clip_name(path)
        if split is None or split[2] not in BIT_DEPTHS:
            continue
        clip, stem, audio_format = split
        if stem is None:
            clips[clip] = path, audio_format
            made = min(made, path.stat().st_mtime)
        else:
            stems.setdefault(clip, []).append(stem)
    found: list[tuple[ClipRecord, bytes, GenerationMetadata, str]] = []
    for clip, (path, audio_format) in clips.items():
        try:
            metadata = read_metadata(path)
            if metadata is None:
                raise UsageError(f"{path} has no tags of this program")
            shape, peaks = _read(path)
        except MusicGenError as error:
            _log.warning("not in the history: %s", error)
            continue
        record = ClipRecord(clip, metadata.seed, shape, tuple(stems.get(clip, ())))
        found.append((record, peaks, metadata, audio_format))
    if not found:
        with suppress(OSError):
            (folder.clips / id).rmdir()  # if it is empty
        return False
    seeds = {record.seed for record, *_ in found}
    # Seeds of takes are consecutive; after the largest one comes 0.
    first = next((seed for seed in sorted(seeds) if (seed - 1) % 2**32 not in seeds), min(seeds))
    found.sort(key=lambda each: (each[0].seed - first) % 2**32)
    record, _, metadata, audio_format = found[0]
    request = request_of(metadata, audio_format, _model_name(metadata)).model_copy(
        update={"takes": len(found), "stems": bool(stems), **_audio_ids(folder, metadata)}
    )
    job = JobRecord(
        id=id,
        created=made,
        client="",
        status=Status.RUNNING,
        recipe=request,
        command=metadata.to_command(),
        clips=tuple(record for record, *_ in found),
    )
    store.add_job(job)
    store.set_done(id, None, [(record, peaks) for record, peaks, *_ in found])
    return True


def _audio_ids(folder: DataFolder, metadata: GenerationMetadata) -> dict[str, Id]:
    """What a clip was made from, where its name is that of a clip or of an upload without a name."""
    ids = {}
    for option, field in (("melody", "melody"), ("style", "style"), ("continue", "source"), ("edit", "edit")):
        name = str(metadata.options.get(option, "")).partition(".")[0]
        if is_id(name):
            ids[field] = name
    return ids


def _read(path: Path) -> tuple[AudioShape, bytes]:
    samples = 0
    try:
        with path.open("rb") as stream:
            decoder = open_decoder(path, stream)

            def blocks() -> Iterator[np.ndarray]:
                nonlocal samples
                for block in decoder.blocks():
                    samples += len(block)
                    yield block.T

            peaks = peaks_of(blocks(), decoder.rate)
    except OSError as error:
        raise OutputError(f"{path} can't be read: {error.strerror}") from error
    if not samples:
        raise UsageError(f"{path} has no samples")
    return AudioShape(decoder.rate, decoder.channels, samples), peaks


def _adopt_uploads(folder: DataFolder, store: Store) -> None:
    """Put uploads into the database whose files are there. Their names are lost."""
    for id in folder.audio_ids():
        path = folder.audio_file(id)
        try:
            shape = measure_audio(path, math.inf, str(path))
        except UsageError as error:
            _log.warning("not among the uploads: %s", error)
            continue
        # As if new: which jobs they were used by is lost, too.
        store.add_audio(AudioRecord(id, time.time(), None, shape))


def _model_name(metadata: GenerationMetadata) -> str:
    """As the list of models has it."""
    lora = metadata.options.get("lora")
    if isinstance(lora, str) and lora.strip():
        with suppress(UsageError):
            return adapted_name(ModelOptions(metadata.model), LoraSpec.parse(lora))
    return display_name(metadata.model)


def _remove_old_uploads(folder: DataFolder, store: Store) -> None:
    """Remove old uploads that no job uses, and old files without a row."""
    oldest = time.time() - _UPLOAD_SECONDS
    known, used = {audio.id: audio for audio in store.audios()}, store.used_audio()
    for id, audio in known.items():
        if id not in used and audio.created < oldest:
            store.remove_audio(id)
            folder.remove_audio(id)
    for id in folder.audio_ids():
        if id not in known and id not in used:
            with suppress(OSError):
                if folder.audio_file(id).stat().st_mtime < oldest:
                    folder.remove_audio(id)

"""The history on disk: SQLite. It knows nothing of what is being made."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.server.errors import DISK_FULL, InvalidFieldError, NotFoundError
from audiocraft_mlx.server.migrations import migrate
from audiocraft_mlx.server.schema import Id, JobRequest, Status

STOPPED = "the server stopped while it was made"


@dataclass(frozen=True)
class AudioShape:
    """The size of audio. MIDI has no channels."""

    sample_rate: int
    channels: int
    samples: int
    """Per channel."""

    @property
    def duration(self) -> float:
        return self.samples / self.sample_rate

    @classmethod
    def of_notes(cls, seconds: float) -> AudioShape:
        """Of MIDI: in milliseconds."""
        return cls(1000, 0, max(1, round(seconds * 1000)))

    @property
    def is_notes(self) -> bool:
        return self.channels == 0


@dataclass(frozen=True)
class ClipRecord:
    id: Id
    seed: int
    shape: AudioShape | None = None
    """Of its file, once there is one."""
    stems: tuple[str, ...] = ()
    score: float | None = None
    """Of a loop that has just been made: how much its join is heard. It isn't stored."""


@dataclass(frozen=True)
class JobRecord:
    id: Id
    created: float
    client: str
    status: Status
    recipe: JobRequest
    command: str
    clips: tuple[ClipRecord, ...]
    error: str | None = None
    speed: float | None = None
    title: str | None = None
    favourite: bool = False
    trashed: float | None = None


@dataclass(frozen=True)
class AudioRecord:
    id: Id
    created: float
    name: str | None
    shape: AudioShape


class Store:
    """Jobs, clips and uploads. All methods are thread-safe; those that write raise `OutputError`."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make it. Raises `UsageError` if it can't be used, `OutputError`."""
        self._path, self._lock = path, RLock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                # A power failure may lose the last changes, but nothing else.
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.execute("PRAGMA foreign_keys = ON")
                # Its own cache grows to 2 MB, and the system has the file's pages anyway.
                self._connection.execute("PRAGMA cache_size = -256")
                migrate(self._connection, str(path))
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.OperationalError as error:
            raise self._write_error(error) from error
        except sqlite3.DatabaseError as error:
            raise damaged(path, error) from error

    def close(self) -> None:
        """What is called afterwards fails."""
        with self._lock:
            self._connection.close()

    # Jobs

    def add_job(self, job: JobRecord) -> None:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO jobs (id, created, client, status, recipe, command, error, speed, title,"
                " favourite, words) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.created,
                    job.client,
                    job.status.value,
                    job.recipe.model_dump_json(by_alias=True),
                    job.command,
                    job.error,
                    job.speed,
                    job.title,
                    job.favourite,
                    _words(job.recipe, job.title),
                ),
            )
            connection.executemany(
                "INSERT INTO clips (id, job, number, seed) VALUES (?, ?, ?, ?)",
                [(clip.id, job.id, number, clip.seed) for number, clip in enumerate(job.clips)],
            )

    def job(self, id: Id, trashed: bool = False) -> JobRecord:
        """Raises `NotFoundError`: also for one in the trash, unless `trashed`."""
        jobs = self._jobs("WHERE id = ?" + ("" if trashed else " AND trashed IS NULL"), [_key(id)])
        if not jobs:
            raise NotFoundError(f"there is no job {id[:40]!r}")
        return jobs[0]

    def page(
        self, before: str | None, limit: int, query: str, favourite: bool | None
    ) -> tuple[list[JobRecord], str | None]:
        """The newest jobs, and where the next page begins. Raises `InvalidFieldError`."""
        where, values = ["trashed IS NULL"], list[Any]()
        if before is not None:
            where.append("(created, id) < (?, ?)")
            values += _cursor(before)
        # Half a surrogate pair is in no text.
        for word in query.encode("utf-8", "replace").decode().casefold().split():
            where.append("instr(words, ?)")
            values.append(word)
        if favourite is not None:
            where.append("favourite = ?")
            values.append(favourite)
        values.append(limit + 1)
        jobs = self._jobs(
            f"WHERE {' AND '.join(where)} ORDER BY created DESC, id DESC LIMIT ?", values, by_time=True
        )
        more = len(jobs) > limit
        return jobs[:limit], f"{jobs[limit - 1].created!r}_{jobs[limit - 1].id}" if more else None

    def jobs_with_status(self, status: Status) -> list[JobRecord]:
        """The oldest first."""
        return self._jobs("WHERE status = ? ORDER BY created, id", [status.value])

    def statuses(self) -> dict[Id, str]:
        """Of all jobs, also those in the trash."""
        return dict(self._select("SELECT id, status FROM jobs", []))

    def expired_jobs(self, before: float, limit: int) -> dict[Id, list[Id]]:
        """Up to `limit` of those that were put into the trash before then, and their clips."""
        with self._lock:
            jobs = self._select("SELECT id FROM jobs WHERE trashed < ? LIMIT ?", [before, limit])
            return {
                job: [clip for (clip,) in self._select("SELECT id FROM clips WHERE job = ?", [job])]
                for (job,) in jobs
            }

    def set_status(self, id: Id, status: Status, error: str | None = None) -> None:
        with self._writing() as connection:
            connection.execute(
                "UPDATE jobs SET status = ?, error = ? WHERE id = ?", (status.value, error, id)
            )

    def set_done(self, id: Id, speed: float | None, clips: Iterable[tuple[ClipRecord, bytes]]) -> None:
        """A job's files are all there: `clips`, in their order from now on, have shapes, stems and peaks."""
        with self._writing() as connection:
            for number, (clip, peaks) in enumerate(clips):
                assert clip.shape is not None
                connection.execute(
                    "UPDATE clips SET sample_rate = ?, channels = ?, samples = ?, stems = ?, peaks = ?,"
                    " number = ? WHERE id = ?",
                    (
                        clip.shape.sample_rate,
                        clip.shape.channels,
                        clip.shape.samples,
                        " ".join(clip.stems),
                        peaks,
                        number,
                        clip.id,
                    ),
                )
            connection.execute(
                "UPDATE jobs SET status = ?, error = NULL, speed = ? WHERE id = ?",
                (Status.DONE.value, speed, id),
            )

    def change(self, id: Id, **values: Any) -> None:
        """Set `title`, `favourite`. Raises `NotFoundError`."""
        with self._writing() as connection:
            job = self.job(id)
            title = values.get("title", job.title)
            connection.execute(
                "UPDATE jobs SET title = ?, favourite = ?, words = ? WHERE id = ?",
                (title, values.get("favourite", job.favourite), _words(job.recipe, title), id),
            )

    def set_trashed(self, id: Id, trashed: float | None) -> None:
        with self._writing() as connection:
            connection.execute("UPDATE jobs SET trashed = ? WHERE id = ?", (trashed, id))

    def remove_expired(self, id: Id, before: float, remove_files: Callable[[], None]) -> None:
        """Remove a job that was put into the trash before then, and hasn't been restored meanwhile.

        Its files go in the same transaction: if it ends in between, the rest is done the next time.
        """
        with self._writing() as connection:
            gone = connection.execute("DELETE FROM jobs WHERE id = ? AND trashed < ?", (id, before))
            if gone.rowcount:
                remove_files()

    def last_created(self) -> float:
        """When the newest job was made; 0 if there is none."""
        return float(self._select("SELECT max(created) FROM jobs", [])[0][0] or 0)

    # Clips

    def job_of_clip(self, clip: Id) -> tuple[JobRecord, ClipRecord]:
        """Raises `NotFoundError`."""
        rows = self._select("SELECT job FROM clips WHERE id = ?", [_key(clip)])
        if rows:
            job = self._jobs("WHERE id = ? AND trashed IS NULL", [rows[0][0]])
            if job:
                return job[0], next(each for each in job[0].clips if each.id == clip)
        raise NotFoundError(f"there is no clip {clip[:40]!r}")

    def peaks(self, clip: Id) -> bytes:
        rows = self._select("SELECT peaks FROM clips WHERE id = ?", [clip])
        return rows[0][0] or b"" if rows else b""

    # Uploads

    def add_audio(self, audio: AudioRecord) -> None:
        shape = audio.shape
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO audio VALUES (?, ?, ?, ?, ?, ?)",
                (audio.id, audio.created, audio.name, shape.sample_rate, shape.channels, shape.samples),
            )

    def audio(self, id: Id) -> AudioRecord | None:
        audios = self.audios("WHERE id = ?", [_key(id)])
        return audios[0] if audios else None

    def audios(self, where: str = "", values: Sequence[Any] = ()) -> list[AudioRecord]:
        rows = self._select(
            f"SELECT id, created, name, sample_rate, channels, samples FROM audio {where}", values
        )
        return [AudioRecord(row[0], row[1], row[2], AudioShape(*row[3:])) for row in rows]

    def remove_audio(self, id: Id) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM audio WHERE id = ?", (id,))

    def used_audio(self) -> set[Id]:
        """Ids of uploads and clips that jobs were made from."""
        rows = self._select(
            "SELECT json_extract(recipe, '$.melody'), json_extract(recipe, '$.style'),"
            " json_extract(recipe, '$.continue') FROM jobs",
            [],
        )
        return {id for row in rows for id in row if id is not None}

    def _jobs(self, where: str, values: Sequence[Any], by_time: bool = False) -> list[JobRecord]:
        with self._lock:
            # SQLite would take the index of another column, and sort.
            index = "INDEXED BY jobs_by_time" if by_time else ""
            rows = self._select(
                "SELECT id, created, client, status, recipe, command, error, speed, title, favourite, trashed"
                f" FROM jobs {index} {where}",
                values,
            )
            clips: dict[Id, list[ClipRecord]] = {row[0]: [] for row in rows}
            ids = list(clips)
            for first in range(0, len(ids), 500):  # SQLite's limit of parameters
                some = ids[first : first + 500]
                for job, id, seed, rate, channels, samples, stems in self._select(
                    "SELECT job, id, seed, sample_rate, channels, samples, stems FROM clips"
                    f" WHERE job IN ({', '.join('?' * len(some))}) ORDER BY job, number",
                    some,
                ):
                    shape = None if rate is None else AudioShape(rate, channels, samples)
                    clips[job].append(ClipRecord(id, seed, shape, tuple(stems.split())))
        return [
            JobRecord(
                id=row[0],
                created=row[1],
                client=row[2],
                status=Status(row[3]),
                recipe=JobRequest.model_validate_json(row[4]),
                command=row[5],
                clips=tuple(clips[row[0]]),
                error=row[6],
                speed=row[7],
                title=row[8],
                favourite=bool(row[9]),
                trashed=row[10],
            )
            for row in rows
        ]

    def _select(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._write_error(error) from error

    def _write_error(self, error: sqlite3.Error) -> OutputError:
        if "full" in str(error):
            return OutputError(DISK_FULL)
        return OutputError(
            f"{self._path} can't be written ({error}); free some space, and check its permissions"
        )


def damaged(path: Path, error: Exception) -> UsageError:
    """What to do with a database that is."""
    reason = str(error).partition("\n")[0]
    return UsageError(
        f"{path} is damaged ({reason}); start once with --rebuild, which makes it again from the clips"
    )


def now(after: float) -> float:
    """The time, later than `after` by the clock's step at least: the order of jobs is that of their times."""
    return max(time.time(), after + 1e-6)


def _key(id: Id) -> Id:
    """An id that a client gave: SQLite takes no half of a surrogate pair."""
    return id if id.isascii() else ""


def _words(recipe: JobRequest, title: str | None) -> str:
    texts = [recipe.prompt, title or "", *(section.text for section in recipe.sections)]
    return "\n".join(texts).casefold()


def _cursor(text: str) -> tuple[float, Id]:
    created, _, id = text.partition("_")
    try:
        id.encode("ascii")  # a `ValueError`, too
        return float(created), id
    except ValueError:
        raise InvalidFieldError("before must be what the page before has as `before`", "before") from None

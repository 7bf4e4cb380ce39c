"""The database's schema. A change is a new entry at the end: the others have run in databases that exist."""

from __future__ import annotations

import sqlite3

from audiocraft_mlx.errors import UsageError

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        created REAL NOT NULL,    -- seconds since 1970
        client TEXT NOT NULL,
        status TEXT NOT NULL,
        recipe TEXT NOT NULL,     -- JobRequest as JSON
        command TEXT NOT NULL,
        error TEXT,
        speed REAL,               -- seconds of music per second
        title TEXT,
        favourite INTEGER NOT NULL DEFAULT 0,
        trashed REAL,             -- seconds since 1970
        words TEXT NOT NULL       -- prompt and title in lower case, to be searched
    );
    CREATE INDEX jobs_by_time ON jobs (created DESC, id DESC);
    CREATE INDEX jobs_by_status ON jobs (status);
    CREATE TABLE clips (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,  -- of the take
        seed INTEGER NOT NULL,
        -- Of its file; null before there is one.
        sample_rate INTEGER,
        channels INTEGER,
        samples INTEGER,
        stems TEXT NOT NULL DEFAULT '',
        peaks BLOB
    );
    CREATE INDEX clips_of_job ON clips (job, number);
    CREATE TABLE audio (
        id TEXT PRIMARY KEY,
        created REAL NOT NULL,
        name TEXT,
        sample_rate INTEGER NOT NULL,
        channels INTEGER NOT NULL,
        samples INTEGER NOT NULL
    );
    """,
    # After each clip it is looked what in the trash has expired.
    "CREATE INDEX jobs_by_trashed ON jobs (trashed) WHERE trashed IS NOT NULL",
)


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring a database up to this version's schema, each step whole or not at all.

    Raises `UsageError` if it is of a later version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise UsageError(
            f"{name} was made by a later version of this program (schema {version}, this one knows"
            f" {len(MIGRATIONS)}); update it, or give another folder to --data"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
    # As it is already: it fails now, not at the first job, if the file can only be read.
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

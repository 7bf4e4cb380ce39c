"""The server's parts, each alone: events, turns, peaks, the store, the data folder, requests."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import OutputError, UsageError
from audiocraft_mlx.server.errors import InvalidFieldError, NotFoundError
from audiocraft_mlx.server.events import Broadcaster
from audiocraft_mlx.server.folder import DataFolder, is_id, new_id
from audiocraft_mlx.server.live import LiveAudio, LiveClip
from audiocraft_mlx.server.migrations import MIGRATIONS
from audiocraft_mlx.server.peaks import PeakMeter, peaks_of
from audiocraft_mlx.server.queue import FairQueue
from audiocraft_mlx.server.recipes import AudioFile, make_recipe
from audiocraft_mlx.server.schema import Event, JobRequest, Status
from audiocraft_mlx.server.settings import Limits
from audiocraft_mlx.server.store import AudioRecord, AudioShape, ClipRecord, JobRecord, Store
from audiocraft_mlx.server.wakeup import Wakeup

from .unprivileged import reachable_folder, unprivileged

# Events


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    return [await asyncio.wait_for(anext(events), 5) for _ in range(count)]


def test_events_come_from_now_on_and_in_order() -> None:
    async def run() -> None:
        broadcaster = Broadcaster()
        broadcaster.publish("job", 0)
        events = broadcaster.subscribe()
        for number in (1, 2, 3):
            broadcaster.publish("job", number)
        assert [event.data for event in await take(events, 3)] == [1, 2, 3]

    asyncio.run(run())


def test_events_are_published_from_another_thread() -> None:
    async def run() -> None:
        broadcaster = Broadcaster()
        events = broadcaster.subscribe()
        thread = threading.Timer(0.05, lambda: [broadcaster.publish("job", n) for n in range(100)])
        thread.start()
        assert [event.data for event in await take(events, 100)] == [*range(100)]
        thread.join()

    asyncio.run(run())


def test_a_client_that_comes_back_gets_what_it_missed() -> None:
    async def run() -> None:
        broadcaster = Broadcaster(kept=10)
        for number in range(5):
            broadcaster.publish("job", number)
        first = (await take(broadcaster.subscribe("x-1"), 1))[0]
        assert first.event == "reset"  # of a process before this one
        broadcaster.publish("job", 5)
        broadcaster.publish("job", 6)
        again = await take(broadcaster.subscribe(first.id), 2)
        assert [event.data for event in again] == [5, 6]
        for number in range(10):
            broadcaster.publish("job", number)
        events = await take(broadcaster.subscribe(first.id), 1)
        assert [event.event for event in events] == ["reset"]  # too many were missed
        last = (await take(broadcaster.subscribe(again[-1].id), 10))[-1]
        broadcaster.publish("removed", {"id": "a"})
        assert (await take(broadcaster.subscribe(last.id), 1))[0].event == "removed"

    asyncio.run(run())


@pytest.mark.parametrize(
    "last_id", ["", "-", "nonsense", "{}-99", "{}-+1", "{}-²", "{}-" + "9" * 30, "\ud800"]
)
def test_an_impossible_last_id_is_a_reset(last_id: str) -> None:
    async def run() -> None:
        broadcaster = Broadcaster()
        broadcaster.publish("job", 1)
        prefix = broadcaster._events[0].id.partition("-")[0]
        events = await take(broadcaster.subscribe(last_id.format(prefix)), 1)
        assert [event.event for event in events] == ["reset"]

    asyncio.run(run())


def test_a_slow_subscriber_gets_a_reset_and_then_goes_on() -> None:
    async def run() -> None:
        broadcaster = Broadcaster(kept=10)
        events = broadcaster.subscribe()
        broadcaster.publish("job", 0)
        assert (await take(events, 1))[0].data == 0
        for number in range(1, 12):
            broadcaster.publish("job", number)
        assert (await take(events, 1))[0].event == "reset"
        broadcaster.publish("job", 12)
        assert (await take(events, 1))[0].data == 12

    asyncio.run(run())


def test_events_end_when_the_server_does() -> None:
    async def run() -> None:
        broadcaster = Broadcaster()
        events = broadcaster.subscribe()
        threading.Timer(0.05, broadcaster.close).start()
        assert [event async for event in events] == []

    asyncio.run(run())


def test_publishing_wakes_each_loop_and_survives_one_that_is_closed() -> None:
    wakeup, flags = Wakeup(), [False]

    async def wait() -> None:
        await wakeup.wait_until(lambda: flags[0])

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    wakeup.notify()  # to a loop that doesn't run just now
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    threads = [threading.Thread(target=asyncio.run, args=[wait()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    flags[0] = True
    wakeup.notify()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    loop.run_until_complete(asyncio.wait_for(task, 5))
    loop.close()
    assert not wakeup._waiting


# Turns


def test_clients_take_turns() -> None:
    queue: FairQueue[str] = FairQueue()
    for job in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.add(job[0], job)
    assert queue.order() == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert (queue.count(), queue.count("a"), queue.count("d")) == (6, 3, 0)
    queue.remove("a", "a1")
    queue.served(["a"])
    assert queue.order() == ["b1", "c1", "a2", "c2", "a3"]
    queue.remove("b", "b1")
    queue.served(["b"])  # who has none left
    queue.remove("c", "nothing")
    assert queue.order() == ["c1", "a2", "c2", "a3"]
    queue.add("b", "b2")
    assert queue.order() == ["c1", "a2", "b2", "c2", "a3"]


# Peaks


@pytest.mark.parametrize("rate", [32000, 44100, 11025, 8001])
def test_peaks_are_the_same_in_any_pieces(rate: int) -> None:
    rng = np.random.default_rng(1)
    audio = rng.uniform(-1, 1, (2, int(rate * 1.037))).astype(np.float32)
    edges = [-(-index * rate // 50) for index in range(52)]
    expected = [
        round(float(np.abs(audio[:, start:end]).max()) * 255)
        for start, end in zip(edges, [*edges[1:], audio.shape[1]], strict=True)
        if start < audio.shape[1]
    ]
    assert list(peaks_of([audio], rate)) == expected
    meter, pieces, position = PeakMeter(rate), b"", 0
    while position < audio.shape[1]:
        size = int(rng.integers(1, 3000))
        pieces += meter.add(audio[:, position : position + size])
        position += size
    assert list(pieces + meter.finish()) == expected


def test_peaks_beyond_full_scale_stay_in_their_range() -> None:
    audio = np.array([[2.0, np.nan, np.inf, 0.0]], np.float32)
    assert list(peaks_of([audio], 50)) == [255, 0, 255, 0]
    assert list(peaks_of([audio[:, :1]], 50, 0.25)) == [128]


# Audio while it is made


def test_audio_is_read_while_it_is_made(tmp_path: Path) -> None:
    async def run() -> None:
        clip = LiveClip(AudioShape(1000, 2, 400))
        early = LiveAudio(clip).blocks(350)
        clip.begin(tmp_path, AudioShape(1000, 2, 400), None)
        audio = np.random.default_rng(1).uniform(-1, 1, (2, 400)).astype(np.float32)
        reader = LiveAudio(clip).blocks()
        read = []
        for start in range(0, 400, 100):
            clip.append(audio[:, start : start + 100])
            read.append(await anext(reader))
        clip.end()
        assert np.array_equal(np.concatenate(read, axis=1), audio)
        assert [block async for block in reader] == []
        assert np.array_equal(np.concatenate([block async for block in early], axis=1), audio[:, 350:])
        assert clip.peaks == peaks_of([audio], 1000)

    asyncio.run(run())
    assert not list(tmp_path.iterdir())


def test_a_reader_ends_early_if_the_job_does(tmp_path: Path) -> None:
    async def run() -> int:
        clip = LiveClip(AudioShape(1000, 1, 400))
        clip.begin(tmp_path, AudioShape(1000, 1, 400), None)
        clip.append(np.zeros((1, 100), np.float32))
        threading.Timer(0.05, clip.end).start()
        return sum([block.shape[1] async for block in LiveAudio(clip).blocks()])

    assert asyncio.run(run()) == 100


# The store


def job(prompt: str = "piano", created: float = 1.0, takes: int = 1, **values: Any) -> JobRecord:
    clips = tuple(ClipRecord(new_id(), seed) for seed in range(takes))
    request = JobRequest(prompt=prompt, seed=0, takes=takes, model="demo")
    values = {"status": Status.QUEUED, "client": "me", "command": "musicgen-mlx", **values}
    return JobRecord(id=new_id(), created=created, recipe=request, clips=clips, **values)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "history.sqlite3")


def test_a_job_is_read_as_it_was_written(store: Store) -> None:
    record = job("été 'DROP TABLE jobs; --", takes=3, title="T", favourite=True)
    store.add_job(record)
    assert store.job(record.id) == record
    done = [
        ClipRecord(clip.id, clip.seed, AudioShape(32000, 2, 9), ("bass", "drums")) for clip in record.clips
    ]
    store.set_done(record.id, 1.5, [(clip, b"\1\2") for clip in done])
    read = store.job(record.id)
    assert (read.status, read.speed, read.clips) == (Status.DONE, 1.5, tuple(done))
    assert store.peaks(done[1].id) == b"\1\2"
    assert store.job_of_clip(done[2].id) == (read, done[2])
    assert not store.jobs_with_status(Status.QUEUED)


@pytest.mark.parametrize("id", ["", "x", "\ud800", "'", "../../etc/passwd", "é" * 22, "A" * 100_000])
def test_other_ids_are_not_found(store: Store, id: str) -> None:
    with pytest.raises(NotFoundError):
        store.job(id)
    with pytest.raises(NotFoundError):
        store.job_of_clip(id)
    assert store.audio(id) is None


def test_pages_are_of_the_newest_first_and_lose_none(store: Store) -> None:
    records = [job(created=float(number // 2)) for number in range(25)]  # some at the same time
    for record in records:
        store.add_job(record)
    seen, before = [], None
    while True:
        page, before = store.page(before, 10, "", None)
        seen += page
        if before is None:
            break
    assert seen == sorted(records, key=lambda record: (record.created, record.id), reverse=True)
    for wrong in ("", "x", "1.0.0_a", "1.0_\ud800"):
        with pytest.raises(InvalidFieldError) as error:
            store.page(wrong, 10, "", None)
        assert error.value.param == "before"


def test_search_is_in_prompts_and_titles(store: Store) -> None:
    first, second = job("Grüße, 100% PIANO_solo", 1), job("drums", 2)
    for record in (first, second):
        store.add_job(record)
    store.change(second.id, title="Für Elise", favourite=True)

    def found(query: str = "", favourite: bool | None = None) -> list[str]:
        return [record.id for record in store.page(None, 10, query, favourite)[0]]

    assert found() == [second.id, first.id]
    assert found("grüße SOLO") == [first.id]
    assert found("FÜR") == [second.id]
    assert found("0%") == found("o_s") == [first.id]
    assert found("piano drums") == found("%")[1:] == found("\ud800") == []
    assert found(favourite=True) == [second.id]
    assert found(favourite=False) == [first.id]
    store.change(second.id, title=None)
    assert found("elise") == []
    assert store.job(second.id).favourite


def test_a_page_is_found_without_sorting(store: Store) -> None:
    plan = store._select(
        "EXPLAIN QUERY PLAN SELECT id FROM jobs INDEXED BY jobs_by_time WHERE trashed IS NULL AND"
        " (created, id) < (1, 'a') AND favourite = 1 ORDER BY created DESC, id DESC LIMIT 10",
        [],
    )
    assert "jobs_by_time" in plan[0][3]
    assert not any("TEMP B-TREE" in row[3] for row in plan)


def test_what_has_expired_is_found_without_reading_all_jobs(store: Store) -> None:
    trashed, kept, late = job(takes=2), job(), job()
    for number, record in enumerate((trashed, kept, late)):
        store.add_job(record)
        store.set_trashed(record.id, (1.0, None, 3.0)[number])
    with store._writing() as connection:
        connection.execute("DELETE FROM clips WHERE job = ?", (late.id,))
    clips = [clip.id for clip in trashed.clips]
    assert store.expired_jobs(2.0, 9) == {trashed.id: clips}
    assert store.expired_jobs(4.0, 9) == {trashed.id: clips, late.id: []}
    assert len(store.expired_jobs(4.0, 1)) == 1
    (step,) = store._select("EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE trashed < 1 LIMIT 1", [])
    assert "jobs_by_trashed" in step[3]


def test_a_database_of_the_first_version_keeps_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, record = tmp_path / "history.sqlite3", job(title="T", favourite=True)
    with monkeypatch.context() as patch:
        patch.setattr("audiocraft_mlx.server.migrations.MIGRATIONS", MIGRATIONS[:1])
        old = Store(path)
        old.add_job(record)
        old.close()
    assert Store(path).job(record.id) == record
    assert Store(path).expired_jobs(1.0, 1) == {}


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(UsageError, match=r"later version of this program .* update it") as error:
        Store(path)
    assert "\n" not in str(error.value)


def test_a_migration_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.sqlite3"
    old = Store(path)
    record = job()
    old.add_job(record)
    old.close()
    steps = (*MIGRATIONS, "ALTER TABLE jobs ADD COLUMN tempo REAL")
    broken = (*steps, "CREATE TABLE more (id TEXT); SELECT nonsense")
    monkeypatch.setattr("audiocraft_mlx.server.migrations.MIGRATIONS", broken)
    with pytest.raises(OutputError):
        Store(path)
    monkeypatch.setattr("audiocraft_mlx.server.migrations.MIGRATIONS", steps)
    new = Store(path)
    assert new._select("PRAGMA user_version", [])[0][0] == len(steps)
    assert new._select("SELECT tempo FROM jobs", []) == [(None,)]
    assert not new._select("SELECT name FROM sqlite_master WHERE name = 'more'", [])
    assert new.job(record.id) == record


def test_a_damaged_database_says_how_to_make_it_again(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(UsageError, match=r"is damaged .*--rebuild"):
        Store(path)


def test_a_full_disk_is_one_line(store: Store) -> None:
    (pages,) = store._select("PRAGMA page_count", [])[0]
    store._select(f"PRAGMA max_page_count = {pages}", [])
    record = job("x" * 9000)
    with pytest.raises(OutputError, match=r"^the server's disk is full; free some space$"):
        store.add_job(record)
    with pytest.raises(NotFoundError):
        store.job(record.id)
    assert store.page(None, 10, "", None) == ([], None)


def test_uploads_are_read_as_they_were_written(store: Store) -> None:
    audio = AudioRecord(new_id(), 1.0, "a.wav", AudioShape(44100, 2, 100))
    store.add_audio(audio)
    assert store.audio(audio.id) == audio
    store.remove_audio(audio.id)
    assert store.audio(audio.id) is None


# The data folder


def test_a_data_folder_is_one_servers(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "a" / "b")
    with pytest.raises(UsageError, match=r"is in use by another server; .* --data"):
        DataFolder(tmp_path / "a" / "b")
    folder.close()
    DataFolder(tmp_path / "a" / "b").close()


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data"
    if kind == "file":
        path.write_text("")
    else:
        path = Path("/proc/nothing")
    with pytest.raises(OutputError, match="can't be written: ") as error:
        DataFolder(path)
    assert "\n" not in str(error.value)


def test_a_folder_without_permission_is_one_line() -> None:
    with reachable_folder() as folder:
        folder.chmod(0o555)
        with unprivileged(), pytest.raises(OutputError, match="can't be written: Permission denied"):
            DataFolder(folder)


def test_ids_are_of_128_bits() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_id(id) and len(id) == 22 for id in ids)
    assert not any(map(is_id, ("", "a" * 21, "a" * 23, "../" + "a" * 19, "a" * 22 + "\n")))


# Requests


def recipe(limits: Limits | None = None, **values: Any):  # type: ignore[no-untyped-def]
    def find(id: str, field: str) -> AudioFile:
        if id == "missing":
            raise NotFoundError(f"{field}: there is no audio 'missing'")
        return AudioFile(
            Path("/data/secret"), f"{id}.wav", AudioShape(44100, 3 if id == "three" else 2, 88200)
        )

    request = JobRequest.model_validate({"prompt": "piano", **values})
    return make_recipe(request, ModelOptions("demo", quantize=4), MUSICGEN, find, limits)


def test_takes_have_consecutive_seeds() -> None:
    made = recipe(takes=3, seed=2**32 - 1)
    assert [clip.seed for clip in made.clips] == [2**32 - 1, 0, 1]
    assert made.command == ("musicgen-mlx piano --model demo --seed 4294967295 --quantize 4 --takes 3")
    assert made.request.seed == 2**32 - 1
    drawn = recipe()
    assert drawn.request.seed == drawn.clips[0].seed


def test_the_command_has_what_was_asked_for() -> None:
    made = recipe(
        seed=1, melody="song", duration=3, format="flac", normalize="loudness", lufs=-12, stems=True, top_k=5
    )
    assert made.command == (
        "musicgen-mlx piano --model demo --duration 3 --seed 1 --top-k 5 --quantize 4 --melody song.wav"
        " --format flac --normalize loudness --lufs -12 --stems"
    ).replace("--lufs -12", "--lufs=-12")
    assert "secret" not in made.command


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"duration": 0}, "duration"),
        ({"duration": 301}, "duration"),
        ({"takes": 0}, "takes"),
        ({"takes": 9}, "takes"),
        ({"takes": 10**400}, "takes"),
        ({"seed": 10**400}, "seed"),
        ({"bit_depth": 10**400}, "bit_depth"),
        ({"duration": float("inf")}, "duration"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 2}, "top_p"),
        ({"style_coef": 2}, "style_coef"),
        ({"prompt_seconds": 2}, "prompt_seconds"),
        ({"continue": "a", "prompt_seconds": 0}, "prompt_seconds"),
        ({"melody": "a", "style": "b"}, "melody"),
        ({"melody": "a", "melody_separation": "perhaps"}, "melody_separation"),
        ({"melody_separation": "on"}, "melody_separation"),
        ({"continue_at": 2}, "continue_at"),
        ({"continue": "a", "continue_at": 0}, "continue_at"),
        ({"continue": "a", "continue_at": float("nan")}, "continue_at"),
        ({"continue": "three"}, "continue"),
        ({"format": "aac"}, "format"),
        ({"bit_depth": 8}, "bit_depth"),
        ({"format": "mp3", "bit_depth": 16}, "bit_depth"),
        ({"format": "flac", "bit_depth": 32}, "bit_depth"),
        ({"normalize": "much"}, "normalize"),
        ({"lufs": -10}, "lufs"),
        ({"fade_out": 0}, "fade_out"),
        ({"cfg_coef": float("inf")}, "cfg_coef"),
        ({"duration": float("nan")}, "duration"),
    ],
)
def test_a_wrong_field_is_named(values: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidFieldError) as error:
        recipe(Limits(), **values)
    assert error.value.param == param
    assert "\n" not in str(error.value)
    assert "source" not in str(error.value)
    assert "audio_format" not in str(error.value)


@pytest.mark.parametrize("field", ["melody", "style", "continue"])
def test_audio_that_is_missing_is_named(field: str) -> None:
    with pytest.raises(NotFoundError, match=f"^{field}: "):
        recipe(**{field: "missing"})

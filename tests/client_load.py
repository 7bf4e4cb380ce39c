"""Hundreds of clients at once at a server with the demo model.

    python -m tests.client_load [--clients 200]

They listen to events and to a clip that is made, some slowly; go away in the middle; ask for more jobs than
may wait; send bodies that are too large, or that stop in the middle. Meanwhile a process of its own asks for
/health, which has to be answered within a second. Who is refused has to be told so as docs/SERVER.md says
(413, 429, and 503 beyond 100 requests); nothing else may fail, memory is bounded, and afterwards the server
has to work as before. All on this machine's loopback addresses. The exit status is 1 if something of that
doesn't hold.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from audiocraft_mlx.cli.common import print_stdout

from .server_process import ServerProcess, resident, serving

REQUESTS = 100
"""That the server answers at a time."""
WAITING, MADE = 200, 24
"""Jobs that may wait, and those at most that are made meanwhile."""
HEALTH_SECONDS = 1.0
GROWTH = 300.0
"""MB beyond what the server has after its first clip: a hundred requests, and twelve clips that are made."""
SECONDS = 20
JOB = {"prompt": "calm piano", "duration": SECONDS, "seed": 1}
RATE = 32000
UPLOAD = "POST /api/audio HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: audio/wav\r\n"
Counts = Counter[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    clients = parser.parse_args().clients
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        with serving(Path(name) / "data", log) as server:
            holds = load(server, clients)
            status = server.stop()
        said = log.read_text()
    if status != 0 or "Traceback" in said:
        print_stdout(f"the server ended with status {status} and said:\n{said[-3000:]}")
        holds = False
    print_stdout("all holds" if holds else "something doesn't hold")
    return 0 if holds else 1


def load(server: ServerProcess, clients: int) -> bool:
    """Whether all holds that has to; prints a line for each kind of clients."""
    asyncio.run(work_as_ever(server.url))
    memory, files = server.memory(), server.open_files()
    allowed: list[tuple[Callable[[str, int], Awaitable[Counts]], set[str]]] = [
        (listen, {"whole", "503", "events"}),
        (listen_slowly, {"slow", "whole", "503"}),
        (go_away, {"gone", "503", "429"}),
        (flood, {"202", "429"}),
        (send_too_much, {"413", "cut off", "429"}),
        (stop_in_the_middle, {"closed", "503", "429"}),
    ]
    holds = True
    for visit, expected in allowed:
        with watched(server) as watch:
            counts = asyncio.run(run(visit, server.url, clients))
        asyncio.run(work_as_ever(server.url))
        print_stdout(f"{visit.__name__}: {dict(sorted(counts.items()))}; {watch}")
        holds &= counts.keys() <= expected and watch.holds(memory)
    last, open_files = server.memory(), server.open_files()
    print_stdout(f"memory {memory:.0f} MB before, {last:.0f} after; open files {files}, {open_files}")
    return holds and open_files <= files + 5


async def run(visit: Callable[[str, int], Awaitable[Counts]], url: str, clients: int) -> Counts:
    return await visit(url, clients)


# Who watches


@dataclass
class Watch:
    """What /health was like meanwhile."""

    asked: int = 0
    failed: int = 0
    slowest: float = 0.0
    memory: float = 0.0
    """MB at most."""

    def __str__(self) -> str:
        times = f"/health {self.asked} times within {self.slowest:.2f} s, {self.failed} failed"
        return f"{times}; memory at most {self.memory:.0f} MB"

    def holds(self, memory: float) -> bool:
        well = not self.failed and self.asked > 0 and self.slowest <= HEALTH_SECONDS
        return well and self.memory <= memory + GROWTH


@contextmanager
def watched(server: ServerProcess) -> Iterator[Watch]:
    """It is filled at the end."""
    watch = Watch()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=ask_for_health, args=(server.url, server.pid, theirs))
    process.start()
    try:
        yield watch
    finally:
        ours.send("end")
        vars(watch).update(ours.recv())
        process.join()


def ask_for_health(url: str, process: int, connection: Connection) -> None:
    watch = Watch()
    while not connection.poll(0.1):
        start = time.perf_counter()
        try:
            with httpx.Client(timeout=30) as client:  # a new connection each time
                watch.failed += client.get(f"{url}/health").status_code != 200
        except httpx.HTTPError:
            watch.failed += 1
        watch.asked += 1
        watch.slowest = max(watch.slowest, time.perf_counter() - start)
        watch.memory = max(watch.memory, resident(process))
    connection.send(vars(watch))


# Clients


def client_at(url: str, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """With as many connections as it likes."""
    transport = httpx.AsyncHTTPTransport(
        local_address=address, limits=httpx.Limits(max_connections=None, max_keepalive_connections=0)
    )
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=120)


async def work_as_ever(url: str) -> None:
    """Wait until nothing is made, remove what there is, make a clip, and remove it."""
    async with client_at(url) as client:
        await remove_jobs(client)
        answer = await client.post("/v1/audio/speech", json=speech(2))
        assert answer.status_code == 200, answer.text
        assert len(answer.content) == 2 * 2 * 24000, len(answer.content)
        await remove_jobs(client)


async def remove_jobs(client: httpx.AsyncClient) -> None:
    end = time.monotonic() + 60
    while jobs := (await client.get("/api/jobs", params={"limit": 100})).raise_for_status().json()["jobs"]:
        assert time.monotonic() < end, f"{len(jobs)} jobs stay"
        for job in jobs:
            await client.delete(f"/api/jobs/{job['id']}")


def speech(seconds: float) -> dict[str, object]:
    return {"input": "calm piano", "response_format": "pcm", "duration": seconds, "seed": 1}


def outcome(answer: httpx.Response, good: str) -> str:
    """`good`, or the status of a refusal that says when to try again, or what is wrong."""
    if answer.is_success:
        return good
    if answer.status_code in (429, 503) and "retry-after" not in answer.headers:
        return f"{answer.status_code} without Retry-After"
    return f"{answer.status_code}"


async def counted(visits: list[Awaitable[str]], at_once: int = 10**6) -> Counts:
    """How often each came out, `at_once` of them at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(visit: Awaitable[str]) -> str:
        async with places:
            try:
                return await visit
            except (httpx.HTTPError, OSError) as error:
                return repr(error)

    return Counter(await asyncio.gather(*map(one, visits)))


async def listen(url: str, clients: int) -> Counts:
    """To one clip while it is made, and to the events."""
    async with client_at(url) as client:
        job = (await client.post("/api/jobs", json=JOB)).raise_for_status().json()
        while not job["clips"]:
            job = (await client.get(f"/api/jobs/{job['id']}")).json()
        clip = job["clips"][0]["stream"]

        async def audio() -> str:
            async with client.stream("GET", clip, params={"format": "pcm"}) as answer:
                size = sum([len(part) async for part in answer.aiter_raw()])
                whole = size == 2 * SECONDS * RATE
                return outcome(answer, "whole" if whole else f"{size} bytes")

        async def events() -> str:
            async with client.stream("GET", "/api/events") as answer:
                async for line in answer.aiter_lines():
                    if '"done"' in line:
                        break
                return outcome(answer, "events")

        return await counted([audio() if i % 2 else events() for i in range(clients)])


async def listen_slowly(url: str, clients: int) -> Counts:
    """A few kilobytes a second, for ten seconds; another clip is made meanwhile as ever."""
    async with client_at(url) as client:
        job = (await client.post("/api/jobs", json=JOB | {"duration": 60})).raise_for_status().json()
        while not job["clips"]:
            job = (await client.get(f"/api/jobs/{job['id']}")).json()
        clip = job["clips"][0]["stream"]

        async def slow() -> str:
            end = time.monotonic() + 10
            async with client.stream("GET", clip, params={"format": "wav"}) as answer:
                async for _ in answer.aiter_raw(4096):
                    if time.monotonic() > end:
                        break
                    await asyncio.sleep(0.5)
                return outcome(answer, "slow")

        async def quick() -> str:
            answer = await client.post("/v1/audio/speech", json=speech(5))
            return outcome(answer, "whole" if len(answer.content) == 2 * 5 * 24000 else "not whole")

        return await counted([quick(), *(slow() for _ in range(clients))])


async def go_away(url: str, clients: int) -> Counts:
    """Before the answer, or after its first bytes; what they asked for isn't made then."""
    async with client_at(url) as client:

        async def gone(number: int) -> str:
            async with client.stream("POST", "/v1/audio/speech", json=speech(SECONDS)) as answer:
                async for _ in answer.aiter_raw():
                    break
                return outcome(answer, "gone")

        async def impatient(number: int) -> str:
            try:
                return await asyncio.wait_for(gone(number), 0.05 * (number % 20))
            except asyncio.TimeoutError:
                return "gone"

        counts = await counted([impatient(number) for number in range(clients)])
        end = time.monotonic() + 10
        while any(
            job["status"] in ("queued", "running")
            for job in (await client.get("/api/jobs", params={"limit": 100})).json()["jobs"]
        ):
            if time.monotonic() > end:
                counts["still made after 10 s"] += 1
                break
            await asyncio.sleep(0.1)
        return counts


async def flood(url: str, clients: int) -> Counts:
    """Of jobs, from three addresses."""
    addresses = [client_at(url, f"127.0.0.{number}") for number in (1, 2, 3)]

    async def ask(client: httpx.AsyncClient) -> str:
        return outcome(await client.post("/api/jobs", json=JOB), "202")

    counts = await counted([ask(client) for _ in range(clients) for client in addresses], at_once=60)
    made = clients * len(addresses)
    if (
        counts["202"] > WAITING + 24 or counts["429"] < made - WAITING - 24
    ):  # twelve are made, one after another
        counts["too many jobs"] += 1
    for client in addresses:
        await client.aclose()
    return counts


async def send_too_much(url: str, clients: int) -> Counts:
    """Bodies that say so, that are, and that never end."""
    port = int(url.rpartition(":")[2])

    async def says_so() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{UPLOAD}Content-Length: {10**10}\r\n\r\n".encode())
        status = (await reader.readline()).split()[1].decode()
        writer.close()
        return status

    async def is_long() -> str:
        return outcome(await client.post("/api/jobs", json={"prompt": "x" * 2_000_000}), "taken")

    async def endless() -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{UPLOAD}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        try:
            for _ in range(3000):  # 197 MB
                writer.write(part)
                await writer.drain()
        except OSError:
            return "cut off"
        finally:
            writer.close()
        return "never cut off"

    async with client_at(url) as client:
        short = [says_so() if i % 2 else is_long() for i in range(clients)]
        return await counted([*(endless() for _ in range(4)), *short], at_once=60)


async def stop_in_the_middle(url: str, clients: int) -> Counts:
    """Of their headers, or of a body: for three seconds."""
    port = int(url.rpartition(":")[2])

    async def stops(number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((UPLOAD + ("Content-Length: 1000\r\n\r\nRIFF" if number % 2 else "")).encode())
        await writer.drain()
        try:
            line = await asyncio.wait_for(reader.readline(), 3)
        except (asyncio.TimeoutError, OSError):
            line = b""
        writer.close()
        return line.split()[1].decode() if line else "closed"

    return await counted([stops(number) for number in range(clients)])


if __name__ == "__main__":
    sys.exit(main())

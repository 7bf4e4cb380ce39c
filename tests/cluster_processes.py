"""A scheduler and workers of Dask as processes of their own, on this machine's loopback address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Cluster:
    """A scheduler, and workers that join and leave. `folder` gets what they print."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.start_scheduler()

    def start_scheduler(self) -> None:
        words = ["scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        self._scheduler = self._start(words)
        while not self._answers():
            assert self._scheduler.poll() is None
            time.sleep(0.02)

    def start_worker(self, preload: str | None = None) -> subprocess.Popen[bytes]:
        """`preload` is run by it first, as `dask worker --preload` does."""
        words = ["worker", self.address, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"]
        if preload is not None:
            script = self._folder / f"preload{len(self._workers)}.py"
            script.write_text(preload)
            words += ["--preload", str(script)]
        self._workers.append(self._start(words))
        return self._workers[-1]

    def wait_for_worker(self) -> str:
        """Until the last worker has joined: its host and port."""
        log = self._folder / f"worker{len(self._workers) - 1}.log"
        while "Starting established connection" not in (text := log.read_text()):
            assert self._workers[-1].poll() is None, text
            time.sleep(0.02)
        return text.partition("Start worker at:")[2].split()[0].partition("//")[2]

    def kill_scheduler(self) -> None:
        assert self._scheduler is not None
        kill(self._scheduler)

    def close(self) -> None:
        for process in [*self._workers, self._scheduler]:
            if process is not None:
                kill(process)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def _start(self, words: list[str]) -> subprocess.Popen[bytes]:
        log = (self._folder / f"{words[0]}{len(self._workers)}.log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )


def environment() -> dict[str, str]:
    """With one thread, so that samples are equal to the last bit."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MUSICGEN_MLX_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def when(holds: Callable[[], bool], act: Callable[[], object], seconds: float = 30.0) -> threading.Thread:
    """In a thread, `act` as soon as `holds()`."""

    def wait() -> None:
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread

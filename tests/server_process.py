"""`musicgen-mlx-serve` with the demo model, as a process of its own on a port of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx

_PROGRAM = "from audiocraft_mlx.cli.serve import main; raise SystemExit(main())"


class ServerProcess:
    """It answers when this returns. `log` gets what it says on standard error; None: that of this process.

    `before` is Python that it runs first; `environment` is added to that of this process.
    """

    def __init__(
        self, data: Path, log: Path | None = None, before: str = "", environment: Mapping[str, str] = {}
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = ["-m", "demo", "--port", str(self.port), "--no-open", "--data", str(data)]
        with nullcontext() if log is None else log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{before}\n{_PROGRAM}", *words],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, **environment},
            )
        try:
            self._wait_for_answer()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def memory(self) -> float:
        """MB of its own."""
        return resident(self.pid)

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> int:
        """As the system's services do: the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(10)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait_for_answer(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
                return
            except httpx.HTTPError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise
                time.sleep(0.05)


@contextmanager
def serving(
    data: Path, log: Path | None = None, before: str = "", environment: Mapping[str, str] = {}
) -> Iterator[ServerProcess]:
    """Killed in the end if it wasn't stopped before."""
    server = ServerProcess(data, log, before, environment)
    try:
        yield server
    finally:
        server.kill()


def resident(process: int | None = None) -> float:
    """MB that a process, or this one, has of its own: what is of files the system may drop and read again."""
    status = Path(f"/proc/{process or 'self'}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024

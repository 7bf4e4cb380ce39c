"""Where a cluster is, as users write it. No Dask here: mistakes are answered at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from audiocraft_mlx.errors import UsageError

_MOST_WORKERS = 1000
_EXPECTED = "must be tcp://HOST:PORT, tls://HOST:PORT, local:N or ssh:FILE"


@dataclass(frozen=True)
class SchedulerAddress:
    """A scheduler that runs already."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class LocalWorkers:
    """Processes of this machine."""

    count: int

    def __str__(self) -> str:
        return f"local:{self.count}"


@dataclass(frozen=True)
class SSHHosts:
    """A file with machines, on which a scheduler and workers are started."""

    path: Path

    def __str__(self) -> str:
        return f"ssh:{self.path}"


ClusterAddress = SchedulerAddress | LocalWorkers | SSHHosts


@dataclass(frozen=True)
class SSHHost:
    """A machine; None is what the user's ssh configuration says."""

    name: str
    user: str | None = None
    port: int | None = None
    python: str | None = None
    """The Python that has this package there. Default: in the same place as here."""

    @property
    def connect_options(self) -> dict[str, str | int]:
        """What `asyncssh.connect` takes."""
        given = {"username": self.user, "port": self.port}
        return {name: value for name, value in given.items() if value is not None}


def parse_cluster(text: str) -> ClusterAddress:
    """Raises `UsageError`."""
    kind, _, rest = text.partition(":")
    if kind in ("tcp", "tls") and re.fullmatch(r"//(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}", rest):
        return SchedulerAddress(text)
    if kind == "local" and re.fullmatch("[0-9]{1,9}", rest, re.ASCII):
        if not 1 <= int(rest) <= _MOST_WORKERS:
            raise UsageError(f"local:N has 1 to {_MOST_WORKERS} workers, not {rest}")
        return LocalWorkers(int(rest))
    if kind == "ssh" and rest:
        return SSHHosts(Path(rest))
    raise UsageError(f"{_EXPECTED}, not {text!r}")


def read_hosts(path: Path) -> list[SSHHost]:
    """A machine a line: `[user@]host[:port] [python]`; empty lines and lines that begin with # are skipped.

    Raises `UsageError`.
    """
    from audiocraft_mlx.files import read_error

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise read_error(path, error, "give a file with a machine on each line") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not valid UTF-8; give a text with a machine on each line") from None
    hosts = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match = re.fullmatch(r"(?:([^@\s]+)@)?(\[[0-9a-fA-F:.]+\]|[^@:\s]+)(?::([0-9]{1,5}))?", words[0])
        if match is None or len(words) > 2:
            raise UsageError(f"{path}, line {number}: must be [user@]host[:port] [python], not {line!r}")
        user, name, port = match.groups()
        python = words[1] if len(words) == 2 else None
        hosts.append(SSHHost(name.strip("[]"), user, None if port is None else int(port), python))
    if not hosts:
        raise UsageError(f"{path} names no machine; write one on each line")
    return hosts

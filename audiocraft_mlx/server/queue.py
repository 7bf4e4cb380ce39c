"""Who is next: the clients take turns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Jobs of several clients: round robin by client, and in order for each of them."""

    def __init__(self) -> None:
        self._jobs: dict[str, list[T]] = {}
        """Of each client that has some; the client that is next comes first."""

    def add(self, client: str, job: T) -> None:
        self._jobs.setdefault(client, []).append(job)

    def remove(self, client: str, job: T) -> None:
        """Remove a job if it is there."""
        jobs = self._jobs.get(client, [])
        if job in jobs:
            jobs.remove(job)
        if not jobs:
            self._jobs.pop(client, None)

    def served(self, clients: Iterable[str]) -> None:
        """It is the others' turn."""
        for client in dict.fromkeys(clients):
            if client in self._jobs:
                self._jobs[client] = self._jobs.pop(client)

    def order(self) -> list[T]:
        """All jobs, the next one first."""
        rounds = zip_longest(*self._jobs.values())
        return [job for job in chain.from_iterable(rounds) if job is not None]

    def count(self, client: str | None = None) -> int:
        """Of a client, or of all."""
        if client is not None:
            return len(self._jobs.get(client, []))
        return sum(map(len, self._jobs.values()))

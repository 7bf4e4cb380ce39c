"""The machines of a cluster, as the command sees them: who joins, who leaves, and who makes which clip.

Dask carries tasks and results and tells which workers there are. Which one makes a clip is decided here: a
machine gets no more clips than it has slots, none with another version or without the model gets any, and
one that was lost has its clips made by others.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.clips.requests import ClipRequest
from audiocraft_mlx.cluster import tasks
from audiocraft_mlx.cluster.inputs import input_keys, read_inputs
from audiocraft_mlx.cluster.values import ClipTask, Failed, InputKey, MadeClip, ModelFacts, ModelSpec, Needs
from audiocraft_mlx.errors import ClusterError, MusicGenError, UsageError
from audiocraft_mlx.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

# How often it is asked which machines there are, and how long an answer may take.
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 10.0
# How long there may be no machine at all, and only such that can't do it.
_WAIT_SECONDS = 60.0
_NOTICE_SECONDS = 2.0
_REFUSED_SECONDS = 5.0
# A clip isn't tried again that took so many machines with it, or that failed on so many.
_MOST_LOST = 3
_MOST_FAILED = 2
# A machine gets no more work after so many failures in a row.
_MOST_IN_A_ROW = 3
# Files that a machine keeps, of those that clips are made from.
_MOST_INPUTS = 16


class _Lost(Exception):
    """The machine has gone, or the scheduler."""


@dataclass(eq=False)
class Machine:
    """One worker."""

    address: str
    host: str = ""
    state: str = "joining"
    """Or `ready`, `refused`, `gone`."""
    slots: int = 0
    running: dict[asyncio.Task[None], int] = field(default_factory=dict)
    """The clips that it makes, by what waits for each."""
    inputs: dict[InputKey, Future[Any]] = field(default_factory=dict)
    """What it has, of what clips are made from."""
    failures: int = 0
    """In a row."""
    clips: int = 0
    seconds: float = 0.0
    """Of music."""
    begun: float = 0.0
    ended: float = 0.0

    def __str__(self) -> str:
        place = self.address.partition("://")[2]
        return f"{self.host} ({place})" if self.host else place

    @property
    def speed(self) -> float:
        """Seconds of music a second, while it had clips."""
        return self.seconds / max(self.ended - self.begun, 1e-9)


@dataclass(frozen=True)
class _Outcome:
    machine: Machine
    clip: int
    made: MadeClip | None = None
    error: MusicGenError | None = None
    """None, and nothing made: the machine was lost."""


class Machines:
    """Those of one scheduler, for one model."""

    def __init__(
        self,
        client: Client,
        spec: ModelSpec,
        needs: Needs,
        report: Callable[[str], None],
        place: str,
    ) -> None:
        """`report` is told what the user should know; `place` is the cluster's address."""
        self._client, self._spec, self._needs = client, spec, needs
        self._report, self._place = report, place
        self._machines: dict[str, Machine] = {}
        self._all: list[Machine] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusals: list[str] = []
        self._facts: ModelFacts | None = None
        self._like: dict[str, str | None] | None = None
        self._told: set[str] = set()
        self._numbers, self._run_id = count(), uuid.uuid4().hex
        self._looked, self._served = 0.0, time.monotonic()
        self._waits = False
        """The user knows that there is no worker."""
        self._outcomes: asyncio.Queue[_Outcome] = asyncio.Queue()
        self._read: dict[InputKey, Any] = {}

    @property
    def used(self) -> list[Machine]:
        """Those that have made clips, in the order in which they joined."""
        return [machine for machine in self._all if machine.clips]

    async def facts(self) -> ModelFacts:
        """Of the model, from the first machine that is ready. Raises `ClusterError` if none can do it."""
        while self._facts is None:
            await self._look()
            await asyncio.sleep(0.05)
        return self._facts

    async def call(
        self, function: Callable[..., Any], *arguments: Any, inputs: Sequence[ClipRequest] | None = None
    ) -> Any:
        """What `function` returns on some machine, which gets the audio of `inputs` in two more arguments.

        Raises `ClusterError`.
        """
        while True:
            await self._look()
            ready = [machine for machine in self._machines.values() if machine.state == "ready"]
            if not ready:
                await asyncio.sleep(0.05)
                continue
            machine = min(ready, key=lambda machine: len(machine.running) / machine.slots)
            waiter = asyncio.create_task(self._call(machine, function, arguments, inputs))
            while not waiter.done():
                await asyncio.wait([waiter], timeout=_LOOK_SECONDS)
                await self._look()
                if machine.state == "gone":
                    waiter.cancel()
                    break
            with suppress(_Lost, asyncio.CancelledError):
                return await waiter

    async def make(
        self,
        clips: Sequence[int],
        task_of: Callable[[int], ClipTask],
        on_made: Callable[[int, MadeClip, Machine], None],
    ) -> dict[int, str]:
        """Make all `clips`; what is wrong with those that couldn't be made.

        Raises:
            ClusterError: there are no machines any more. What was told to `on_made` is made.
        """
        waiting, left = deque(clips), len(clips)
        lost: dict[int, int] = defaultdict(int)
        failed: dict[int, dict[Machine, str]] = defaultdict(dict)
        tries: dict[int, int] = defaultdict(int)
        hopeless: dict[int, str] = {}
        while left:
            await self._look()
            self._assign(waiting, failed, task_of)
            try:
                outcome = await asyncio.wait_for(self._outcomes.get(), _LOOK_SECONDS)
            except asyncio.TimeoutError:
                continue
            machine, clip = outcome.machine, outcome.clip
            if outcome.made is not None:
                left -= 1
                machine.failures = 0
                machine.clips += 1
                machine.seconds += outcome.made.seconds
                machine.ended = time.monotonic()
                on_made(clip, outcome.made, machine)
            elif outcome.error is None:
                lost[clip] += 1
                if lost[clip] < _MOST_LOST:
                    waiting.appendleft(clip)
                else:
                    left -= 1
                    hopeless[clip] = f"{_MOST_LOST} machines were lost that made it, the last one {machine}"
            else:
                tries[clip] += 1
                failed[clip][machine] = str(outcome.error)
                if isinstance(outcome.error, UsageError) or tries[clip] >= _MOST_FAILED:
                    left -= 1
                    hopeless[clip] = f"{machine}: {outcome.error}"
                else:
                    waiting.appendleft(clip)
                machine.failures += 1
                if machine.failures >= _MOST_IN_A_ROW and machine.state == "ready":
                    self._refuse(machine, str(outcome.error))
        return hopeless

    async def close(self) -> None:
        """Cancel what is still made."""
        waiting = [*self._tasks, *(task for machine in self._all for task in machine.running)]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for machine in self._all:
            machine.inputs.clear()

    async def _look(self) -> None:
        """Which machines there are now. Raises `ClusterError` if there is no use in waiting for any."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            addresses = await self._addresses()
            if addresses is not None:
                for address in addresses:
                    if address not in self._machines:
                        self._join(Machine(address))
                for machine in [m for m in self._machines.values() if m.address not in addresses]:
                    self._leave(machine)
        states = {machine.state for machine in self._machines.values()}
        if not states.isdisjoint({"ready", "joining"}):
            self._served, self._waits = time.monotonic(), False
            return
        idle = time.monotonic() - self._served
        if not states and idle > _NOTICE_SECONDS and not self._waits:
            self._waits = True
            self._report(f"{self._place} has no worker yet; waiting for one, {_WAIT_SECONDS:.0f} s at most")
        if "refused" in states and idle > _REFUSED_SECONDS:
            raise ClusterError(f"no machine can make these clips: {'; '.join(self._refusals[-10:])}")
        if idle > _WAIT_SECONDS:
            raise ClusterError(
                f"{self._place}: no worker was there for {_WAIT_SECONDS:.0f} s; start some (dask worker),"
                " then the same command with --skip-existing"
            )

    async def _addresses(self) -> set[str] | None:
        """None if the scheduler doesn't say."""
        if self._client.status == "closed":
            raise ClusterError(
                f"the scheduler at {self._place} is gone; start it and the workers again, then the same"
                " command with --skip-existing, which makes what is missing"
            )
        if self._client.status != "running":
            self._served = time.monotonic()  # it tries to reconnect, and gives up by itself
            return set()
        try:
            return {*await asyncio.wait_for(self._client.nthreads(), _ANSWER_SECONDS)}
        except (OSError, asyncio.TimeoutError):
            return None

    def _join(self, machine: Machine) -> None:
        self._machines[machine.address] = machine
        self._all.append(machine)

        async def join() -> None:
            try:
                await self._prepare(machine)
            except MusicGenError as error:
                self._refuse(machine, str(error))
            except _Lost:
                if self._machines.get(machine.address) is machine:
                    del self._machines[machine.address]  # if it is still there, it joins again

        self._start(join())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, machine: Machine) -> None:
        """Raises `MusicGenError` if it can't be used."""
        about: dict[str, str | None] = await self._submit(machine, tasks.describe_machine)
        machine.host = about.get("host") or ""
        if about.get("version") != __version__:
            raise ClusterError(
                f"it has musicgen-mlx {about.get('version')}, and this is {__version__}; install the same"
            )
        facts = await self._submit(machine, tasks.load_machine, self._spec, self._needs)
        if isinstance(facts, Failed):
            raise facts.error
        self._compare(machine, about)
        machine.slots, machine.state = facts.slots, "ready"
        self._facts = self._facts or facts

    def _compare(self, machine: Machine, about: dict[str, str | None]) -> None:
        """Tell if it may compute other codes than the first one."""
        self._like = self._like or about
        for name, what in (("mlx", "MLX"), ("extension", "extension"), ("processor", "processor")):
            mine, other = about.get(name), self._like.get(name)
            if mine != other and name not in self._told:
                self._told.add(name)
                self._report(
                    f"{machine} has another {what} than {self._like.get('host')} ({mine or 'none'}, not"
                    f" {other or 'none'}): a seed may give other music there"
                )

    def _refuse(self, machine: Machine, reason: str) -> None:
        machine.state = "refused"
        message = f"{machine}: {reason}"
        if message not in self._refusals:
            self._refusals.append(message)
            self._report(f"{message}; it makes no clips")

    def _leave(self, machine: Machine) -> None:
        del self._machines[machine.address]
        if machine.state == "ready":
            lost = len(machine.running)
            what = {0: "", 1: "; its clip is made anew"}.get(lost, f"; its {lost} clips are made anew")
            self._report(f"{machine} is gone{what}")
        machine.state = "gone"
        machine.inputs.clear()
        for task in machine.running:
            task.cancel()

    def _assign(
        self,
        waiting: deque[int],
        failed: dict[int, dict[Machine, str]],
        task_of: Callable[[int], ClipTask],
    ) -> None:
        """Give clips to machines with a free slot, the most free one first.

        While others load the model, one takes no more than leaves these as many.
        """
        ready = [machine for machine in self._machines.values() if machine.state == "ready"]
        expected = sum(machine.state in ("ready", "joining") for machine in self._machines.values())
        left = len(waiting) + sum(len(machine.running) for machine in ready)
        while waiting:
            free = [m for m in ready if len(m.running) < min(m.slots, -(-left // expected))]
            if not free:
                return
            clip = waiting[0]
            others = [machine for machine in free if machine not in failed.get(clip, {})]
            if not others and any(machine not in failed[clip] for machine in ready):
                return  # one that may be able to will be free soon
            machine = min(others or free, key=lambda machine: len(machine.running) / machine.slots)
            waiting.popleft()
            machine.begun = machine.begun or time.monotonic()
            task = asyncio.create_task(self._make(machine, clip, task_of(clip)))
            machine.running[task] = clip

    async def _make(self, machine: Machine, clip: int, task: ClipTask) -> None:
        outcome = _Outcome(machine, clip)
        try:
            result = await self._call(machine, tasks.make_clip, (task,), [task.request])
            if isinstance(result, Failed):
                outcome = _Outcome(machine, clip, error=result.error)
            else:
                outcome = _Outcome(machine, clip, result)
        except _Lost:
            machine.inputs.clear()  # another process may have its address now
        except MusicGenError as error:
            outcome = _Outcome(machine, clip, error=error)
        finally:
            current = asyncio.current_task()
            if current is not None:
                machine.running.pop(current, None)
            self._outcomes.put_nowait(outcome)

    async def _call(
        self,
        machine: Machine,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        inputs: Sequence[ClipRequest] | None,
    ) -> Any:
        if inputs is None:
            return await self._submit(machine, function, *arguments)
        given: dict[InputKey, Future[Any]] = {}
        for request in inputs:
            for key in input_keys(request):
                given[key] = await self._input(machine, request, key)
        return await self._submit(machine, function, *arguments, [*given], [*given.values()])

    async def _input(self, machine: Machine, request: ClipRequest, key: InputKey) -> Future[Any]:
        """What is in a file, on a machine that needs it. It is sent there once."""
        if key in machine.inputs:
            machine.inputs[key] = machine.inputs.pop(key)  # the last one of all
            return machine.inputs[key]
        if key not in self._read:
            if len(self._read) >= _MOST_INPUTS:
                del self._read[next(iter(self._read))]
            self._read |= read_inputs(request)
        try:
            future = await self._client.scatter(
                self._read[key], workers=[machine.address], hash=False, broadcast=False
            )
        except (OSError, asyncio.TimeoutError, CancelledError) as error:
            raise _Lost from error
        machine.inputs[key] = future
        while len(machine.inputs) > _MOST_INPUTS:
            del machine.inputs[next(iter(machine.inputs))]
        return future

    async def _submit(self, machine: Machine, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns on that machine, and on no other one.

        Raises:
            _Lost: the machine has gone.
            MusicGenError: what went wrong there.
        """
        from distributed import KilledWorker

        name = f"musicgen-mlx-{function.__name__}-{self._run_id}-{next(self._numbers)}"
        try:
            future = self._client.submit(
                function,
                *arguments,
                key=name,
                workers=[machine.address],
                allow_other_workers=False,
                pure=False,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise _Lost from error
        try:
            return await future.result()
        except (CancelledError, KilledWorker, OSError) as error:
            raise _Lost from error
        except (ImportError, AttributeError) as error:
            raise ClusterError(
                f"it has no musicgen-mlx {__version__} ({error}); install the same as here"
            ) from error
        except Exception as error:
            raise ClusterError(f"{type(error).__name__}: {error}") from error
        finally:
            future.release()

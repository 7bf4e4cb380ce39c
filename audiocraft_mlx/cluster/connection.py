"""A cluster's address → a client of its scheduler, and of the workers that are started for it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from audiocraft_mlx.cluster.address import (
    ClusterAddress,
    LocalWorkers,
    SchedulerAddress,
    SSHHosts,
    read_hosts,
)
from audiocraft_mlx.cluster.engine import THREADS_ENV_VAR
from audiocraft_mlx.errors import ClusterError, UsageError
from audiocraft_mlx.machine import num_cpus

if TYPE_CHECKING:
    from distributed import Client

_INSTALL = "pip install 'musicgen-mlx[cluster]'"
# For a scheduler that is started again, too.
_CONNECT_SECONDS = 30
_NOTICE_SECONDS = 1.0


def require_dask(address: ClusterAddress) -> None:
    """Raise `UsageError` if what `address` needs isn't installed."""
    needed = ["distributed", *(["asyncssh"] if isinstance(address, SSHHosts) else [])]
    for name in needed:
        if find_spec(name) is None:
            raise UsageError(f"--cluster needs {name}, which is missing: {_INSTALL}")


@asynccontextmanager
async def connect(address: ClusterAddress, report: Callable[[str], None]) -> AsyncIterator[Client]:
    """A client, for as long as the context lasts; so long live the workers that this starts.

    `report` is told when a scheduler doesn't answer at once.

    Raises:
        ClusterError: nobody answers there, or workers can't be started.
        UsageError: the file of machines can't be used.
    """
    import dask

    # The client tells what there is to tell.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="distributed")
    with dask.config.set({"distributed.comm.timeouts.connect": _CONNECT_SECONDS}):
        try:
            cluster = await _started(address)
        except UsageError:
            raise
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise ClusterError(f"{address}: workers can't be started: {_first_line(error)}") from error
        try:
            client = await _connected(address, cluster, report)
            try:
                yield client
            finally:
                await client.close(timeout=5)
        finally:
            if cluster is not None:
                await cluster.close(timeout=5)


async def _connected(address: ClusterAddress, cluster: Any, report: Callable[[str], None]) -> Client:
    """A client of the scheduler at `address`, or of the `cluster` that was started. Raises `ClusterError`."""
    from distributed import Client

    def tell() -> None:
        if cluster is None:
            report(f"no scheduler answers at {address} yet; waiting for one, {_CONNECT_SECONDS} s at most")

    notice = get_running_loop().call_later(_NOTICE_SECONDS, tell)
    try:
        return await Client(
            address.url if isinstance(address, SchedulerAddress) else cluster,
            asynchronous=True,
            set_as_default=False,
        )
    except TypeError as error:  # Dask's, of an SSL context that it doesn't have
        raise ClusterError(
            f"{address} needs certificates, and Dask's configuration names none;"
            " docs/CLUSTER.md says how (TLS)"
        ) from error
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"no scheduler answers at {address} ({_first_line(error)}); start one (dask scheduler),"
            " or look whether the address and the certificates are right"
        ) from error
    finally:
        notice.cancel()


async def _started(address: ClusterAddress) -> Any:
    """The cluster that belongs to this command; None for one that runs already."""
    if isinstance(address, LocalWorkers):
        from distributed import LocalCluster

        threads = os.environ.get(THREADS_ENV_VAR, str(max(1, num_cpus() // address.count)))
        return await LocalCluster(
            n_workers=address.count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            # What is right for arrays that are swapped out: a model is not. The slots are by memory.
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            asynchronous=True,
            env={THREADS_ENV_VAR: threads},
        )
    if isinstance(address, SSHHosts):
        from distributed import SSHCluster

        hosts = read_hosts(address.path)
        # The first machine has the scheduler, beside its worker.
        all_hosts = [hosts[0], *hosts]
        return await SSHCluster(
            [host.name for host in all_hosts],
            connect_options=[host.connect_options for host in all_hosts],
            worker_options={"nthreads": 1, "memory_limit": 0, "death_timeout": 60},
            scheduler_options={"port": 0, "dashboard": False},
            remote_python=[host.python or sys.executable for host in all_hosts],
            asynchronous=True,
        )
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

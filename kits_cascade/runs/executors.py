"""Where worker loops run: processes of this machine, one for each GPU or as many as asked for, or a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from kits_cascade.errors import MissingExtraError, UsageError
from kits_cascade.parallel import default_jobs

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_DEVICE_FILES: Final = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA's, AMD's, and Windows' under Linux
_PATIENCE_SECONDS: Final = 15.0  # for a worker that was told to end; more than a run needs to end tidily


class Processes:
    """An executor whose workers die alone: each piece of work has a process of its own, with an environment of its own.

    The one of concurrent.futures ends all of its processes when one of them has died; so here each has only one.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for environment in environments:
            self._free.put(environment)
        self._pools: list[ProcessPoolExecutor] = []
        self._lines: list[Connection] = []

    def submit(self, work: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Start a process for this work, as soon as an environment is free."""
        environment = self._free.get()
        # A line that the process listens at: it hears when we close it, and when we die. (An event would not do:
        # setting it waits for all who wait for it, and who was killed never answers.)
        far, near = self._context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, mp_context=self._context, initializer=_set_up, initargs=(dict(environment), far))
        self._pools.append(pool)
        self._lines.append(near)
        future: Future[Any] = pool.submit(work, *arguments)
        far.close()  # the process has its own by now
        future.add_done_callback(lambda _: self._free.put(environment))
        return future

    def close(self) -> None:
        """End what is still running, tidily."""
        for line in self._lines:
            line.close()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _set_up(environment: Mapping[str, str], line: Connection) -> None:
    """In the new process, before it loads anything: numpy and torch read these once."""
    os.environ.update(environment)
    count = environment.get(THREAD_VARIABLES[0])
    if count is not None:
        _limit_loaded(int(count))
    # Ctrl-C reaches all processes of a terminal: the parent alone answers, and tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_when_told, args=(line,), daemon=True).start()


def _limit_loaded(count: int) -> None:
    """Libraries that are loaded already, as where the user's own script does so on top, are told."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(count, "blas")


def _end_when_told(line: Connection) -> None:
    line.poll(None)  # until the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_PATIENCE_SECONDS)
    os._exit(1)


def worker_environments(
    workers: str, device: str = "auto", threads: int | None = None, variables: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """For ``--workers N|auto``: one worker for each visible device (without any: one), or N that share them in turn."""
    if workers != "auto" and not (workers.isdigit() and int(workers) > 0):
        raise UsageError(f"--workers {workers}: give a number of processes, or auto (one for each visible GPU)")
    if ":" in device:
        raise UsageError(f"--workers gives each worker its device: --device cuda, not {device}")
    devices = visible_devices(variables) if device in ("auto", "cuda") else []
    count = max(len(devices), 1) if workers == "auto" else int(workers)
    each = str(max(1, (threads or default_jobs()) // count))
    environments = [dict.fromkeys(THREAD_VARIABLES, each) for _ in range(count)]
    for number, environment in enumerate(environments if devices else ()):
        environment[_VISIBLE] = devices[number % len(devices)]
    return environments


def visible_devices(variables: Mapping[str, str] = os.environ) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, by number, UUID or MIG instance; without it, all that there are."""
    named = variables.get(_VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if sys.platform == "linux" and not any(any(Path("/dev").glob(pattern)) for pattern in _DEVICE_FILES):
        return []  # told without torch, which takes seconds to load
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def local_workers(environments: Sequence[Mapping[str, str]]) -> Iterator[tuple[Processes, int]]:
    """Processes of this machine, and how many."""
    processes = Processes(environments)
    try:
        yield processes, len(environments)
    finally:
        processes.close()


@contextmanager
def dask_workers(cluster: str) -> Iterator[tuple[Any, int]]:
    """For ``--dask SCHEDULER|local:N``: an executor of the cluster, and how many workers it has now."""
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingExtraError("dask", "dask") from error
    with ExitStack() as stack:
        try:
            client = stack.enter_context(Client(stack.enter_context(_local_cluster(cluster)), timeout="30s"))
        except (OSError, ValueError) as error:
            answer = f"no scheduler answers there ({error})"
            raise UsageError(f"--dask {cluster}: {answer}; give HOST:PORT or local:N") from error
        count = len(client.nthreads())
        if not count:
            raise UsageError(f"--dask {cluster}: this cluster has no workers yet; start them first")
        yield client.get_executor(pure=False), count


@contextmanager
def open_executor(
    workers: str | None, dask: str | None, device: str, threads: int | None = None
) -> Iterator[tuple[Any, int]]:
    """Where work is sent by ``--workers`` or ``--dask``, and to how many; without either, None: it is done here."""
    if workers is not None and dask is not None:
        raise UsageError("give --workers or --dask, not both")
    if workers is not None:
        with local_workers(worker_environments(workers, device, threads)) as found:
            yield found
    elif dask is not None:
        with dask_workers(dask) as found:
            yield found
    else:
        yield None, 0


@contextmanager
def open_dask(cluster: str | None) -> Iterator[Any]:
    """The executor of a cluster; None without one."""
    if cluster is None:
        yield None
        return
    with dask_workers(cluster) as (executor, _):
        yield executor


@contextmanager
def _local_cluster(cluster: str) -> Iterator[Any]:
    kind, _, number = cluster.partition(":")
    if kind != "local":
        yield cluster
        return
    if not number.isdigit() or int(number) < 1:
        raise UsageError(f"--dask {cluster}: give local:N, with a number of processes")
    from distributed import LocalCluster

    # No port of its own for a dashboard, and no limit of memory: a worker that is ended for it costs its case a try.
    environment = dict.fromkeys(THREAD_VARIABLES, str(max(1, default_jobs() // int(number))))
    with LocalCluster(
        n_workers=int(number), threads_per_worker=1, dashboard_address=None, memory_limit=0, env=environment
    ) as local:
        yield local

"""Work on many cases in several processes, case by case, such that one bad case never takes the others along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

from kits_cascade.errors import CaseError, KitsCascadeError

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int, str], None]  # finished, total, name of the case


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one item: its result, or the reason why there is none."""

    name: str
    result: Result | None = None
    failure: str | None = None


def default_jobs() -> int:
    """The processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_cases(
    work: Callable[[Item], Result],
    items: Sequence[tuple[str, Item]],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome[Result]]:
    """Call ``work`` for each named item, and yield the outcomes as they come in.

    Known errors of one case become its outcome; any other exception ends the whole. With one job nothing is started.
    """
    jobs = min(jobs or default_jobs(), len(items))
    outcomes = _here(work, items) if jobs <= 1 else _in_processes(work, items, jobs)
    for done, outcome in enumerate(outcomes, start=1):
        if progress is not None:
            progress(done, len(items), outcome.name)
        yield outcome


def _here(work: Callable[[Item], Result], items: Iterable[tuple[str, Item]]) -> Iterator[Outcome[Result]]:
    for name, item in items:
        yield _guarded(work, name, item)


def _in_processes(
    work: Callable[[Item], Result], items: Sequence[tuple[str, Item]], jobs: int
) -> Iterator[Outcome[Result]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)
    try:
        futures: list[Future[Outcome[Result]]] = [pool.submit(_guarded, work, name, item) for name, item in items]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise KitsCascadeError(
            f"one of {jobs} worker processes was ended from outside, most often because memory ran out; "
            "what is finished is kept: run the same again with fewer jobs (-j)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _guarded(work: Callable[[Item], Result], name: str, item: Item) -> Outcome[Result]:
    try:
        return Outcome(name, work(item))
    except CaseError as error:
        return Outcome(name, failure=error.reason)
    except KitsCascadeError as error:
        return Outcome(name, failure=str(error))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: it ends itself instead.

    Ctrl-C reaches all processes of a terminal: the parent alone answers, and lets the cases in work be finished.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

"""One worker's loop over the cases of a folder, as something that can be sent to another process or machine.

Loops are sent, not cases: the networks are loaded once a worker, and which worker takes which case is decided by
claims, as always. A loop that is sent again, because its worker has died, only does what is left.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kits_cascade.errors import KitsCascadeError
from kits_cascade.inference.cascade import Cascade
from kits_cascade.runs.events import Listener, Summary
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.runner import Runner
from kits_cascade.volumes.find import InputCase


@dataclass(frozen=True)
class Job:
    """What is to be done, and how; all of it can be pickled if ``load`` can."""

    out: Path
    load: Callable[[], Cascade]
    device: str = ""
    models: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    wait: bool = False
    verify: bool = False
    retry: bool = False
    kind: str = ""  # of the device

    def manifest(self, run_id: str | None = None) -> RunManifest:
        """The folder's manifest; workers of one run have its id."""
        manifest = RunManifest(
            self.out, device=self.device, models=self.models, options=self.options, about=self.about, kind=self.kind
        )
        manifest.run_id = run_id or manifest.run_id
        return manifest

    def run(
        self,
        cases: Sequence[InputCase],
        listener: Listener | None = None,
        run_id: str | None = None,
        first: int | None = None,
    ) -> Summary:
        """Work on the cases in this process, beginning with the one of that number."""
        runner = Runner(
            self.load,
            self.out,
            self.manifest(run_id),
            self.overwrite,
            listener,
            wait=self.wait,
            verify=self.verify,
            retry=self.retry,
            first=first,
        )
        return runner.run(cases)


def run_loop(job: Job, cases: Sequence[InputCase], run_id: str, first: int) -> str:
    """What an executor is handed; why it had to stop, or nothing. Whoever is told looks at the records for the rest."""
    try:
        with interrupted_by_sigterm():
            job.run(cases, run_id=run_id, first=first)
    except KeyboardInterrupt:
        return "interrupted"
    except KitsCascadeError as error:
        return str(error)
    except Exception as error:  # such as torch's: the caller need not have the class to unpickle it
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM interrupt, here and in the commands that are started, also where Ctrl-C was not heeded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupted_by_sigterm():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """A scheduler's or container's SIGTERM ends the run as Ctrl-C does: tidily, with nothing lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""A folder that series come into, predicted one by one as they stop growing; labels, SEG and SR go to another folder.

Nothing is kept in memory alone that a restart would miss: what is finished stands in the output folder's records, what
has been sent in a mark beside them, and a series that was in work when the process was killed is worked on again.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.files import digest, link_or_copy, read_json, write_json
from kits_cascade.inference.cascade import Cascade
from kits_cascade.runs.events import Listener, Summary
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.runner import Runner
from kits_cascade.service.arrivals import Arrival, Arrivals, is_uid
from kits_cascade.volumes.find import InputCase

log = logging.getLogger(__name__)
Send = Callable[[Sequence[Path]], None]  # may raise KitsCascadeError: then it is tried again


@dataclass
class Watcher:
    """Works on what has arrived; ``send`` hands the DICOM results of a case on."""

    arrivals: Arrivals
    out: Path
    manifest: RunManifest
    load: Callable[[], Cascade]
    send: Send | None = None
    listener: Listener | None = None
    tell: Callable[[str], None] = log.warning
    failed: dict[str, Arrival] = field(default_factory=dict)
    _cascade: Cascade | None = None

    def check(self) -> None:
        """Refuse folders that would make the results arrive again."""
        source, out = self.arrivals.folder.resolve(), self.out.resolve()
        if not source.is_dir():
            raise UsageError(f"{self.arrivals.folder}: no such folder")
        if out == source or source in out.parents:
            raise UsageError(f"{self.out} lies in the watched folder; choose another one for the results")

    def turn(self) -> Summary:
        """Look once, and work on all that has stopped growing."""
        self.arrivals.look()
        self._forget_gone()
        # A series that has failed is tried again when something has been added to it.
        ready = [arrival for arrival in self.arrivals.settled if self.failed.get(arrival.uid) != arrival]
        cases = [self._lay_out(arrival) for arrival in ready]
        waiting = [case for case in cases if not self.manifest.is_done(case.name, case.path)]
        summary = (
            Runner(self._loaded, self.out, self.manifest, False, self.listener).run(waiting) if waiting else Summary()
        )
        self.failed |= {arrival.uid: arrival for arrival in ready if arrival.uid in summary.failed}
        if self.send is not None:
            for case in cases:
                self._hand_on(case, self.send)
        return summary

    @property
    def idle(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self.arrivals.growing

    def _loaded(self) -> Cascade:
        """The networks, loaded when the first series has come, and kept."""
        self._cascade = self._cascade or self.load()
        return self._cascade

    @property
    def _folder(self) -> Path:
        return self.manifest.state / "series"

    def _lay_out(self, arrival: Arrival) -> InputCase:
        """The files of a series in a folder of its own, as links: they may lie among those of others."""
        folder = self._folder / arrival.uid
        wanted = {f"{digest(str(path))}.dcm": (path, stamp) for path, stamp in arrival.files}
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name, (path, stamp) in wanted.items():
            there = folder / name
            if not there.exists() or (there.stat().st_size, there.stat().st_mtime_ns) != stamp:
                link_or_copy(path, there)
        return InputCase(arrival.uid, folder, "dicom")

    def _forget_gone(self) -> None:
        """Our links to series that have been taken out of the watched folder would keep their space in use."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if is_uid(folder.name) and folder.name not in self.arrivals.uids:
                    shutil.rmtree(folder, ignore_errors=True)

    def _hand_on(self, case: InputCase, send: Send) -> None:
        record = self.manifest.record(case.name)
        files = sorted((self.out / "dicom" / case.name).glob("[!.]*.dcm"))
        if record is None or record.status != "done" or not files:
            return
        mark = self.manifest.state / "sent" / f"{case.name}.json"
        content = {"result": record.result, "run": record.run}
        if mark.exists() and read_json(mark) == content:
            return
        try:
            send(files)
        except KitsCascadeError as error:
            self.tell(f"{case.name}: not sent, will be tried again: {error}")
            return
        write_json(mark, content)


def watch(watcher: Watcher, poll: float, once: bool = False, sleep: Callable[[float], None] = time.sleep) -> Summary:
    """Work for ever; ``once``: until all that is there has been worked on. The last turn's summary."""
    watcher.check()
    total = Summary()
    while True:
        summary = watcher.turn()
        total.done += summary.done
        total.failed |= summary.failed
        if once and watcher.idle:
            return total
        sleep(poll)

"""Progress on a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from kits_cascade.parallel import Progress

if TYPE_CHECKING:
    from kits_cascade.data.transfer import Meter

_LINE_SECONDS: Final = 5.0


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Progress]:
    """A callback (done, total, what) that draws a bar with the time left; in a log file it writes a line a step."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda done, total, what: None  # a quiet console would still lay out each line, thousands of them
        return
    if not console.is_terminal:
        yield lambda done, total, what: console.print(f"{title}: {done}/{total} {what}", markup=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Bar(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, what="")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)


@contextmanager
def transfer_bar(title: str) -> Iterator[Callable[[Meter], None]]:
    """A callback that draws a bar; in a log file it writes a line every few seconds."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(title, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, files="")
        yield lambda meter: progress.update(
            task, completed=meter.done, total=meter.total, files=f"{meter.files_done}/{meter.files} files"
        )


class _Lines:
    """The same in words."""

    def __init__(self, title: str, console: Console) -> None:
        self.title, self.console = title, console
        self.begin = self.last = time.monotonic()

    def __call__(self, meter: Meter) -> None:
        now = time.monotonic()
        if now - self.last < _LINE_SECONDS and meter.files_done < meter.files:
            return
        self.last = now
        self.console.print(f"{self.title}: {describe(meter, now - self.begin)}", markup=False)


def describe(meter: Meter, seconds: float) -> str:
    """Such as: 12/978 files, 1.2 GB of about 30.1 GB, 35.0 MB/s, 13:45 left."""
    parts = [f"{meter.files_done}/{meter.files} files", decimal(meter.done)]
    speed = meter.done / max(seconds, 1e-3)
    if meter.total is not None:
        parts[1] += f" of about {decimal(max(meter.total, meter.done))}"
    parts.append(f"{decimal(int(speed))}/s")
    if meter.total is not None and speed:
        left = round(max(0, meter.total - meter.done) / speed)
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)

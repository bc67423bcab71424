"""Progress on a terminal, plain lines where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Callback = Callable[[int, int, str], None]


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callback]:
    """A callback (done, total, what) that draws a bar with the time left; in a log file it writes a line a step."""
    console = Console(stderr=True, quiet=quiet, highlight=False)
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
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, what="")
        yield lambda done, total, what: progress.update(task, completed=done, total=total, what=what)

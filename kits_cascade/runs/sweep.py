"""What killed processes have left behind in an output folder goes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from kits_cascade.files import TEMPORARY_MARK, sweep_temporary
from kits_cascade.runs.records import STATE


def sweep_strays(out: Path) -> None:
    """Remove half-written files; only to be called while nobody works in the folder."""
    state = out / STATE
    places = [out, out / "probabilities", *(out / "stages").glob("*"), state, *state.glob("*")]
    for place in places:
        if place.is_dir():
            sweep_temporary(place)


def sweep_own_strays(folder: Path) -> None:
    """Remove half-written files of this process."""
    for path in folder.glob(f"{TEMPORARY_MARK}{os.getpid()}-*"):
        with suppress(OSError):
            path.unlink(missing_ok=True)

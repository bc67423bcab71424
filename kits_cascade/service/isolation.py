"""A client's file is read by a process of its own: a bomb or a crash takes that one along, and not the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from kits_cascade.files import read_json
from kits_cascade.service import reader
from kits_cascade.service.uploads import Limits, RefusedError

_ONE_THREAD: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip
_LONGEST_ANSWER: Final = 1 << 16
COMMAND: Final = (sys.executable, "-m", reader.__name__)


def run_apart(task: str, folder: Path, limits: Limits, command: tuple[str, ...] = COMMAND) -> None:
    """Have a task of :mod:`.reader` done in ``folder``, within the limits. Raises RefusedError."""
    place = folder.resolve()
    try:
        ended = subprocess.run(
            [*command, task, str(place), json.dumps(asdict(limits))],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=place.anchor, env=_environment(), timeout=limits.read_seconds, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RefusedError(f"reading it takes longer than {limits.read_seconds:g} s") from error
    refused = _answer(place / reader.ANSWER) if ended.returncode == 0 else None
    if refused is None:
        raise RefusedError("reading it went beyond the limits, or broke the program that reads")
    if refused:
        raise RefusedError(refused)


def _environment() -> dict[str, str]:
    """Ours, without the token; modules are found where we find them, and never where the client's files lie."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KITS_CASCADE_")}
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return kept | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _answer(path: Path) -> str | None:
    """Why the task was not done, or nothing; None where the process has not come to say it."""
    try:
        if path.stat().st_size > _LONGEST_ANSWER:
            return None
        return str(read_json(path)["refused"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    finally:
        path.unlink(missing_ok=True)

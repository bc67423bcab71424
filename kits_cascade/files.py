"""Files that are whole or not there: everything is written to a temporary name and moved."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

# Strays of a killed process are recognised by this mark, and swept by the next run over the same folder.
TEMPORARY_MARK: Final = ".kc-tmp-"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes ``target`` when the block ends well, and vanishes when not.

    The temporary name ends as the target does, so that writers which look at the ending work on it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f"{TEMPORARY_MARK}{os.getpid()}-", suffix=f"-{target.name}", dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _open_permissions(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _open_permissions(path: Path) -> None:
    """mkstemp makes files private; give them what the user's umask says."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(target: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table atomically, its header as the first row; the same rows give the same bytes everywhere."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(target, text.getvalue())


def write_json(target: Path, content: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def locked(lock_file: Path, seconds: float = -1) -> Iterator[None]:
    """One process at a time; where the file system knows no locks, or none is to be had in time, go on without."""
    from filelock import FileLock

    lock = FileLock(lock_file, timeout=seconds)
    with suppress(OSError, NotImplementedError):  # Timeout is an OSError too
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sweep_temporary(folder: Path) -> int:
    """Remove what killed processes left in ``folder`` (not in its subfolders); how many files that were.

    Files of living processes of this machine stay.
    """
    swept = 0
    for path in folder.glob(f"{TEMPORARY_MARK}*"):
        pid = path.name[len(TEMPORARY_MARK) :].split("-", 1)[0]
        if pid.isdigit() and int(pid) != os.getpid() and _alive(int(pid)):
            continue
        path.unlink(missing_ok=True)
        swept += 1
    return swept


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def link_or_copy(source: Path, target: Path, *, copy: bool = False) -> str:
    """Put the file ``source`` at ``target`` too, without a second copy where the file system allows; says how.

    A hard link is preferred: it stays whole when the source folder is moved or deleted. Where there can be none
    (another file system, or files of another user) a symbolic link does, and where even that cannot be, or with
    ``copy``, a copy.
    """
    source = source.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_MARK}{os.getpid()}-{target.name}")
    temporary.unlink(missing_ok=True)
    how = "copy"
    if not copy and _made(temporary.hardlink_to, source):
        how = "hard link"
    elif not copy and _made(temporary.symlink_to, source):
        how = "symbolic link"
    if how == "copy":
        with atomic_path(target) as copied:
            shutil.copyfile(source, copied)
        return how
    try:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # moving one name of a file onto another of the same file leaves both
    return how


def _made(link: Callable[[Path], None], source: Path) -> bool:
    try:
        link(source)
    except OSError:
        return False
    return True


def checksum(path: Path, mark: Any) -> str:
    """Of a file, by one of hashlib's objects, which may have seen something before."""
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            mark.update(chunk)
    return str(mark.hexdigest())


def sha256(path: Path) -> str:
    """Checksum of a file."""
    return checksum(path, hashlib.sha256())


def digest(content: Any) -> str:
    """A short mark of anything that JSON can hold: equal content, equal mark."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

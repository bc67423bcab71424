"""What code a network is made by, so that what an engine has kept never outlives it.

Packages stand by their versions and our own code by its text. For foreign code it is recorded which files were loaded
when the network was built: that is looked at again before the network is taken.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from kits_cascade.files import digest
from kits_cascade.models.network import file_checksum
from kits_cascade.processor import PROCESS_BEGAN

_PACKAGES: Final = ("openvino", "torch", "dynamic_network_architectures", "nnunetv2", "monai")
_CODE: Final = (
    "training/networks/*.py",
    "training/architecture.py",
    "training/augment.py",
    "training/prior.py",
    "inference/nnunet/*.py",
)
_OURS: Final = Path(__file__).parents[2]
_INSTALLED: Final = ("site-packages", "dist-packages")
_DESCRIPTIONS: Final = (".dist-info", ".egg-info", ".egg-link")
_ALL_INSTALLED: Final = "installed"  # beside the paths of files


@lru_cache(maxsize=1)
def own_mark() -> str:
    """Of the packages that all networks are made of, and of our own code."""
    files = sorted(path for pattern in _CODE for path in _OURS.glob(pattern))
    return digest([dict(_versions()), [file_checksum(path) for path in files]])


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


def foreign_code() -> dict[str, str] | None:
    """Checksums of all files that this process has loaded and nobody has installed, and a mark of what is installed.

    None where any of it may have been written since it was loaded. What was changed in memory alone is not seen.
    """
    try:
        paths = sorted(_loaded())
        newest = [max(state.st_mtime, state.st_ctime) for state in map(Path.stat, paths)]
        if any(time >= PROCESS_BEGAN for time in (*newest, *(time for _, time in _installed()))):
            return None
        return {**{str(path): file_checksum(path) for path in paths}, _ALL_INSTALLED: digest(_installed())}
    except OSError:
        return None


def is_unchanged(code: Mapping[str, str]) -> bool:
    """Whether what was recorded is as it was; true of nothing, as of networks that no foreign code makes."""
    try:
        return all((digest(_installed()) if name == _ALL_INSTALLED else file_checksum(Path(name))) == mark
                   for name, mark in code.items())  # fmt: skip
    except OSError:
        return False


def _loaded() -> Iterator[Path]:
    standard = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        place = spec.origin if isinstance(spec, ModuleSpec) and spec.has_location else None
        if name == "__main__" and place is None and str(getattr(module, "__file__", "")).endswith(".py"):
            place = module.__file__  # a script; the command itself has no such ending
        if not place:
            continue  # built in, a folder, or made up, as some of PyTorch's are
        path = Path(place)
        if not (place.startswith(standard) or _OURS in path.parents or set(_INSTALLED) & set(path.parts)):
            yield path


@lru_cache(maxsize=1)
def _installed() -> list[tuple[str, float]]:
    """All packages: their folders are called by name and version, and their lists of files are as old as they."""
    found = []
    for place in sys.path:
        if isinstance(place, str) and place.endswith(_INSTALLED):
            with contextlib.suppress(OSError), os.scandir(place) as entries:
                found += [(e.name, e.stat().st_mtime) for e in entries if e.name.endswith(_DESCRIPTIONS)]
    return sorted(found)

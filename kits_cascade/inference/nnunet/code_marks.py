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
from kits_cascade.processor import process_began

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

    None where one of them may have been written since it was loaded.
    """
    began = process_began()
    try:
        paths = sorted(_loaded())
        if any(path.stat().st_mtime >= began for path in paths):
            return None
        return {**{str(path): file_checksum(path) for path in paths}, _ALL_INSTALLED: _installed()}
    except OSError:
        return None


def is_unchanged(code: Mapping[str, str]) -> bool:
    """Whether what was recorded is as it was; true of nothing, as of networks that no foreign code makes."""
    try:
        return all((_installed() if name == _ALL_INSTALLED else file_checksum(Path(name))) == mark
                   for name, mark in code.items())  # fmt: skip
    except OSError:
        return False


def _loaded() -> Iterator[Path]:
    standard = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if not isinstance(spec, ModuleSpec) or not spec.has_location or not spec.origin:
            continue  # built in, a folder, or made up, as some of PyTorch's are
        path = Path(spec.origin)
        if spec.origin.startswith(standard) or _OURS in path.parents or set(_INSTALLED) & set(path.parts):
            continue
        yield path


@lru_cache(maxsize=1)
def _installed() -> str:
    """Of all packages: their folders are called by name and version, and their lists of files are as old as they."""
    found = []
    for place in filter(None, sys.path):
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            found += [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info", ".egg-link"))]
    return digest(sorted([entry.name, entry.stat().st_mtime_ns] for entry in found))

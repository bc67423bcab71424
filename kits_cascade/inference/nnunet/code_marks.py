"""What code makes a network of a plan, as a mark that changes with it: what an engine has kept never outlives it.

Packages stand by their versions, our own code and code that nobody has installed by its text. Nothing is imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final

from kits_cascade.files import digest
from kits_cascade.models.network import file_checksum

_PACKAGES: Final = ("openvino", "torch", "dynamic_network_architectures", "nnunetv2", "monai")
_CODE: Final = (
    "training/networks/*.py",
    "training/architecture.py",
    "training/augment.py",
    "training/prior.py",
    "inference/nnunet/*.py",
)
_MOST_FILES: Final = 3000  # of a foreign package; a larger one takes longer to read than a network to convert
_INSTALLED: Final = ("site-packages", "dist-packages")


@lru_cache(maxsize=1)
def own_mark() -> str:
    """Of the packages that all networks are made of, and of our own code."""
    root = Path(__file__).parents[2]
    files = sorted(path for pattern in _CODE for path in root.glob(pattern))
    return digest([dict(_versions()), _texts(files)])


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield package, metadata.version(package)


def foreign_mark(names: Sequence[str]) -> str | None:
    """Of classes of other packages, by their names; None where it cannot be told what makes them.

    What they build on may be any package that is installed, so that all of these count.
    """
    if not names:
        return ""
    texts = []
    for top in sorted({name.partition(".")[0] for name in names}):
        files = _files_of(top)
        if files is None:
            return None
        texts.append([top, _texts(files)])
    return digest([texts, _installed(tuple(sys.path))])


def _files_of(top: str) -> list[Path] | None:
    """The code of a package or module that is in development; nothing of one that is installed, which has a version."""
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    found: list[Path] = []
    for place in map(Path, spec.submodule_search_locations or [spec.origin or ""]):
        if any(part in _INSTALLED for part in place.parts):
            continue
        files = [place] if place.is_file() else (p for kind in ("*.py", "*.so", "*.pyd") for p in place.rglob(kind))
        found += islice(files, _MOST_FILES + 1)
    return sorted(found) if len(found) <= _MOST_FILES else None


def _texts(files: Iterable[Path]) -> list[str]:
    return [file_checksum(path) for path in files]


@lru_cache(maxsize=1)
def _installed(places: tuple[str, ...]) -> list[str]:
    """Names and versions of all packages: their folders are called by both."""
    return sorted({path.name for place in places if place for path in Path(place).glob("*.dist-info")})

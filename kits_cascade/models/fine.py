"""Any nnU-Net network of KiTS as the fine stage: a folder or zip as nnU-Net lays it out, checked as a bundle is."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import read_json, sha256
from kits_cascade.models.bundle import cache_folder, writing
from kits_cascade.models.checkpoint import check_checkpoint, check_plans
from kits_cascade.models.network import MANIFEST, MASSES, TUMOR, Fold, StageModel, read_network, with_folds
from kits_cascade.models.unpack import CHUNK, MOST_JSON, MOST_WEIGHTS, PLAIN_NAME, check_kind, opened_zip
from kits_cascade.nnunet_folders import CHECKPOINT

FINE: Final = "fine"
KIDNEY, CYST = "kidney", "cyst"
_NAMES: Final = {
    KIDNEY: {"kidney", "kidneys"},
    TUMOR: {"tumor", "tumors", "tumour", "tumours"},
    CYST: {"cyst", "cysts"},
    MASSES: {"mass", "masses", "lesion", "lesions"},
}
_WANTED: Final = "needed is a network with KiTS labels (kidney, tumor, cyst) or regions (kidney, masses, tumor)"
_INSIDE: Final = re.compile(
    r"(?:[^/]+/)*(?P<folder>[^/]+__[^/]+__[^/]+)/"
    rf"(?P<file>dataset\.json|plans\.json|fold_(?:\d+|all)/{re.escape(CHECKPOINT)})"
)
_MOST_FOLDS: Final = 20
_LEAST_SHARE: Final = 4  # weights do not compress: what unpacks to more than this times the zip is no network


def read_fine(source: Path, folds: Sequence[Fold] | None = None) -> StageModel:
    """The network in a folder or zip that nnU-Net has made; raises a ModelError where it cannot be a fine stage."""
    if not source.exists():
        raise ModelError(f"{source}: no such file or folder; {_WANTED}, as nnU-Net lays it out")
    folder = source.resolve() if source.is_dir() else _unpacked(source)
    network = _only_network(folder, source)
    check_plans(network.folder / "plans.json")
    _check_inputs(network, source)
    kits_names(read_json(network.folder / "dataset.json")["labels"], source)
    return with_folds(network, folds)


def kits_names(labels: Mapping[str, Any], where: Path | str = "dataset.json") -> dict[str, tuple[str, ...]]:
    """Which labels or regions of a network make up the kidney (with its masses), the masses, and the tumours."""
    found = {role: tuple(n for n in labels if n.strip().casefold() in names) for role, names in _NAMES.items()}
    if not found[KIDNEY] or not found[TUMOR]:
        raise ModelError(f"{where}: its labels are {', '.join(labels)}; {_WANTED}")
    masses = (*found[MASSES], *found[TUMOR], *found[CYST])
    return {KIDNEY: (*found[KIDNEY], *masses), MASSES: masses, TUMOR: found[TUMOR]}


def _only_network(folder: Path, source: Path) -> StageModel:
    """The network in a folder, in its own folder or up to two levels above it."""
    for pattern in (".", "*__*__*", "*/*__*__*"):
        places = [folder] if pattern == "." else sorted(folder.glob(pattern))
        found = [network for place in places if (network := read_network(place, FINE, None)) is not None]
        if len(found) > 1:
            listed = ", ".join(str(network.folder.relative_to(folder)) for network in found)
            raise ModelError(f"{source} holds {len(found)} networks: {listed}; name the folder of one")
        if found:
            return found[0]
    hint = "; this is a bundle of a whole cascade: give it with -m" if (folder / MANIFEST).is_file() else ""
    raise ModelError(
        f"{source}: no trained network; needed is a folder Trainer__Plans__Configuration with dataset.json, plans.json "
        f"and fold_*/{CHECKPOINT}, or one above it{hint}"
    )


def _check_inputs(network: StageModel, source: Path) -> None:
    dataset, plans = (read_json(network.folder / name) for name in ("dataset.json", "plans.json"))
    channels = dataset.get("channel_names", dataset.get("modality", {"0": "CT"}))
    configuration = plans["configurations"].get(network.configuration, {})
    if len(channels) != 1:
        raise ModelError(f"{source}: takes {len(channels)} channels; a fine stage of its own has the CT alone")
    if configuration.get("previous_stage"):
        raise ModelError(
            f"{source}: {network.configuration} needs the segmentation of {configuration['previous_stage']}; "
            "give a network that takes the CT alone, such as 3d_fullres"
        )


def _unpacked(source: Path) -> Path:
    """The checked files of a zip, in the cache: unpacked once, and recognised by the zip's checksum."""
    cache = cache_folder()
    remedy = f"set XDG_CACHE_HOME, or unpack {source.name} yourself and give the folder"
    with writing(cache, remedy), opened_zip(source) as archive:
        files = _network_files(archive, source)
        target = cache / f"network-{sha256(source)[:24]}"
        if not target.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=cache, ignore_cleanup_errors=True) as temporary:
                folder = Path(temporary) / "network"
                for name, info in files.items():
                    _extract(archive, info, folder / name, source)
                _move(folder, target)
        return target


def _network_files(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of the only network in the zip, by their place in its folder; all else stays in the zip."""
    if MANIFEST in archive.namelist():
        raise ModelError(f"{source} is a bundle of a whole cascade: give it with -m")
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in archive.infolist():
        match = _INSIDE.fullmatch(info.filename)
        if match is None:
            continue
        folders.add(match["folder"])
        name = f"{match['folder']}/{match['file']}"
        if name in found or not PLAIN_NAME.fullmatch(match["folder"]):
            raise ModelError(f"{source}: {info.filename!r} is there twice, or has an odd name; refused")
        check_kind(info, source)
        found[name] = info
    if len(folders) != 1 or len(found) > _MOST_FOLDS + 2:
        listed = ", ".join(sorted(folders)[:5]) or "none"
        raise ModelError(
            f"{source}: needed is a zip with one trained network, as nnU-Net exports it; there is {listed}"
        )
    total = sum(info.file_size for info in found.values())
    if total > source.stat().st_size * _LEAST_SHARE + MOST_JSON:
        raise ModelError(f"{source}: unpacks to {total} bytes, far more than it has; refused")
    return found


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, source: Path) -> None:
    """One file, no longer than it says, and checked."""
    if info.file_size > (MOST_WEIGHTS if target.suffix == ".pth" else MOST_JSON):
        raise ModelError(f"{source}: {info.filename} is too large; refused")
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with archive.open(info) as stream, target.open("xb") as out:
        while chunk := stream.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise ModelError(f"{source}: {info.filename} is longer than it says; refused")
            out.write(chunk)
    if target.suffix == ".pth":
        check_checkpoint(target)
    elif target.name == "plans.json":
        check_plans(target)


def _move(folder: Path, target: Path) -> None:
    try:
        folder.replace(target)
    except OSError:  # another process was faster
        if not target.is_dir():
            raise

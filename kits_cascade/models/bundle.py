"""Trained networks as one zip, and back: nothing in a bundle is run, and nothing is written outside the target.

A bundle holds, for each network, ``Dataset.../Trainer__Plans__Configuration/`` with dataset.json, plans.json and the
checkpoints, as nnU-Net lays them out, and one manifest with the size and SHA-256 of every file. The checkpoints are
stripped to what prediction needs: no optimizer, a third of the size, and nothing but tensors and plain values.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import atomic_path, sha256, write_json
from kits_cascade.models.calibration import Calibration, write_calibration
from kits_cascade.models.card import About
from kits_cascade.models.checkpoint import check_plans, strip_checkpoint
from kits_cascade.models.network import (
    MANIFEST,
    CascadeModels,
    Fold,
    Models,
    SingleModel,
    StageModel,
    group_masses,
    read_network,
    with_folds,
)
from kits_cascade.models.unpack import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    bundle_key,
    opened_zip,
    read_bundle_manifest,
    read_zip_manifest,
    unpack_bundle,
)
from kits_cascade.stages import SOURCE_STAGE, STAGES
from kits_cascade.version import __version__

_CALIBRATION: Final = "calibration"  # its entry in the manifest
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the same models give the same bytes


def bundle_path(out: Path) -> Path:
    """Where a bundle is written: the ending .zip is added where there is none."""
    return out if out.suffix == ".zip" else out.with_name(out.name + ".zip")


def export_models(models: Models, out: Path, *, half: bool = False, about: About | None = None) -> Path:
    """Write a bundle (see :func:`bundle_path` for its name); ``half``: weights in half precision, half the size."""
    for model in models.all:
        check_plans(model.folder / "plans.json")  # what an import would refuse is better refused here
    out = bundle_path(out)
    entries: dict[str, dict[str, Any]] = {}
    with (
        writing(out, "choose another place for the bundle"),
        tempfile.TemporaryDirectory(prefix="kits-cascade-") as folder,
        atomic_path(out) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        for model in models.all:
            for path in model.files:
                name = f"{model.dataset}/{model.name}/{path.relative_to(model.folder).as_posix()}"
                source = path
                if path.suffix == ".pth":
                    source = Path(folder) / "stripped.pth"
                    strip_checkpoint(path, source, half=half)
                entries[name] = {"sha256": sha256(source), "bytes": source.stat().st_size}
                _add(archive, name, source)
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "made_by": f"kits-cascade {__version__}",
            **(about or About()).to_json(),
            "stages": [_stage_entry(model) for model in models.all],
            **_calibration_entry(models),
            "files": entries,
        }
        archive.writestr(zipfile.ZipInfo(MANIFEST, _DATE), json.dumps(content, indent=2))
    return out


def _calibration_entry(models: Models) -> dict[str, Any]:
    calibration = models.calibration if isinstance(models, CascadeModels) else None
    return {} if calibration is None else {_CALIBRATION: calibration.to_json()}


def _stage_entry(model: StageModel) -> dict[str, Any]:
    return {
        "stage": model.key,
        "folder": f"{model.dataset}/{model.name}",
        "folds": list(model.folds),
        "checkpoint": model.checkpoint,
        "outputs": list(model.outputs),
    }


def _add(archive: zipfile.ZipFile, name: str, source: Path) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    # Weights do not compress, and a checkpoint that is stored can be read at full speed.
    info.compress_type = zipfile.ZIP_STORED if name.endswith(".pth") else zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    with source.open("rb") as stream, archive.open(info, "w", force_zip64=True) as target:
        shutil.copyfileobj(stream, target, CHUNK)


def import_models(bundle: Path, target: Path, *, overwrite: bool = False, manifest: bool = True) -> list[Path]:
    """Check a bundle and unpack it into ``target``; the folders of the networks.

    With its ``manifest`` the folder can be given in place of the bundle; nnU-Net's results folder, which may hold other
    networks too, needs none. Everything is unpacked beside the target first, and moved there when all of it is sound.
    """
    if not bundle.is_file():
        raise ModelError(f"{bundle}: no such file; needed is a bundle made by kits-cascade models export")
    with writing(target, "choose another folder with --to"):
        return _imported(bundle, target, overwrite, manifest)


def _imported(bundle: Path, target: Path, overwrite: bool, manifest: bool) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    with unpack_bundle(bundle, target) as (content, folder):
        names = list(dict.fromkeys(stage["folder"] for stage in content["stages"]))
        clashes = [name for name in names if (target / name).exists() and not _same(content, target, name)]
        if clashes and not overwrite:
            raise ModelError(
                f"{target} holds other networks of the same name: {', '.join(clashes)}; nothing was changed. "
                "Give --overwrite to replace them, or another folder with --to"
            )
        for name in names:
            _replace(folder / name, target / name)
        _keep_calibration(content, target, bundle)
        if manifest:
            write_json(target / MANIFEST, content)
    return [target / name for name in names]


def _keep_calibration(content: dict[str, Any], target: Path, bundle: Path) -> None:
    """Where trained networks have it: beside the plans of the last masses network."""
    calibration = Calibration.from_json(content.get(_CALIBRATION), bundle)
    masses = [stage["folder"] for stage in content["stages"] if stage["stage"] == "masses"]
    if calibration is not None and masses:
        write_calibration(target / masses[-1], calibration)


def store_calibration(models: Models, source: Path | None, calibration: Calibration) -> Path:
    """Keep a calibration with the networks that were given as ``source``; the file that was written."""
    if isinstance(models, SingleModel):
        raise ModelError("a calibration belongs to a cascade, and these are the networks of another system")
    if source is not None and source.is_file():
        return _calibrate_zip(source, calibration)
    if source is not None and (source / MANIFEST).is_file():
        write_json(source / MANIFEST, {**read_bundle_manifest(source), _CALIBRATION: calibration.to_json()})
        return source / MANIFEST
    if not models.masses:
        raise ModelError("a cascade with a single fine network has no place for a calibration")
    return write_calibration(models.masses[-1].folder, calibration)


def _calibrate_zip(bundle: Path, calibration: Calibration) -> Path:
    """The same bundle with another manifest."""
    content = read_zip_manifest(bundle)
    with (
        writing(bundle, "copy the bundle to a place of your own"),
        opened_zip(bundle) as old,
        atomic_path(bundle) as temporary,
        zipfile.ZipFile(temporary, "w") as new,
    ):
        for info in old.infolist():
            if info.filename != MANIFEST:
                with old.open(info) as stream, new.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(stream, target, CHUNK)
        entry = {**content, _CALIBRATION: calibration.to_json()}
        new.writestr(zipfile.ZipInfo(MANIFEST, _DATE), json.dumps(entry, indent=2))
    return bundle


def about_bundle(bundle: Path) -> About:
    """What a bundle says of itself."""
    return About.from_manifest(read_zip_manifest(bundle))


def _same(content: dict[str, Any], target: Path, folder: str) -> bool:
    """Whether all files of a network are there already, as the bundle has them."""
    files = {name: entry for name, entry in content["files"].items() if name.startswith(folder + "/")}
    return all((target / name).is_file() and sha256(target / name) == files[name]["sha256"] for name in files)


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    source.replace(target)


def open_bundle(source: Path) -> Path | None:
    """The folder of a bundle, given as a zip or unpacked; None where ``source`` is a folder without a manifest.

    A zip is unpacked once, into the user's cache, and recognised by its manifest the next time.
    """
    if not source.exists():
        raise ModelError(f"{source}: no such file or folder; needed is a bundle made by kits-cascade models export")
    if source.is_dir():
        if not (source / MANIFEST).is_file():
            return None
        return source
    key = bundle_key(source)
    remedy = f"set XDG_CACHE_HOME, or unpack it yourself: kits-cascade models import {source} --to DIR"
    with writing(cache_folder(), remedy):
        return _cached(source, key)


def _cached(source: Path, key: str) -> Path:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / key
    if not (target / MANIFEST).is_file():
        with unpack_bundle(source, cache) as (content, folder):
            write_json(folder / MANIFEST, content)
            try:
                folder.replace(target)
            except OSError:  # another process was faster
                if not (target / MANIFEST).is_file():
                    raise
    return target


def cache_folder() -> Path:
    """Where unpacked networks lie; it may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kits-cascade" / "models"


@contextmanager
def writing(where: Path, remedy: str) -> Iterator[None]:
    """A full disk or a folder that belongs to someone else is no reason for a traceback."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{where}: cannot be written ({error.strerror or error}); {remedy}") from error


def read_bundled_networks(folder: Path, folds: Sequence[Fold] | None) -> Models:
    """The networks of an unpacked bundle: its manifest says which one serves which stage."""
    content = read_bundle_manifest(folder)
    found: dict[str, list[StageModel]] = {stage.key: [] for stage in (*STAGES, SOURCE_STAGE)}
    for entry in content["stages"]:
        model = read_network(folder / entry["folder"], entry["stage"], entry["checkpoint"])
        if model is None or entry["stage"] not in found:
            raise ModelError(f"{folder}: no network in {entry['folder']}; import the bundle again")
        if folds is not None and not {str(fold) for fold in folds} <= {str(fold) for fold in entry["folds"]}:
            listed = " ".join(map(str, entry["folds"]))
            raise ModelError(f"{folder}: the {entry['stage']} stage of this bundle has the folds {listed} only")
        found[entry["stage"]].append(with_folds(replace(model, folds=tuple(entry["folds"])), folds))
    checksums = {folder / name: str(entry["sha256"]) for name, entry in content["files"].items()}
    if len(content["stages"]) == len(found[SOURCE_STAGE.key]) == 1:
        return SingleModel(found[SOURCE_STAGE.key][0], checksums, system=About.from_manifest(content).system)
    masses = group_masses(found["masses"])
    if found[SOURCE_STAGE.key] or len(found["coarse"]) != 1 or len(found["kidney"]) != 1 or len(masses) != 1:
        raise ModelError(f"{folder}: this bundle does not hold one whole system; export it again")
    calibration = Calibration.from_json(content.get(_CALIBRATION), folder / MANIFEST)
    return CascadeModels(found["coarse"][0], found["kidney"][0], masses[0], checksums, calibration=calibration)

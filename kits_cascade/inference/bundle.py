"""Trained networks as one zip, and back: nothing in a bundle is run, and nothing is written outside the target.

A bundle holds, for each network, ``Dataset.../Trainer__Plans__Configuration/`` with dataset.json, plans.json and the
checkpoints, as nnU-Net lays them out, and one manifest with the size and SHA-256 of every file. The checkpoints are
stripped to what prediction needs: no optimizer, a third of the size, and nothing but tensors and plain values.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kits_cascade import __version__
from kits_cascade.errors import ModelError
from kits_cascade.files import TEMPORARY_MARK, atomic_path, read_json, sha256, write_json
from kits_cascade.inference.checkpoint import check_checkpoint, check_plans, stripped
from kits_cascade.inference.models import MANIFEST, CascadeModels, safe_name

FORMAT: Final = "kits-cascade models"
FORMAT_VERSION: Final = 1
_MOST_FILES: Final = 200
_MOST_JSON: Final = 64 << 20
_MOST_WEIGHTS: Final = 8 << 30
_CHUNK: Final = 1 << 20
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the same models give the same bytes


def export_models(models: CascadeModels, out: Path) -> Path:
    """Write a bundle; ``out`` gets the ending .zip where it has none."""
    out = out if out.suffix == ".zip" else out.with_name(out.name + ".zip")
    entries: dict[str, dict[str, Any]] = {}
    with (
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
                    stripped(path, source)
                entries[name] = {"sha256": sha256(source), "bytes": source.stat().st_size}
                _add(archive, name, source)
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "made_by": f"kits-cascade {__version__}",
            "stages": [_stage_entry(model) for model in models.all],
            "files": entries,
        }
        archive.writestr(zipfile.ZipInfo(MANIFEST, _DATE), json.dumps(content, indent=2))
    return out


def _stage_entry(model: Any) -> dict[str, Any]:
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
        shutil.copyfileobj(stream, target, _CHUNK)


def import_models(bundle: Path, target: Path, *, overwrite: bool = False) -> list[Path]:
    """Check a bundle and unpack it into ``target``; the folders of the networks.

    Everything is unpacked and checked beside the target first, and moved there only when all of it is sound.
    """
    target.mkdir(parents=True, exist_ok=True)
    with _unpacked(bundle, target) as (content, folder):
        names = list(dict.fromkeys(stage["folder"] for stage in content["stages"]))
        clashes = [name for name in names if (target / name).exists() and not _same(content, target, name)]
        if clashes and not overwrite:
            raise ModelError(
                f"{target} holds other networks of the same name: {', '.join(clashes)}; nothing was changed. "
                "Give --overwrite to replace them, or another folder with --to"
            )
        for name in names:
            _replace(folder / name, target / name)
        write_json(target / MANIFEST, content)
    return [target / name for name in names]


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
    target = _cache() / _key(source)
    if not (target / MANIFEST).is_file():
        with _unpacked(source, _cache()) as (content, folder):
            write_json(folder / MANIFEST, content)
            try:
                folder.replace(target)
            except OSError:  # another process was faster
                if not (target / MANIFEST).is_file():
                    raise
    return target


def bundle_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of an unpacked bundle, after a look at everything but the weights.

    Weights are checked when they are loaded, and their checksums when run.json is written, so that they are read once.
    """
    try:
        content = _checked_manifest(read_json(folder / MANIFEST), folder / MANIFEST)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{folder / MANIFEST}: not valid JSON ({error})") from error
    for name, entry in content["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise ModelError(f"{folder}: {name} is missing or damaged; import the bundle again")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder}: {name} leads out of the bundle; refused")
        if path.name == "plans.json":
            check_plans(path)
    return content


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "kits-cascade" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _key(bundle: Path) -> str:
    """From the manifest, which holds the checksums of everything else."""
    with _opened(bundle) as archive:
        return hashlib.sha256(_read_small(archive, MANIFEST, bundle)).hexdigest()[:24]


@contextmanager
def _opened(bundle: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(bundle) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ModelError(f"{bundle}: not a sound zip file ({error}); copy or download it again") from error


@contextmanager
def _unpacked(bundle: Path, beside: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The checked manifest and a temporary folder in ``beside`` with the checked files."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_MARK, dir=beside, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        with _opened(bundle) as archive:
            content = _manifest_of(archive, bundle)
            for name, entry in content["files"].items():
                _extract(archive, name, entry, folder, bundle)
        _check_contents(folder, content)
        yield content, folder


def _manifest_of(archive: zipfile.ZipFile, bundle: Path) -> dict[str, Any]:
    infos = archive.infolist()
    if len(infos) > _MOST_FILES:
        raise ModelError(f"{bundle}: {len(infos)} files; a bundle has at most {_MOST_FILES}")
    try:
        content = json.loads(_read_small(archive, MANIFEST, bundle))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{bundle}: its manifest is not valid JSON ({error})") from error
    content = _checked_manifest(content, bundle)
    names = [info.filename for info in infos]
    listed = {*content["files"], MANIFEST}
    if len(set(names)) < len(names) or set(names) != listed:
        odd = sorted(set(names) ^ listed)[:3] or ["a file twice"]
        raise ModelError(f"{bundle}: files and manifest differ ({', '.join(map(repr, odd))}); this is no sound bundle")
    for info in infos:
        _check_entry(info, content["files"].get(info.filename), bundle)
    total = sum(entry["bytes"] for entry in content["files"].values())
    if total > bundle.stat().st_size * 2 + _MOST_JSON:
        raise ModelError(f"{bundle}: unpacks to {total} bytes, far more than it has; refused")
    return content


def _read_small(archive: zipfile.ZipFile, name: str, bundle: Path) -> bytes:
    try:
        with archive.open(name) as stream:
            content = stream.read(_MOST_JSON + 1)
    except KeyError as error:
        raise ModelError(f"{bundle}: has no {name}; needed is a bundle made by kits-cascade models export") from error
    if len(content) > _MOST_JSON:
        raise ModelError(f"{bundle}: {name} is larger than {_MOST_JSON} bytes; refused")
    return content


def _checked_manifest(content: Any, where: Path) -> dict[str, Any]:
    """The manifest, every name and number in it checked: they decide where files are written."""
    try:
        if content["format"] != FORMAT:
            raise ModelError(f"{where}: not a bundle of kits-cascade models")
        if content["version"] != FORMAT_VERSION:
            raise ModelError(
                f"{where}: bundle format {content['version']!r}; this kits-cascade reads {FORMAT_VERSION}: update it"
            )
        for name, entry in content["files"].items():
            _check_path(name, where)
            limit = _MOST_WEIGHTS if name.endswith(".pth") else _MOST_JSON
            if not (isinstance(entry["bytes"], int) and 0 < entry["bytes"] <= limit and len(entry["sha256"]) == 64):
                raise ModelError(f"{where}: the manifest gives {name} an impossible size or checksum")
        for stage in content["stages"]:
            _check_stage(stage, content["files"], where)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: the manifest is incomplete ({error!r})") from error
    return dict(content)


def _check_path(name: str, where: Path) -> None:
    parts = PurePosixPath(name).parts
    sound = name == "/".join(parts) and all(safe_name(part) for part in parts)
    kinds = {3: {"dataset.json", "plans.json"}, 4: {parts[-1]} if name.endswith(".pth") else set()}
    if not sound or parts[-1] not in kinds.get(len(parts), set()):
        raise ModelError(f"{where}: {name!r} has no place in a bundle; refused")


def _check_stage(stage: dict[str, Any], files: dict[str, Any], where: Path) -> None:
    folder, checkpoint = str(stage["folder"]), str(stage["checkpoint"])
    needed = [f"{folder}/{name}" for name in ("dataset.json", "plans.json")]
    needed += [f"{folder}/fold_{fold}/{checkpoint}" for fold in stage["folds"]]
    missing = [name for name in needed if name not in files]
    if missing:
        raise ModelError(f"{where}: the {stage['stage']} stage lacks {', '.join(missing)}")


def _check_entry(info: zipfile.ZipInfo, entry: dict[str, Any] | None, bundle: Path) -> None:
    kind = (info.external_attr >> 16) & 0o170000
    if kind not in {0, 0o100000} or info.is_dir():
        raise ModelError(f"{bundle}: {info.filename!r} is not a plain file (a link or a folder); refused")
    if info.flag_bits & 1:
        raise ModelError(f"{bundle}: {info.filename!r} is encrypted; refused")
    if entry is not None and info.file_size != entry["bytes"]:
        raise ModelError(f"{bundle}: {info.filename} has {info.file_size} bytes, not {entry['bytes']} as listed")


def _extract(archive: zipfile.ZipFile, name: str, entry: dict[str, Any], folder: Path, bundle: Path) -> None:
    """One file, at most as long as it may be, its checksum taken on the way."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), int(entry["bytes"])
    with archive.open(name) as stream, target.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise ModelError(f"{bundle}: {name} is longer than it says; refused")
            digest.update(chunk)
            out.write(chunk)
    if left or digest.hexdigest() != entry["sha256"]:
        raise ModelError(f"{bundle}: {name} is damaged (checksum); copy or download the bundle again")


def _check_contents(folder: Path, content: dict[str, Any]) -> None:
    for name in content["files"]:
        path = folder / name
        if path.suffix == ".pth":
            check_checkpoint(path)
        elif path.name == "plans.json":
            check_plans(path)

"""What keeps a bundle from someone else from doing harm: every name, size, kind and checksum is checked.

Nothing is unpacked whose path, kind or size was not checked before, nothing is kept whose content was not.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import read_json
from kits_cascade.models.checkpoint import check_checkpoint, check_plans
from kits_cascade.models.network import MANIFEST

FORMAT: Final = "kits-cascade models"
FORMAT_VERSION: Final = 1
CHUNK: Final = 1 << 20
_PREFIX: Final = ".kits-cascade-import-"
_MOST_FILES: Final = 200
MOST_JSON: Final = 64 << 20
MOST_WEIGHTS: Final = 8 << 30
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def read_bundle_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of an unpacked bundle, after a look at everything but the weights.

    Weights are checked when they are loaded, and their checksums when run.json is written, so that they are read once;
    classes are looked at when networks are built of them.
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
            check_plans(path, names_only=True)
    return content


def bundle_key(bundle: Path) -> str:
    """Tells bundles apart by their manifests, which hold the checksums of everything else."""
    with opened_zip(bundle) as archive:
        return hashlib.sha256(_read_small(archive, MANIFEST, bundle)).hexdigest()[:24]


def read_zip_manifest(bundle: Path) -> dict[str, Any]:
    """The checked manifest of a bundle that is still a zip."""
    with opened_zip(bundle) as archive:
        return _manifest_of(archive, bundle)


@contextmanager
def opened_zip(bundle: Path) -> Iterator[zipfile.ZipFile]:
    """A zip; what is wrong with it, also while it is read, is a ModelError."""
    try:
        with zipfile.ZipFile(bundle) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ModelError(f"{bundle}: not a sound zip file ({error}); copy or download it again") from error


@contextmanager
def unpack_bundle(bundle: Path, beside: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The checked manifest and a temporary folder in ``beside`` with the checked files."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=beside, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        with opened_zip(bundle) as archive:
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
    if total > bundle.stat().st_size * 2 + MOST_JSON:
        raise ModelError(f"{bundle}: unpacks to {total} bytes, far more than it has; refused")
    return content


def _read_small(archive: zipfile.ZipFile, name: str, bundle: Path) -> bytes:
    try:
        with archive.open(name) as stream:
            content = stream.read(MOST_JSON + 1)
    except KeyError as error:
        raise ModelError(f"{bundle}: has no {name}; needed is a bundle made by kits-cascade models export") from error
    if len(content) > MOST_JSON:
        raise ModelError(f"{bundle}: {name} is larger than {MOST_JSON} bytes; refused")
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
            limit = MOST_WEIGHTS if name.endswith(".pth") else MOST_JSON
            if not (isinstance(entry["bytes"], int) and 0 < entry["bytes"] <= limit and len(entry["sha256"]) == 64):
                raise ModelError(f"{where}: the manifest gives {name} an impossible size or checksum")
        for stage in content["stages"]:
            _check_stage(stage, content["files"], where)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: the manifest is incomplete ({error!r})") from error
    return dict(content)


def _check_path(name: str, where: Path) -> None:
    parts = PurePosixPath(name).parts
    sound = name == "/".join(parts) and all(PLAIN_NAME.fullmatch(part) and ".." not in part for part in parts)
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
    check_kind(info, bundle)
    if entry is not None and info.file_size != entry["bytes"]:
        raise ModelError(f"{bundle}: {info.filename} has {info.file_size} bytes, not {entry['bytes']} as listed")


def check_kind(info: zipfile.ZipInfo, bundle: Path) -> None:
    """Raise where an entry is anything but a plain file."""
    kind = (info.external_attr >> 16) & 0o170000
    if kind not in {0, 0o100000} or info.is_dir():
        raise ModelError(f"{bundle}: {info.filename!r} is not a plain file (a link or a folder); refused")
    if info.flag_bits & 1:
        raise ModelError(f"{bundle}: {info.filename!r} is encrypted; refused")


def _extract(archive: zipfile.ZipFile, name: str, entry: dict[str, Any], folder: Path, bundle: Path) -> None:
    """One file, at most as long as it may be, its checksum taken on the way."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), int(entry["bytes"])
    with archive.open(name) as stream, target.open("xb") as out:
        while chunk := stream.read(CHUNK):
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

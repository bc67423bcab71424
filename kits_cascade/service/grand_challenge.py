"""The interface of a challenge platform's container: one case below /input, its labels below /output, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from kits_cascade.errors import FileFormatError, UsageError
from kits_cascade.files import read_json
from kits_cascade.inference.cascade import Cascade
from kits_cascade.volumes import itk
from kits_cascade.volumes.find import InputCase, find_inputs

Layout = Literal["auto", "sockets", "images"]
Say = Callable[[str], None]
INPUTS_JSON: Final = "inputs.json"
OUTPUT_SLUG: Final = "kidney-tumor-and-cyst-segmentation"
MODEL_FOLDER: Final = Path("/opt/ml/model")  # what the platform mounts
BAKED_IN: Final = Path("/opt/algorithm/cascade.zip")  # what the Dockerfile puts there
_OUTPUT_NAME: Final = "output.mha"
_LISTED: Final = 40


@dataclass(frozen=True)
class Job:
    """The one case that a container is started for."""

    case: InputCase
    slug: str  # of the input
    output: Path


def find_job(
    source: Path,
    target: Path,
    *,
    layout: Layout = "auto",
    input_slug: str | None = None,
    output_slug: str = OUTPUT_SLUG,
) -> Job:
    """What there is to do, from what lies below ``source``.

    Newer platforms name the inputs in inputs.json and want output.mha; older ones have one image in /input/images/*/,
    and want its name back.
    """
    if not source.is_dir():
        raise UsageError(
            f"{source}: no such folder; the platform mounts the inputs there, by hand it is given by --input"
        )
    named = source / INPUTS_JSON
    if layout == "sockets" or (layout == "auto" and named.is_file()):
        slug, folder = _socket(source, named, input_slug)
        case = _only_image(source, [folder])
        return Job(case, slug, target / "images" / output_slug / _OUTPUT_NAME)
    folders = sorted(path for path in (source / "images").glob("*") if path.is_dir())
    if input_slug is not None:
        folders = [folder for folder in folders if folder.name == input_slug]
    case = _only_image(source, folders)
    name = case.path.name if case.kind == "itk" and case.path.suffix == ".mha" else f"{case.name}.mha"
    return Job(case, case.path.parent.name, target / "images" / output_slug / name)


def _socket(source: Path, named: Path, wanted: str | None) -> tuple[str, Path]:
    """Slug and folder of the image among the inputs that the platform names."""
    try:
        entries = read_json(named)
        sockets = [dict(entry.get("socket") or entry.get("interface") or {}) for entry in entries]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{named}: not the list of inputs that the platform writes ({error})") from error
    images = {str(socket["slug"]): socket for socket in sockets if "slug" in socket and _is_image(socket)}
    chosen = {slug: socket for slug, socket in images.items() if wanted in (None, slug)}
    if len(chosen) != 1:
        listed = ", ".join(images) or "none"
        asked = f"the image {wanted!r}" if wanted else "one image"
        raise UsageError(f"{named}: {asked} is needed among the inputs, there is: {listed}; --input-slug chooses one")
    ((slug, socket),) = chosen.items()
    return slug, _below(source, str(socket.get("relative_path") or f"images/{slug}"))


def _is_image(socket: dict[str, Any]) -> bool:
    told = socket.get("is_image_kind")
    if isinstance(told, bool):
        return told
    where = str(socket.get("relative_path") or "images/")
    return where.startswith("images/") or str(socket.get("kind", "")).casefold() == "image"


def _below(source: Path, relative: str) -> Path:
    folder = (source / relative).resolve()
    if not folder.is_relative_to(source.resolve()):
        raise UsageError(f"{source / INPUTS_JSON} names a folder outside {source}: {relative}")
    return folder


def _only_image(source: Path, folders: list[Path]) -> InputCase:
    found = [case for folder in folders if folder.is_dir() and any(folder.iterdir()) for case in find_inputs(folder)]
    if len(found) != 1:
        where = ", ".join(folder.name for folder in folders) or "images/*"
        raise UsageError(
            f"one CT is needed in {source} ({where}), there are {len(found)}. What is there: {list_files(source)}"
        )
    return found[0]


def list_files(folder: Path) -> str:
    """Names of the files below a folder, for a log that nobody can look behind."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return (
        ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "nothing"
    )


def model_source(given: Path | None, mounted: Path = MODEL_FOLDER, baked_in: Path = BAKED_IN) -> Path | None:
    """Where the networks come from: given, mounted by the platform, built into the image, else the package's (None)."""
    if given is not None:
        return given
    if not mounted.is_dir() or not any(mounted.iterdir()):
        return baked_in if baked_in.is_file() else None
    bundles = sorted(mounted.glob("*.zip"))
    if len(bundles) > 1:
        raise UsageError(f"{mounted}: several bundles: {', '.join(path.name for path in bundles)}; leave one")
    return bundles[0] if bundles else mounted


def run_job(job: Job, cascade: Cascade, say: Say) -> Path:
    """Segment the case, and write the labels on the image's own grid."""
    prediction = cascade(job.case.path, report=lambda stage: say(f"stage: {stage}"))
    for warning in prediction.warnings:
        say(f"warning: {warning}")
    loaded = prediction.loaded
    itk.write_itk(job.output, loaded.volume, prediction.labels, loaded.grid or itk.grid_of(loaded.volume.stored.affine))
    return job.output

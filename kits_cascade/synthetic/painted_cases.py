"""A folder of painted cases in KiTS layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kits_cascade.files import write_json
from kits_cascade.parallel import Outcome, Progress, run_cases
from kits_cascade.synthetic.painter import PaintOptions, Sources, paint_case
from kits_cascade.synthetic.phantom import kits_volume
from kits_cascade.volumes.nifti import write_volume

ABOUT_FILE = "painted.json"


@dataclass(frozen=True)
class _Job:
    out: Path
    sources: Sources
    seed: int
    options: PaintOptions


def write_painted(
    out: Path,
    sources: Sources,
    count: int,
    seed: int = 0,
    *,
    first: int = 0,
    options: PaintOptions | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome[Path]]:
    """Paint cases ``first`` to ``first + count - 1``; one that is there already is kept."""
    job = _Job(out, sources, seed, options or PaintOptions())
    names = [(f"case_{index:05d}", index) for index in range(first, first + count)]
    yield from run_cases(partial(_paint_one, job), names, jobs=jobs, progress=progress)


def _paint_one(job: _Job, index: int) -> Path:
    folder = job.out / f"case_{index:05d}"
    if not (folder / ABOUT_FILE).is_file():
        case = paint_case(job.sources, job.seed, index, job.options)
        write_volume(folder / "imaging.nii.gz", kits_volume(case.image, case.spacing))
        write_volume(folder / "segmentation.nii.gz", kits_volume(case.labels, case.spacing))
        write_json(folder / ABOUT_FILE, {"seed": job.seed, "index": index, **case.about})
    return folder

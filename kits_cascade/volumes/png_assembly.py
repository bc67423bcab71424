"""Label maps from predicted PNG slices: the way back of :mod:`kits_cascade.volumes.png_export`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from kits_cascade.errors import CaseError, DatasetError
from kits_cascade.files import read_json
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.png_export import OPTIONS_JSON, SlicesReport, read_records
from kits_cascade.volumes.png_slices import SliceOptions, hang_back, read_mask
from kits_cascade.volumes.volume import volume_from_stored


def assemble_slices(
    masks: Path, export: Path, out: Path, *, jobs: int | None = 1, progress: Progress | None = None
) -> SlicesReport:
    """Build a label map of each exported case, in its shape and place, from masks that have the slices' file names.

    Cases without any mask are passed over; a case of which some are missing is bad.
    """
    if not (export / OPTIONS_JSON).is_file():
        raise DatasetError(f"{export}: no {OPTIONS_JSON}; give the folder that kits-cascade slices has written")
    options = SliceOptions.from_json(read_json(export / OPTIONS_JSON)["options"])
    present = {path.name for path in masks.glob("*.png")} if masks.is_dir() else set()
    records = [r for r in read_records(export) if any(entry["file"] in present for entry in r["slices"])]
    if not records:
        raise DatasetError(f"{masks}: no PNG file with the name of a slice of {export}, such as case_axial_0000.png")
    report = SlicesReport()
    work = functools.partial(assemble_case, masks=masks, out=out, options=options)
    for outcome in run_cases(work, [(r["case"], r) for r in records], jobs=jobs, progress=progress):
        if outcome.result is None:
            report.bad[outcome.name] = str(outcome.failure)
        else:
            report.written[outcome.name] = outcome.result
    return report


def assemble_case(record: dict[str, Any], masks: Path, out: Path, options: SliceOptions) -> int:
    """Build one case; how many slices it has. Slices that were not exported are background."""
    files = [entry["file"] for entry in record["slices"]]
    missing = [file for file in files if not (masks / file).is_file()]
    if missing:
        raise CaseError(record["case"], f"{len(missing)} of {len(files)} slices are missing: {', '.join(missing[:3])}")
    affine, shape = np.array(record["stored_affine"]), tuple(record["stored_shape"])
    volume = volume_from_stored(np.zeros(shape, np.uint8), affine, nib.Nifti1Header())
    (rows, columns), (high, wide) = record["plane"], record["written"]
    inside = Box.from_json(record["box"]).crop(volume.array)
    first = record["box"]["start"][options.axis_number]
    for entry in record["slices"]:
        labels = read_mask(masks / entry["file"], (high, wide), (rows, columns))
        np.moveaxis(inside, options.axis_number, 0)[entry["slice"] - first] = hang_back(labels)
    write_volume(out / f"{record['case']}.nii.gz", volume)
    return len(files)

"""What a run can keep besides the labels: the stages' masks and the networks' probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kits_cascade.files import atomic_path, write_json
from kits_cascade.inference.inputs import LoadedCase
from kits_cascade.inference.orchestrate import CascadeOptions, CascadeResult
from kits_cascade.nifti import write_volume
from kits_cascade.volume import Array, Volume, volume_from_array


def write_extras(out: Path, loaded: LoadedCase, result: CascadeResult, options: CascadeOptions) -> None:
    """Write what the options ask for: OUT/stages/CASE/ and OUT/probabilities/CASE.npz."""
    name = loaded.case.name
    if options.keep_stages:
        _write_stages(out / "stages" / name, loaded.volume, result)
    if options.save_probabilities:
        _write_probabilities(out / "probabilities" / f"{name}.npz", result)


def _write_stages(folder: Path, volume: Volume, result: CascadeResult) -> None:
    if result.coarse is not None:
        coarse = on_own_grid(result.coarse, volume)
        write_volume(folder / "coarse.nii.gz", coarse, result.coarse.astype(np.uint8))
    if result.unprocessed is not None:
        write_volume(folder / "before_postprocessing.nii.gz", volume, result.unprocessed)
    shape, affine = list(volume.shape), volume.affine.tolist()
    places = {"boxes": [b.to_json() for b in result.boxes], "crops": [b.to_json() for b in result.crops]}
    write_json(folder / "roi.json", {**places, "shape": shape, "affine": affine})


def on_own_grid(mask: Array, volume: Volume) -> Volume:
    """A mask of the same field of view at another resolution, at its place in the world."""
    scale = np.array([n / m for n, m in zip(volume.shape, mask.shape, strict=True)])[::-1]  # x, y, z
    affine = volume.affine.copy()
    affine[:3, :3] = volume.affine[:3, :3] * scale
    # The outer corners of the field of view coincide, so the first voxel's centre moves by half the difference.
    affine[:3, 3] = volume.affine[:3, 3] + volume.affine[:3, :3] @ ((scale - 1) / 2)
    return volume_from_array(mask, affine)


def _write_probabilities(path: Path, result: CascadeResult) -> None:
    """Per region the probabilities of each fine network in its crop, half precision; they count in its box."""
    content: dict[str, Array] = {}
    for number, (box, crop, stages) in enumerate(zip(result.boxes, result.crops, result.probabilities, strict=False)):
        content[f"region{number}_box"] = np.array([box.start, box.stop])
        content[f"region{number}_crop"] = np.array([crop.start, crop.stop])
        for stage, values in stages.items():
            content[f"region{number}_{stage}"] = values.astype(np.float16)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]

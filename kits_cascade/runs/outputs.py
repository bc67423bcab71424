"""What is written of a finished case: measured first, then a row for each kind of file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.background import Background
from kits_cascade.files import atomic_path, write_json
from kits_cascade.inference.certainty import certainty_map
from kits_cascade.inference.measure import LesionRow, body_midline, measure_lesions, volumes_ml
from kits_cascade.inference.pipeline import CascadeOptions, CascadeResult
from kits_cascade.inference.plausibility import check_labels
from kits_cascade.inference.plausibility_finding import Finding
from kits_cascade.runs.dicom_results import write_dicom
from kits_cascade.volumes.cases import LoadedCase, packed_result, write_result
from kits_cascade.volumes.dicom_sr import Findings
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import Array, Volume, volume_from_array


@dataclass
class FinishedCase:
    """A case whose labels are there, with what is needed to write it. The whole image is no longer held."""

    loaded: LoadedCase
    result: CascadeResult
    image: Array | None  # within the bounds of all regions
    midline: float | None
    findings: Findings = field(default_factory=Findings)  # for reports: what was measured, and remarks on it
    networks: str = ""  # checksum of those that made the labels
    packing: Background[bytes | None] | None = None  # the label file, while the labels are measured

    @staticmethod
    def of(loaded: LoadedCase, result: CascadeResult) -> FinishedCase:
        """Keep what measuring and writing need, and let the image go: the labels stand for the volume."""
        volume, bounds = loaded.volume, result.bounds
        image = None if bounds is None else bounds.crop(volume.array).copy()
        light = replace(loaded, volume=replace(volume, array=result.labels))
        return FinishedCase(light, result, image, body_midline(volume.array, volume.affine))

    def pack(self) -> None:
        """Begin to make the label file's content, beside whatever else is done with the labels."""
        self.packing = Background(lambda: packed_result(self.loaded, self.result.labels))

    def measure(self) -> tuple[dict[str, float], list[LesionRow]]:
        """Volumes in mL, and the lesions; nothing where the cascade looked nowhere."""
        volume, bounds = self.loaded.volume, self.result.bounds or Box((0, 0, 0), (0, 0, 0))
        if self.image is None:
            return {}, []
        labels = bounds.crop(self.result.labels)
        sure = certainty_map(self.result, "masses")
        return volumes_ml(labels, volume.spacing), measure_lesions(
            labels,
            self.image,
            volume.spacing,
            volume.affine,
            bounds,
            volume.shape,
            self.midline,
            sure,
            self.result.curve,
        )

    def check(self, volumes: dict[str, float], lesions: list[LesionRow]) -> list[Finding]:
        """What is odd about the scan and its labels."""
        return check_labels(self.result, self.image, lesions, volumes)


@dataclass(frozen=True)
class Output:
    """One kind of file."""

    name: str
    folder: str  # in the output folder
    wanted: Callable[[CascadeOptions], bool]
    write: Callable[[Path, FinishedCase, CascadeOptions], None]  # into that folder


def write_outputs(out: Path, finished: FinishedCase, options: CascadeOptions) -> Path:
    """Write all that the options ask for; the labels come last, since with them a case counts as done."""
    for output in OUTPUTS:
        if output.wanted(options):
            output.write(out / output.folder, finished, options)
    packed = None if finished.packing is None else finished.packing.result()
    return write_result(finished.loaded, finished.result.labels, out, packed)


def _write_stages(folder: Path, finished: FinishedCase, _options: CascadeOptions) -> None:
    result, volume = finished.result, finished.loaded.volume
    folder = folder / finished.loaded.case.name
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


def _write_probabilities(folder: Path, finished: FinishedCase, _options: CascadeOptions) -> None:
    """Per region the probabilities of each fine network in its crop, half precision; they count in its box."""
    result = finished.result
    content: dict[str, Array] = {}
    for number, (box, crop, stages) in enumerate(zip(result.boxes, result.crops, result.probabilities, strict=False)):
        content[f"region{number}_box"] = np.array([box.start, box.stop])
        content[f"region{number}_crop"] = np.array([crop.start, crop.stop])
        for stage, values in stages.items():
            content[f"region{number}_{stage}"] = values.astype(np.float16)
    path = folder / f"{finished.loaded.case.name}.npz"
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **content)  # type: ignore[arg-type]


def _write_dicom(folder: Path, finished: FinishedCase, options: CascadeOptions) -> None:
    loaded, labels = finished.loaded, finished.result.labels
    case = loaded.case
    write_dicom(
        folder / case.name, case.path, loaded.volume, labels, finished.findings, finished.networks, options.dicom
    )


# Beside the labels. A new kind of file is a row here.
OUTPUTS: Final = (
    Output("stages", "stages", lambda options: options.keep_stages, _write_stages),
    Output("probabilities", "probabilities", lambda options: options.save_probabilities, _write_probabilities),
    Output("dicom", "dicom", lambda options: bool(options.dicom), _write_dicom),
)

"""The cascade from Python: load the models once, call with anything that holds a CT."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kits_cascade.errors import CaseError, UsageError
from kits_cascade.inference.certainty import certainty_map
from kits_cascade.inference.measure import body_midline, measure_lesions, volumes_ml
from kits_cascade.inference.pipeline import (
    CascadeOptions,
    CascadeResult,
    Predictors,
    Report,
    WholePredictor,
    run_cascade,
    run_whole,
)
from kits_cascade.inference.plausibility import check_input, check_labels, refusal
from kits_cascade.inference.plausibility_facts import ImageFacts
from kits_cascade.inference.plausibility_finding import Finding, Verdict, verdict_of
from kits_cascade.processor import threads_here
from kits_cascade.volumes.cases import LoadedCase, check_case, load_case, write_result
from kits_cascade.volumes.find import InputCase, find_inputs
from kits_cascade.volumes.volume import Array, Spacing, Volume, to_stored, volume_from_array, volume_from_stored

if TYPE_CHECKING:
    from kits_cascade.models.network import Models

__all__ = ["Cascade", "CascadeOptions", "Prediction", "Speed"]


@dataclass(frozen=True)
class Speed:
    """How thoroughly the networks look, and what they compute with."""

    tta: bool = True  # mirrored copies of every tile in the fine stages, as nnU-Net does by default
    tile_step: float = 0.5
    coarse_tile_step: float = 0.75
    skip_beyond_mm: float | None = 10.0  # leave out tiles of the masses stage further than this from the kidney
    kidney_skip_beyond_mm: float | None = 20.0  # and of the kidney stage from what the coarse stage saw
    engine: str = "auto"  # or torch, openvino
    precision: str = "auto"  # or fp32, bf16

    def changed(
        self, tta: bool | None = None, fast: bool = False, engine: str | None = None, precision: str | None = None
    ) -> Speed:
        """By the command line's switches; None leaves what is set."""
        given: dict[str, Any] = {"tta": tta, "engine": engine, "precision": precision}
        given |= {"tta": False, "tile_step": 0.75} if fast else {}
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def settled(self, device: str) -> tuple[Speed, str]:
        """With engine and precision by name, and the kind of device: all three decide the result's last voxels."""
        from kits_cascade.inference.nnunet.engines import choose_computing

        computing = choose_computing(self.engine, self.precision, device)
        return replace(self, engine=computing.engine, precision=computing.precision), computing.kind


@dataclass(frozen=True)
class ScanCheck:
    """What is odd about a scan: found without the networks, so it may be looked for while they are busy."""

    facts: ImageFacts
    findings: list[Finding]
    seconds: float

    @staticmethod
    def of(loaded: LoadedCase) -> ScanCheck:
        """Look at a case that is loaded."""
        start = time.perf_counter()
        facts = ImageFacts.of(loaded.volume, loaded.air_only)
        findings = check_input(facts)
        return ScanCheck(facts, findings, time.perf_counter() - start)


@dataclass(frozen=True)
class Prediction:
    """The segmentation of one CT, in the axes and the place of what was handed in."""

    loaded: LoadedCase
    result: CascadeResult

    @property
    def labels(self) -> Array:
        """KiTS labels in canonical axes: z, y, x, closest to RAS. For an array that was handed in: its own axes."""
        return self.result.labels

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the result should know."""
        return (*self.loaded.warnings, *self.result.warnings)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about the scan and about its labels, and where to look."""
        volume, bounds = self.loaded.volume, self.result.bounds
        if bounds is None:
            return tuple(check_labels(self.result, None, [], {}))
        labels, grey = bounds.crop(self.labels), bounds.crop(volume.array)
        middle = body_midline(volume.array, volume.affine)
        sure = certainty_map(self.result, "masses")
        lesions = measure_lesions(
            labels, grey, volume.spacing, volume.affine, bounds, volume.shape, middle, sure, self.result.curve
        )
        return tuple(check_labels(self.result, grey, lesions, volumes_ml(labels, volume.spacing)))

    @property
    def verdict(self) -> Verdict:
        """Plausible, doubtful or implausible."""
        return verdict_of(self.findings)

    def save(self, folder: Path | str) -> Path:
        """Write the labels in shape, affine, orientation and format of the input, under the case's own name."""
        return write_result(self.loaded, self.labels, Path(folder))

    def to_nibabel(self) -> Any:
        """As a nibabel image on the input's grid."""
        import nibabel as nib

        volume = self.loaded.volume
        return nib.Nifti1Image(np.ascontiguousarray(to_stored(volume, self.labels)), volume.stored.affine)

    def to_sitk(self) -> Any:
        """As a SimpleITK image on the input's grid."""
        from kits_cascade.volumes.itk import image_of

        return image_of(self.loaded.volume, self.labels, self.loaded.grid)


class Cascade:
    """The whole cascade with its models loaded.

    >>> cascade = Cascade("models.zip")
    >>> cascade("ct.nii.gz").save("out")
    """

    def __init__(
        self,
        models: Path | str | Models | None = None,
        *,
        folds: Sequence[int | str] | None = None,
        device: str = "auto",
        options: CascadeOptions | None = None,
        speed: Speed | None = None,
        predictors: Predictors | WholePredictor | None = None,
        choose: Mapping[str, str] | None = None,
        accept_values: bool = False,
        threads: int | None = None,
    ) -> None:
        """Load the models: by default those in nnUNet_results, else of a folder or zip of ``models export``.

        ``predictors`` replaces the networks altogether (then nothing is loaded, and torch is not needed).
        ``accept_values`` predicts also where the values are surely no Hounsfield units. ``threads`` is how many the
        networks take in OpenVINO, where that is not the number of the process.
        """
        self.accept_values = accept_values
        self.options = options or CascadeOptions()
        self.speed = speed or Speed()
        self.models: Models | None = None
        if predictors is None:
            self.models = _resolved(models, folds, choose)
            predictors = load_networks(self.models, device, self.speed, self.options, threads)
        self.predictors = predictors

    @property
    def device(self) -> str:
        """What the networks compute on; empty where they are not ours."""
        return str(self.computed_with.get("device", ""))

    @property
    def computed_with(self) -> dict[str, Any]:
        """Engine, precision, device and threads; empty where the networks are not ours."""
        return dict(getattr(self.predictors, "computed_with", {}))

    def __call__(self, image: Any, spacing: Spacing | None = None, *, report: Report = lambda _: None) -> Prediction:
        """Segment a CT: a path, a nibabel or SimpleITK image, a volume, or a z, y, x array with its spacing."""
        loaded = as_loaded(image, spacing)
        return Prediction(loaded, self.run(loaded, report))

    def run(self, loaded: LoadedCase, report: Report = lambda _: None, scan: ScanCheck | None = None) -> CascadeResult:
        """Segment a case that is loaded. Raises a CaseError where it is surely no CT in Hounsfield units.

        ``scan``: what was found about it, where somebody has looked already.
        """
        volume, scan = loaded.volume, scan or ScanCheck.of(loaded)
        reason = refusal(scan.findings)
        if loaded.air_only:
            result = CascadeResult(np.zeros(volume.shape, dtype=np.uint8))
        elif reason and not self.accept_values:
            raise CaseError(loaded.case.name, reason)
        else:
            result = self._networks_answer(volume, report)
            result.seconds["plausibility"] = scan.seconds
        result.facts, result.findings = scan.facts, list(scan.findings)
        calibration = getattr(self.models, "calibration", None)
        result.curve = None if calibration is None else calibration.curve
        return result

    def _networks_answer(self, volume: Volume, report: Report) -> CascadeResult:
        if hasattr(self.predictors, "whole"):
            one = cast("WholePredictor", self.predictors)
            return run_whole(volume.array, volume.spacing, one, self.options, report)
        return run_cascade(volume.array, volume.spacing, cast("Predictors", self.predictors), self.options, report)


def _resolved(
    models: Path | str | Models | None, folds: Sequence[int | str] | None, choose: Mapping[str, str] | None
) -> Models:
    from kits_cascade.models.choose import resolve_models

    if models is not None and not isinstance(models, (str, Path)):
        return models
    return resolve_models(None if models is None else Path(models), folds=folds, choose=choose)


def load_networks(
    models: Models, device: str, speed: Speed, options: CascadeOptions, threads: int | None = None
) -> Any:
    """The networks, ready to predict: Predictors of a cascade, or a WholePredictor."""
    from kits_cascade.inference.nnunet.engines import choose_computing
    from kits_cascade.inference.nnunet.network_source import begin_with_networks

    # Settled before any thread loads PyTorch, which may have another number.
    threads = threads or threads_here()
    computing = replace(choose_computing(speed.engine, speed.precision, device), threads=threads)
    begin_with_networks(models.all, computing)  # while modules are loaded
    from kits_cascade.inference.nnunet.predictors import NnunetPredictors, WholePredictor
    from kits_cascade.inference.nnunet.tiles import TileOptions
    from kits_cascade.models.network import SingleModel

    if isinstance(models, SingleModel):
        return WholePredictor(models.model, computing, TileOptions(speed.tile_step, speed.tta, skip_beyond_mm=None))
    networks = NnunetPredictors(
        models,
        computing,
        coarse=TileOptions(speed.coarse_tile_step, mirror=False, skip_beyond_mm=None),
        fine=TileOptions(speed.tile_step, speed.tta, speed.skip_beyond_mm),
        kidney=TileOptions(speed.tile_step, speed.tta, speed.kidney_skip_beyond_mm),
    )
    networks.keep_probabilities = options.save_probabilities
    return networks


def as_loaded(image: Any, spacing: Spacing | None = None) -> LoadedCase:
    """Whatever a caller may have, as a loaded case."""
    if isinstance(image, LoadedCase):
        return image
    if isinstance(image, str | Path):
        return _one_case(Path(image))
    if isinstance(image, Volume):
        return _loaded(image)
    if isinstance(image, np.ndarray):
        return _loaded(_from_array(image, spacing))
    if hasattr(image, "dataobj") and hasattr(image, "affine"):
        return _loaded(volume_from_stored(np.asanyarray(image.dataobj), image.affine, _nifti_header(image)))
    if hasattr(image, "GetDirection"):
        from kits_cascade.volumes.itk import volume_of

        return _loaded(*volume_of(image, Path("image")))
    raise UsageError(
        f"a {type(image).__name__} cannot be segmented; needed is a path, a nibabel or SimpleITK image, or an array "
        "with its spacing"
    )


def _one_case(path: Path) -> LoadedCase:
    cases = find_inputs(path)
    if len(cases) != 1:
        raise UsageError(f"{path}: {len(cases)} cases; call with one of them, or use kits-cascade predict for all")
    return load_case(cases[0])


def _loaded(volume: Volume, grid: Any = None) -> LoadedCase:
    if volume.array.dtype == np.float64:
        volume = volume.with_array(volume.array.astype(np.float32))
    return check_case(LoadedCase(InputCase("image", Path("image in memory"), "nifti"), volume, grid))


def _from_array(array: Array, spacing: Spacing | None) -> Volume:
    if spacing is None:
        raise UsageError("an array needs its spacing: (z, y, x) in mm")
    if array.ndim != 3 or len(spacing) != 3 or min(spacing) <= 0:
        raise UsageError(f"needed is a 3-D array and three positive spacings, not shape {array.shape} and {spacing}")
    return volume_from_array(array, spacing=spacing)


def _nifti_header(image: Any) -> Any:
    import nibabel as nib

    return image.header if isinstance(image.header, nib.Nifti1Header) else None

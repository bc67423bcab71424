"""The cascade over one volume: coarse, regions, kidney, masses, paint, postprocess. Knows neither torch nor nnU-Net.

The networks come in as callables, so that tests run all of it with an oracle that answers from a phantom's truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np

from kits_cascade.inference.certainty import Agreement, Certainty
from kits_cascade.inference.plausibility_facts import ImageFacts
from kits_cascade.inference.plausibility_finding import Finding
from kits_cascade.inference.postprocess import PostprocessOptions, postprocess
from kits_cascade.inference.roi import FineGrid, mask_on_grid, surroundings, without_strangers
from kits_cascade.labels import CYST, KIDNEY, PAINT_ORDER, TUMOR
from kits_cascade.stages import ROI_MARGIN_MM
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.roi_boxes import boxes_in_volume
from kits_cascade.volumes.volume import Array, Spacing

Report = Callable[[str], None]
# Which label wins where two regions overlap: the one that is painted later.
_RANK: Final = np.array([0, *(PAINT_ORDER.index(label) + 1 for label in (KIDNEY, TUMOR, CYST))], dtype=np.uint8)


class RegionPredictor(Protocol):
    """The fine stages in one region of interest; masks are of the region's own voxels."""

    @property
    def probabilities(self) -> dict[str, Array]:
        """Per stage, where they were asked for."""

    def kidney(self, near: Array | None) -> Array:
        """Kidneys with their masses; ``near`` is where the coarse stage saw them."""

    def masses(self, kidney: Array, near: Array) -> tuple[Array, Array]:
        """Masses, and tumours alone; ``near`` is the part of the kidney mask where they are asked for."""


class Predictors(Protocol):
    """The networks of the cascade.

    They may have an attribute ``grid`` (a FineGrid or None): then regions come with surroundings that suit it. Their
    regions may have ``certainty`` and ``agreements``: see :mod:`kits_cascade.inference.certainty`.
    """

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent, by kind of work (``network``: the tiles alone)."""

    def coarse(self, image: Array, spacing: Spacing) -> Array:
        """Kidneys with their masses in the whole field of view, on a grid of any resolution."""

    def region(self, image: Array, spacing: Spacing, box: Box) -> RegionPredictor:
        """The fine stages in a region, whose voxels are given."""


@dataclass(frozen=True)
class CascadeOptions:
    """What decides the result, besides the models."""

    margin_mm: float = ROI_MARGIN_MM
    on_empty: Literal["empty", "full"] = "empty"
    postprocess: PostprocessOptions | None = field(default_factory=PostprocessOptions)  # None: leave all as predicted
    save_probabilities: bool = False
    keep_stages: bool = False
    dicom: tuple[str, ...] = ()  # what is also written as DICOM: see runs/dicom_results


@dataclass
class CascadeResult:
    """The labels of one volume, and how they came about."""

    labels: Array
    boxes: list[Box] = field(default_factory=list)
    crops: list[Box] = field(default_factory=list)  # per box what the fine networks were shown: its surroundings too
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    coarse: Array | None = None  # on the coarse network's grid
    unprocessed: Array | None = None  # labels before postprocessing
    probabilities: list[dict[str, Array]] = field(default_factory=list)  # per crop
    certainty: list[list[Certainty]] = field(default_factory=list)  # per crop, of each fine network that tells it
    agreements: list[Agreement] = field(default_factory=list)  # of folds, of mirrored tiles, where there were several
    curve: tuple[float, float] | None = None  # what the certainty of a lesion is worth, of networks that are calibrated
    facts: ImageFacts | None = None  # of the scan, for the checks of plausibility
    findings: list[Finding] = field(default_factory=list)  # of the scan

    @property
    def bounds(self) -> Box | None:
        """The box around all regions."""
        whole = self.boxes[0] if self.boxes else None
        for box in self.boxes[1:]:
            whole = box if whole is None else whole.union(box)
        return whole


def paint(kidney: Array, masses: Array, tumor: Array) -> Array:
    """KiTS labels in the challenge's order: out[K|M|T] = 1; out[M] = 3; out[T] = 2."""
    labels = np.zeros(kidney.shape, dtype=np.uint8)
    labels[kidney | masses | tumor] = KIDNEY
    labels[masses] = CYST
    labels[tumor] = TUMOR
    return labels


def paste(into: Array, box: Box, labels: Array) -> None:
    """Labels of a region into the whole; where regions overlap, the label that is painted later wins."""
    there = box.crop(into)
    np.copyto(there, labels, where=_RANK[labels] > _RANK[there])


class _Region:
    """A box, and the fine networks' answers in it; what they are shown is the box with its surroundings."""

    def __init__(self, box: Box, crop: Box, predictor: RegionPredictor) -> None:
        self.box, self.crop = box, crop
        self._predictor = predictor
        self._within = box.seen_from(crop)  # the box, in the crop's voxels
        self._around = np.zeros(0, dtype=bool)

    @property
    def probabilities(self) -> dict[str, Array]:
        """Of the whole crop."""
        return self._predictor.probabilities

    @property
    def certainty(self) -> list[Certainty]:
        """Of each fine network that tells how sure it is."""
        return list(getattr(self._predictor, "certainty", ()))

    @property
    def agreements(self) -> list[Agreement]:
        """Of folds and of mirrored tiles."""
        return list(getattr(self._predictor, "agreements", ()))

    def kidney(self, near: Array | None) -> Array:
        """Kidneys with their masses, in the box; only tiles that matter there are needed."""
        self._around = self._predictor.kidney(None if near is None else self._shown(near))
        return self._within.crop(self._around).copy()

    def masses(self, kidney: Array) -> tuple[Array, Array]:
        """Masses, and tumours alone, in the box. Around it the kidney mask is as the network left it."""
        around = self._around.copy()
        self._within.paste(around, kidney)
        masses, tumor = self._predictor.masses(around, self._shown(kidney))
        return self._within.crop(masses), self._within.crop(tumor)

    def _shown(self, mask: Array) -> Array:
        """A mask of the box in the crop, with nothing around it."""
        around = np.zeros(self.crop.shape, dtype=mask.dtype)
        self._within.paste(around, mask)
        return around


class _Run:
    """One volume on its way through the cascade."""

    def __init__(
        self, image: Array, spacing: Spacing, predictors: Predictors, options: CascadeOptions, report: Report
    ) -> None:
        self.image, self.spacing = image, spacing
        self.predictors, self.options, self.report = predictors, options, report
        self.result = CascadeResult(np.zeros(image.shape, dtype=np.uint8))
        self.kidneys: list[tuple[Box, Array]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.report(name)
        start = time.perf_counter()
        yield
        seconds = self.result.seconds
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    def regions(self) -> list[Box]:
        with self.step("coarse"):
            coarse = self.predictors.coarse(self.image, self.spacing)
            boxes = boxes_in_volume(coarse, self.spacing, self.image.shape, self.options.margin_mm)
        self.result.coarse = coarse
        if boxes:
            return boxes
        if self.options.on_empty == "full":
            self.result.warnings.append("the coarse stage found no kidney; the fine stages ran on the whole volume")
            self.result.coarse = None
            return [Box.full(self.image.shape)]
        self.result.warnings.append(
            "the coarse stage found no kidney: the segmentation is empty (--on-empty full looks everywhere)"
        )
        return []

    def region(self, box: Box) -> _Region:
        """A box with its surroundings."""
        grid: FineGrid | None = getattr(self.predictors, "grid", None)
        crop = box if grid is None else surroundings(box, self.spacing, grid, self.image.shape)
        return _Region(box, crop, self.predictors.region(crop.crop(self.image), self.spacing, crop))

    def fine(self, box: Box) -> None:
        """Kidney and masses in a region."""
        coarse = self.result.coarse
        near = None if coarse is None else mask_on_grid(coarse, box, self.image.shape)
        with self.step("kidney"):
            region = self.region(box)
            kidney = without_strangers(region.kidney(near), near, box, self.image.shape)
            if box.inner_faces_touched(kidney, self.image.shape):
                region, kidney = self.redone(near, region, kidney)
        with self.step("masses"):
            # Without a kidney there is nothing that a mass could belong to.
            masses, tumor = region.masses(kidney) if kidney.any() else (kidney, kidney)
        if self.options.save_probabilities:
            self.result.probabilities.append(region.probabilities)
        paste(self.result.labels, region.box, paint(kidney, masses, tumor))
        self.result.certainty.append(region.certainty)
        self.result.agreements.extend(region.agreements)
        self.result.boxes.append(region.box)
        self.result.crops.append(region.crop)
        self.kidneys.append((region.box, kidney))

    def redone(self, near: Array | None, first: _Region, kidney: Array) -> tuple[_Region, Array]:
        """The kidney in a larger box, once; or as it was, where the larger box lets it run away."""
        box = first.box
        larger = box.grown(self.options.margin_mm, self.spacing).clipped(self.image.shape)
        within = box.seen_from(larger)  # the first box, in the larger one's voxels
        wider = None
        if near is not None and self.result.coarse is not None:
            wider = mask_on_grid(self.result.coarse, larger, self.image.shape) != 0
            within.crop(wider)[kidney] = True
        region = self.region(larger)
        # The coarse stage has missed something: no tile is left out this time.
        grown = without_strangers(region.kidney(None), wider, larger, self.image.shape)
        settled = not larger.inner_faces_touched(grown, self.image.shape)
        # What still reaches on, and is mostly where the coarse stage saw nothing, is another organ and not a kidney.
        if not settled and np.count_nonzero(grown) > 2 * np.count_nonzero(within.crop(grown)):
            self.result.warnings.append(
                "a kidney ran out of its box, and further out of the grown one than a kidney can: "
                "it was cut at the first box; look at this case"
            )
            return first, kidney
        self.result.notes.append(
            "a kidney reached the border of its box: the box was grown, and the kidney stage redone"
        )
        if not settled:
            self.result.warnings.append(
                "a kidney reaches the border of its box, also of the grown one: look at this case"
            )
        return region, grown

    def finish(self) -> None:
        bounds = self.result.bounds
        if self.options.keep_stages:
            self.result.unprocessed = self.result.labels.copy()
        if bounds is None or self.options.postprocess is None:
            return
        with self.step("postprocess"):
            kidney = np.zeros(bounds.shape, dtype=bool)
            for box, mask in self.kidneys:
                inside = box.seen_from(bounds).crop(kidney)
                np.logical_or(inside, mask, out=inside)
            labels = np.ascontiguousarray(bounds.crop(self.result.labels))
            done = postprocess(labels, self.spacing, self.options.postprocess, kidney)
            bounds.paste(self.result.labels, done.labels)
        self.result.notes.extend(done.notes)


class WholePredictor(Protocol):
    """A network that sees the whole scan."""

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent, by kind of work."""

    def whole(self, image: Array, spacing: Spacing) -> Array:
        """KiTS labels, at the voxels of the image."""


def run_whole(
    image: Array,
    spacing: Spacing,
    predictor: WholePredictor,
    options: CascadeOptions | None = None,
    report: Report = lambda _: None,
) -> CascadeResult:
    """Segment one canonical CT volume with one network."""
    options, start = options or CascadeOptions(), time.perf_counter()
    report("network")
    labels = predictor.whole(image, spacing)
    result = CascadeResult(labels, seconds={"whole": time.perf_counter() - start})
    around = Box.around(labels)
    result.boxes = result.crops = [] if around is None else [around]
    if options.keep_stages:
        result.unprocessed = labels.copy()
    if options.postprocess is not None:
        done = postprocess(labels, spacing, options.postprocess)
        result.labels, result.notes = done.labels, list(done.notes)
    return result


def run_cascade(
    image: Array,
    spacing: Spacing,
    predictors: Predictors,
    options: CascadeOptions | None = None,
    report: Report = lambda _: None,
) -> CascadeResult:
    """Segment one canonical CT volume (z, y, x)."""
    before = dict(predictors.seconds)
    run = _Run(image, spacing, predictors, options or CascadeOptions(), report)
    for box in run.regions():
        run.fine(box)
    run.finish()
    for kind, seconds in predictors.seconds.items():
        run.result.seconds[kind] = seconds - before.get(kind, 0.0)
    return run.result

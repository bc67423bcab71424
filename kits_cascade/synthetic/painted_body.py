"""A body for one painted case: which tissue lies where, and the KiTS labels.

One affine and elastic map is drawn from the grid of the case to a real anatomy, and tissues are looked up once. The
kidneys come from KiTS masks and take the place of the anatomy's own; what label maps lack (fat, skin, wall of the
abdomen, vessels, contents of the bowel) is made up around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.synthetic.noise import Noise
from kits_cascade.synthetic.subjects import COARSE, GRID_MM, KIDNEY_CODE, Anatomy, KidneySource, hull_margin
from kits_cascade.synthetic.tissues import CODE
from kits_cascade.volume import Array, Spacing

VIEWS: Final = ("abdomen", "whole", "cut", "thorax", "pelvis")
VIEW_SHARES: Final = (0.62, 0.14, 0.14, 0.05, 0.05)
_LATTICE_MM: Final = 9.0


@dataclass(frozen=True)
class BodyPlan:
    """What was drawn for a case; what is in it follows from this and the noise."""

    anatomy: Anatomy
    kidneys: dict[str, KidneySource | None]  # by side; None: the kidney is missing
    view: str
    mirrored: bool
    scale: tuple[float, float, float]
    angles: tuple[float, float, float]
    elastic: tuple[float, float]  # mm, at 90 and at 35 mm
    wall: float  # thickness of the muscles around the abdomen, mm
    fat: float  # of the subcutaneous fat, mm
    events: frozenset[str] = field(default_factory=frozenset)
    own_kidneys: bool = False


EVENTS: Final = {  # chance of each in a case
    "ascites": 0.10,
    "effusion": 0.08,
    "mass": 0.15,
    "arms": 0.15,
    "table": 0.75,
    "oral contrast": 0.2,
    "hydronephrosis": 0.08,
    "stones": 0.07,
    "pyelum": 0.5,
    "metal": 0.04,
}


def draw_plan(
    rng: np.random.Generator,
    anatomy: Anatomy,
    kidneys: dict[str, KidneySource | None],
    own_kidneys: bool = False,
    view: str | None = None,
) -> BodyPlan:
    """Size, posture, build and what is unusual."""
    size = rng.uniform(0.85, 1.2)
    return BodyPlan(
        anatomy,
        kidneys,
        view or str(rng.choice(VIEWS, p=VIEW_SHARES)),
        bool(rng.random() < 0.3),
        tuple(float(size * rng.uniform(0.9, 1.12)) for _ in range(3)),  # type: ignore[arg-type]
        tuple(float(rng.normal(0, s)) for s in (7, 5, 5)),  # type: ignore[arg-type]
        (float(rng.uniform(4, 13)), float(rng.uniform(1, 4))),
        float(rng.uniform(2, 14)),
        float(np.exp(rng.uniform(np.log(2.5), np.log(45)))),
        frozenset(name for name, chance in EVENTS.items() if rng.random() < chance),
        own_kidneys,
    )


@dataclass(frozen=True)
class Body:
    """Tissue codes and KiTS labels on the grid of a case."""

    tissue: Array
    labels: Array


class BodyPainter:
    """Paints one body on a grid."""

    def __init__(self, plan: BodyPlan, shape: Sequence[int], spacing: Spacing, rng: np.random.Generator) -> None:
        self.plan = plan
        self.shape = tuple(shape)
        self.spacing = spacing
        self.rng = rng
        self.noise = Noise(int(rng.integers(2**62)))

    def paint(self, centre: Sequence[float]) -> Body:
        """The body around ``centre``, a place in the anatomy in mm (z, y, x)."""
        places = self._places(centre)
        tissue = self._look_up(places)
        outside = self._distance(places)
        self._dress(tissue, outside)
        self._fill_gut(tissue)
        labels = np.zeros(self.shape, dtype=np.uint8)
        self._events(tissue, outside, places)
        self._put_kidneys(tissue, labels, places)
        return Body(tissue, labels)

    def _mm(self, millimetres: float) -> list[float]:
        return [max(1.0, millimetres / s) for s in self.spacing]

    # --- the map

    def _places(self, centre: Sequence[float]) -> Array:
        """Place in the anatomy (mm, z y x) of every voxel."""
        plan = self.plan
        extent = [n * s for n, s in zip(self.shape, self.spacing, strict=True)]
        lattice = [max(3, int(np.ceil(e / _LATTICE_MM)) + 1) for e in extent]
        halves = [(e - s) / 2 for e, s in zip(extent, self.spacing, strict=True)]
        axes = [np.linspace(-h, h, n) for h, n in zip(halves, lattice, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        matrix = _rotation(plan.angles) @ np.diag(1 / np.array(plan.scale))
        if plan.mirrored:
            matrix[:, 2] *= -1
        moved = np.einsum("ij,jzyx->izyx", matrix.astype(np.float32), grid)
        for scale, strength in zip((90.0, 35.0), plan.elastic, strict=True):
            moved += self.noise.displacement(lattice, extent, scale, strength)
        moved += np.asarray(centre, dtype=np.float32)[:, None, None, None]
        full = interpolate(torch.from_numpy(moved.astype(np.float32))[None], self.shape, mode="trilinear", align_corners=True)
        return full[0].numpy()

    def _look_up(self, places: Array) -> Array:
        source = self.plan.anatomy.tissue
        index = np.rint(places / GRID_MM - 0.5).astype(np.int32)
        inside = np.ones(self.shape, dtype=bool)
        for axis, size in enumerate(source.shape):
            inside &= (index[axis] >= 0) & (index[axis] < size)
            np.clip(index[axis], 0, size - 1, out=index[axis])
        flat = (index[0] * source.shape[1] + index[1]) * source.shape[2] + index[2]
        found = source.ravel()[flat]
        found[~inside] = 0
        return found

    def _distance(self, places: Array) -> Array:
        """Distance to the hull, interpolated."""
        source = self.plan.anatomy.outside
        step, margin = GRID_MM * COARSE, hull_margin()
        grid = torch.from_numpy(places.copy())
        shifts = (0.0, margin, margin)
        for axis, (size, shift) in enumerate(zip(source.shape, shifts, strict=True)):
            grid[axis] = (grid[axis] + shift - GRID_MM / 2) / step / (size - 1) * 2 - 1
        order = torch.stack([grid[2], grid[1], grid[0]], -1)[None]
        field = torch.from_numpy(source.astype(np.float32))[None, None]
        found = grid_sample(field, order, mode="bilinear", padding_mode="border", align_corners=True)
        return found[0, 0].numpy()

    # --- what label maps lack

    def _dress(self, tissue: Array, outside: Array) -> None:
        """Fat in the cavity, muscles around it, fat and skin around these."""
        plan = self.plan
        own = tissue == KIDNEY_CODE
        bare = tissue == 0
        wobble = self.noise.smooth(self.shape, self._mm(55)).numpy()
        wall = plan.wall * np.clip(1 + 0.35 * wobble, 0.3, 2)
        fat = plan.fat * np.clip(1 - 0.3 * wobble, 0.4, 2)
        # Fat lies in front and at the sides of a lying body more than at its back.
        inner = outside <= 0
        tissue[bare] = CODE["air"]
        tissue[bare & (outside <= wall + fat + 2.5)] = CODE["skin"]
        tissue[bare & (outside <= wall + fat)] = CODE["subcutaneous fat"]
        tissue[bare & (outside <= wall)] = CODE["muscle"]
        tissue[bare & inner] = CODE["visceral fat"]
        tissue[own] = CODE["visceral fat"] if not plan.own_kidneys else KIDNEY_CODE
        cavity = bare & (outside < -3)
        lumps = self.noise.smooth(self.shape, self._mm(9)).numpy()
        share = self.rng.uniform(0.9, 2.6)
        tissue[cavity & (lumps > share)] = CODE["loose tissue"]
        strands = self.noise.smooth(self.shape, self._mm(4.5)).numpy()
        tissue[cavity & (strands > self.rng.uniform(1.5, 2.8))] = CODE["small vessel"]

    def _fill_gut(self, tissue: Array) -> None:
        """Gas, stool, fluid and contrast in stomach and bowel."""
        fields = [self.noise.smooth(self.shape, self._mm(size)).numpy() for size in (16, 7)]
        contrast = "oral contrast" in self.plan.events
        for name, gas, stool in (("stomach", 1.0, 3.0), ("small bowel", 2.0, 2.5), ("colon", 0.7, 0.1), ("duodenum", 2.2, 3)):
            part = tissue == CODE[name]
            inner = part & ndimage.binary_erosion(part, iterations=max(1, round(2.5 / self.spacing[1])))
            tissue[inner & (fields[1] > stool + self.rng.normal(0, 0.4))] = CODE["stool"]
            tissue[inner & (fields[0] > gas + self.rng.normal(0, 0.5))] = CODE["gas"]
            if contrast:
                tissue[inner & (fields[0] < self.rng.normal(-0.3, 0.6))] = CODE["gut contrast"]

    # --- what is unusual

    def _events(self, tissue: Array, outside: Array, places: Array) -> None:
        events = self.plan.events
        if "ascites" in events:
            front = places[1] > self._kidney_row() + 12
            field = self.noise.smooth(self.shape, self._mm(30)).numpy()
            loose = np.isin(tissue, [CODE["visceral fat"], CODE["loose tissue"]]) & (outside < 4) & front
            tissue[loose & (field > self.rng.uniform(-2.5, 0.5))] = CODE["fluid"]
        if "effusion" in events:
            lung = tissue == CODE["lung"]
            level = self.plan.anatomy.extent[1] * self.rng.uniform(0.25, 0.5)
            tissue[lung & (places[1] < level)] = CODE["fluid"]
        if "mass" in events:
            self._foreign_mass(tissue, outside)
        if "arms" in events:
            self._arms(tissue)
        if "table" in events:
            self._table(tissue)
        if "metal" in events:
            bone = np.flatnonzero(tissue == CODE["marrow"])
            if len(bone):
                self._ball(tissue, bone, self.rng.uniform(3, 9), CODE["metal"])

    def _kidney_row(self) -> float:
        centres = list(self.plan.anatomy.kidneys.values())
        return float(np.mean([c[1] for c in centres])) if centres else self.plan.anatomy.extent[1] / 2

    def _ball(self, tissue: Array, choices: Array, radius: float, code: int, spare: Sequence[int] = ()) -> None:
        """An uneven ellipsoid around one of the voxels ``choices``."""
        place = np.unravel_index(int(self.rng.choice(choices)), self.shape)
        radii = [radius * self.rng.uniform(0.7, 1.3) / s for s in self.spacing]
        window = tuple(
            slice(max(0, int(p - 1.4 * r)), int(p + 1.4 * r) + 1) for p, r in zip(place, radii, strict=True)
        )
        view = tissue[window]
        axes = [np.arange(s.start, s.start + n) for s, n in zip(window, view.shape, strict=True)]
        grids = np.meshgrid(*axes, indexing="ij", sparse=True)
        distance = sum(((g - p) / r) ** 2 for g, p, r in zip(grids, place, radii, strict=True))
        bumps = self.noise.smooth(view.shape, [max(2.0, r * 0.7) for r in radii]).numpy()
        view[(distance + 0.2 * bumps < 1) & ~np.isin(view, list(spare))] = code

    def _foreign_mass(self, tissue: Array, outside: Array) -> None:
        deep = np.flatnonzero(outside < -15)
        if not len(deep):
            return
        spare = [CODE[n] for n in ("marrow", "cortical bone", "artery", "vein", "disc", "lung", "air")]
        for _ in range(int(self.rng.integers(1, 3))):
            kind = "foreign mass" if self.rng.random() < 0.75 else "fluid"
            self._ball(tissue, deep, float(np.exp(self.rng.uniform(np.log(15), np.log(80)))), CODE[kind], spare)

    def _arms(self, tissue: Array) -> None:
        """One arm or both beside the body, on the side where there is room."""
        body = (tissue != CODE["air"]).any(axis=0)
        columns = np.flatnonzero(body.any(axis=0))
        if not len(columns):
            return
        radius = self.rng.uniform(35, 55)
        y0 = float(np.argwhere(body)[:, 0].mean()) * self.spacing[1] + self.rng.normal(0, 20)
        y, x = (np.arange(n)[:, None] * s for n, s in zip(self.shape[1:], self.spacing[1:], strict=True))
        for x0 in (columns[0] * self.spacing[2] - radius - 3, columns[-1] * self.spacing[2] + radius + 3):
            if self.rng.random() < 0.3:
                continue
            distance = np.hypot(y - y0, x.T - x0) / radius
            free = (tissue == CODE["air"]) & (distance < 1)[None]
            limits = ((1.0, "subcutaneous fat"), (self.rng.uniform(0.6, 0.85), "muscle"), (0.27, "cortical bone"), (0.17, "marrow"))
            for limit, name in limits:
                tissue[free & (distance < limit)[None]] = CODE[name]

    def _table(self, tissue: Array) -> None:
        body = tissue != CODE["air"]
        rows = np.flatnonzero(body.any(axis=(0, 2)))
        if not len(rows):
            return
        lowest = rows[0] * self.spacing[1] - self.rng.uniform(-4, 15)
        y, x = (np.arange(n)[:, None] * s for n, s in zip(self.shape[1:], self.spacing[1:], strict=True))
        middle = self.shape[2] * self.spacing[2] / 2
        top = lowest + self.rng.uniform(0.1, 1) * ((x.T - middle) / 200) ** 2 * 90
        depth = top - y
        thick = self.rng.uniform(4, 40)
        shell = (depth > 0) & (depth < thick) & (np.abs(x.T - middle) < self.rng.uniform(160, 270))
        if thick > 12:  # a padded shell: two thin skins
            shell &= (depth < 4) | (depth > thick - 4)
        tissue[(tissue == CODE["air"]) & shell[None]] = CODE["table"]

    # --- kidneys

    def _put_kidneys(self, tissue: Array, labels: Array, places: Array) -> None:
        plan = self.plan
        if plan.own_kidneys:
            own = tissue == KIDNEY_CODE
            labels[own] = KIDNEY
            self._inside(tissue, labels, own)
            return
        for side, source in plan.kidneys.items():
            if source is None or side not in plan.anatomy.kidneys:
                continue
            found = self._place_kidney(source, side, places)
            if found is not None:
                window, values = found
                view = labels[window]
                view[values > 0] = values[values > 0]
        self._inside(tissue, labels, labels > 0)

    def _place_kidney(self, source: KidneySource, side: str, places: Array) -> tuple[tuple[slice, ...], Array] | None:
        """The labels of one kidney on the grid, in the window that holds them."""
        rng = self.rng
        centre = np.array(self.plan.anatomy.kidneys[side]) + rng.normal(0, 6, 3)
        matrix = _rotation(tuple(rng.normal(0, 9, 3))) @ np.diag(1 / rng.uniform(0.85, 1.2, 3))
        if side != source.side:
            matrix[:, 2] *= -1
        reach = np.linalg.norm(np.array(source.labels.shape) * GRID_MM) * 1.0
        near = np.ones(self.shape, dtype=bool)
        for axis in range(3):
            near &= np.abs(places[axis] - centre[axis]) < reach * (1.2 if axis == 0 else 1.0)
        boxes = ndimage.find_objects(near.astype(np.uint8))
        if not boxes:
            return None
        window = boxes[0]
        relative = places[(slice(None), *window)] - centre.astype(np.float32)[:, None, None, None]
        index = np.einsum("ij,jzyx->izyx", (matrix / GRID_MM).astype(np.float32), relative)
        index += np.array(source.centre, dtype=np.float32)[:, None, None, None]
        index = np.rint(index).astype(np.int32)
        valid = np.ones(index.shape[1:], dtype=bool)
        for axis, size in enumerate(source.labels.shape):
            valid &= (index[axis] >= 0) & (index[axis] < size)
            np.clip(index[axis], 0, size - 1, out=index[axis])
        values = source.labels[index[0], index[1], index[2]]
        values[~valid] = 0
        return tuple(window), values

    def _inside(self, tissue: Array, labels: Array, kidneys: Array) -> None:
        """Cortex, medulla, pelvis and sinus of kidneys; what lesions are made of."""
        boxes = ndimage.find_objects(ndimage.label(kidneys)[0])
        for box in boxes:
            grown = tuple(slice(max(0, s.start - 4), s.stop + 4) for s in box)
            self._one_kidney(tissue[grown], labels[grown])

    def _one_kidney(self, tissue: Array, labels: Array) -> None:
        rng, events = self.rng, self.plan.events
        whole = labels > 0
        depth = ndimage.distance_transform_edt(whole, self.spacing).astype(np.float32)
        coarse = self.noise.smooth(labels.shape, self._mm(7)).numpy()
        fine = self.noise.smooth(labels.shape, self._mm(3.5)).numpy()
        kidney = labels == KIDNEY
        tissue[kidney] = CODE["cortex"]
        tissue[kidney & (depth > rng.uniform(4, 8) + 1.8 * coarse)] = CODE["medulla"]
        core = depth > rng.uniform(11, 19) + 2.5 * coarse
        tissue[kidney & core] = CODE["sinus fat"]
        if "pyelum" in events or "hydronephrosis" in events:
            wide = -0.6 if "hydronephrosis" in events else 0.7
            reach = 7.5 if "hydronephrosis" in events else 10
            tissue[kidney & (depth > reach) & (coarse > wide)] = CODE["urine"]
        self._sinus_around(tissue, whole)
        if "stones" in events:
            deep = np.flatnonzero(kidney & (depth > 6))
            if len(deep):
                place = np.unravel_index(int(rng.choice(deep)), labels.shape)
                reach = rng.uniform(1.5, 6)
                near = tuple(slice(max(0, int(p - reach / s)), int(p + reach / s) + 1) for p, s in zip(place, self.spacing, strict=True))
                view = tissue[near]
                view[labels[near] == KIDNEY] = CODE["stone"]
        self._lesions(tissue, labels, coarse, fine)

    def _sinus_around(self, tissue: Array, whole: Array) -> None:
        """Fat around kidneys that touch other organs, here and there: some kidneys lie free, some do not."""
        gap = self.rng.uniform(-1.5, 5)
        if gap <= 0:
            return
        rim = ndimage.binary_dilation(whole, iterations=max(1, round(gap / self.spacing[1]))) & ~whole
        soft = [CODE[n] for n in ("liver", "spleen", "muscle", "colon", "small bowel", "pancreas", "duodenum", "stomach", "loose tissue", "fluid")]
        tissue[rim & np.isin(tissue, soft)] = CODE["visceral fat"]

    def _lesions(self, tissue: Array, labels: Array, coarse: Array, fine: Array) -> None:
        rng = self.rng
        tumors, count = ndimage.label(labels == TUMOR)
        kind = rng.random()
        for number in range(1, min(count, 12) + 1):
            part = tumors == number
            tissue[part] = CODE["fatty tumor"] if kind < 0.04 else CODE["tumor"]
            if kind > 0.35 and part.sum() * float(np.prod(self.spacing)) > 4000:
                depth = ndimage.distance_transform_edt(part, self.spacing)
                tissue[part & (coarse + 0.12 * depth > rng.uniform(1.0, 2.6))] = CODE["necrosis"]
            if rng.random() < 0.08:
                tissue[part & (fine > 2.3)] = CODE["stone"]
        tissue[(labels == TUMOR) & (tumors > 12)] = CODE["tumor"]
        cysts, count = ndimage.label(labels == CYST)
        for number in range(1, count + 1):
            tissue[cysts == number] = CODE["haemorrhagic cyst" if rng.random() < 0.08 else "cyst"]


def _rotation(degrees: Sequence[float]) -> Any:
    """About z, y and x."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        first, second = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix

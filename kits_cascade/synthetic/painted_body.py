"""A body for one painted case: which tissue lies where, and the KiTS labels.

One affine and elastic map is drawn from the grid of the case to a real anatomy, and tissues are looked up once. What
label maps lack (fat, skin, the wall of the abdomen, vessels, the contents of the bowel) is made up around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

from kits_cascade.synthetic.body_events import paint_events
from kits_cascade.synthetic.body_plan import BodyPlan, Canvas, nearest, rotation
from kits_cascade.synthetic.noise import Noise
from kits_cascade.synthetic.painted_kidneys import paint_kidneys
from kits_cascade.synthetic.subjects import COARSE, GRID_MM, KIDNEY_CODE, hull_margin
from kits_cascade.synthetic.tissues import CODE
from kits_cascade.volumes.volume import Array, Spacing

_LATTICE_MM: Final = 9.0
_SKIN_MM: Final = 2.5


def paint_body(
    plan: BodyPlan, shape: Sequence[int], spacing: Spacing, centre: Sequence[float], rng: np.random.Generator
) -> Canvas:
    """The body around ``centre``, a place in the anatomy in mm (z, y, x)."""
    noise = Noise(int(rng.integers(2**62)))
    places = _map_to_anatomy(plan, shape, spacing, centre, noise)
    tissue = nearest(plan.anatomy.tissue, places / GRID_MM - 0.5)
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    canvas = Canvas(plan, spacing, rng, noise, places, tissue, labels, _distance(plan.anatomy.outside, places))
    _dress(canvas)
    _fill_gut(canvas)
    paint_events(canvas)
    paint_kidneys(canvas)
    return canvas


def _map_to_anatomy(
    plan: BodyPlan, shape: Sequence[int], spacing: Spacing, centre: Sequence[float], noise: Noise
) -> Array:
    """Place in the anatomy (mm, z y x) of every voxel: drawn on a lattice, which is enough for a smooth map."""
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    lattice = [max(3, int(np.ceil(e / _LATTICE_MM)) + 1) for e in extent]
    halves = [(e - s) / 2 for e, s in zip(extent, spacing, strict=True)]
    axes = [np.linspace(-h, h, n) for h, n in zip(halves, lattice, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    matrix = rotation(plan.angles) @ np.diag(1 / np.array(plan.scale))
    if plan.mirrored:
        matrix[:, 2] *= -1
    moved = np.einsum("ij,jzyx->izyx", matrix.astype(np.float32), grid)
    for scale, strength in zip((90.0, 35.0), plan.elastic, strict=True):
        moved += noise.displacement(lattice, extent, scale, strength)
    moved += np.asarray(centre, dtype=np.float32)[:, None, None, None]
    lattice_map = torch.from_numpy(moved.astype(np.float32))[None]
    full: Array = interpolate(lattice_map, tuple(shape), mode="trilinear", align_corners=True)[0].numpy()
    return full


def _distance(source: Array, places: Array) -> Array:
    """Distance to the hull, interpolated."""
    step, margin = GRID_MM * COARSE, hull_margin()
    grid = torch.from_numpy(places.copy())
    for axis, (size, shift) in enumerate(zip(source.shape, (0.0, margin, margin), strict=True)):
        grid[axis] = (grid[axis] + shift - GRID_MM / 2) / step / (size - 1) * 2 - 1
    order = torch.stack([grid[2], grid[1], grid[0]], -1)[None]
    values = torch.from_numpy(source.astype(np.float32))[None, None]
    found: Array = grid_sample(values, order, mode="bilinear", padding_mode="border", align_corners=True)[0, 0].numpy()
    return found


def _dress(canvas: Canvas) -> None:
    """Fat in the cavity, muscles around it, fat and skin around these; vessels and what else has no label."""
    plan, tissue, outside, rng = canvas.plan, canvas.tissue, canvas.outside, canvas.rng
    own = tissue == KIDNEY_CODE
    bare = tissue == 0
    wobble = canvas.smooth(55)
    wall = plan.wall * np.clip(1 + 0.35 * wobble, 0.3, 2)
    fat = plan.fat * np.clip(1 - 0.3 * wobble, 0.4, 2)
    shells = (("skin", wall + fat + _SKIN_MM), ("subcutaneous fat", wall + fat), ("muscle", wall), ("visceral fat", 0))
    for name, reach in shells:
        tissue[bare & (outside <= reach)] = CODE[name]
    if "lean" in plan.events:
        _fill_fat(canvas, own)
    if not plan.own_kidneys:
        tissue[own] = CODE["visceral fat"]
    cavity = bare & (outside < -3)
    lumps = canvas.smooth(9)
    tissue[cavity & (lumps > rng.uniform(0.9, 2.6))] = CODE["loose tissue"]
    strands = canvas.smooth(4.5)
    tissue[cavity & (strands > rng.uniform(1.5, 2.8))] = CODE["small vessel"]


_LEAN_MM: Final = (3.0, 14.0)
_NOT_GROWN: Final = ("air", "visceral fat", "subcutaneous fat", "skin", "marrow", "cortical bone", "disc", "cartilage")


def _fill_fat(canvas: Canvas, kidneys: Array) -> None:
    """In thin people there is no fat between organs: each reaches to its neighbours."""
    coarse = canvas.tissue[::2, ::2, ::2]
    still = np.isin(coarse, [CODE[name] for name in _NOT_GROWN]) | (coarse == KIDNEY_CODE)
    step = [2 * s for s in canvas.spacing]
    far, index = ndimage.distance_transform_edt(still, step, return_indices=True)
    near = coarse[tuple(index)]
    near[far > canvas.rng.uniform(*_LEAN_MM)] = CODE["visceral fat"]
    full = near.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(0, n) for n in canvas.tissue.shape)]
    fat = (canvas.tissue == CODE["visceral fat"]) & (canvas.outside < 0) & ~kidneys
    canvas.tissue[fat] = full[fat]


# What is in the gut: how high noise must be for gas, and for stool.
_GUT: Final = (("stomach", 1.0, 3.0), ("small bowel", 2.0, 2.5), ("colon", 0.7, 0.1), ("duodenum", 2.2, 3.0))
_GUT_WALL_MM: Final = 2.5


def _fill_gut(canvas: Canvas) -> None:
    """Gas, stool, fluid and contrast in stomach and bowel."""
    tissue, rng = canvas.tissue, canvas.rng
    wide, narrow = canvas.smooth(16), canvas.smooth(7)
    wall = max(1, round(_GUT_WALL_MM / canvas.spacing[1]))
    for name, gas, stool in _GUT:
        inner = ndimage.binary_erosion(tissue == CODE[name], iterations=wall)
        tissue[inner & (narrow > stool + rng.normal(0, 0.4))] = CODE["stool"]
        tissue[inner & (wide > gas + rng.normal(0, 0.5))] = CODE["gas"]
        if "oral contrast" in canvas.plan.events:
            tissue[inner & (wide < rng.normal(-0.3, 0.6))] = CODE["gut contrast"]

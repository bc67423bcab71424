"""Regions of interest around kidneys and masses: the one place that knows both rules.

Training takes one box for all that is labelled (:func:`roi_box`): its patches are drawn from anywhere in it, and a case
is one preprocessed file. Inference takes a box for each kidney (:func:`kidney_boxes`), where these lie well apart: what
lies between two kidneys is most of the one box, and every tile in it costs time. The margin is the same, and so is the
removal of specks from a coarse mask (:func:`box_without_specks`), so that a training box from a coarse prediction is
the box around all boxes that inference would make.
"""

from __future__ import annotations

from collections.abc import Sequence

from kits_cascade.volumes.components import components, without_specks
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array, Spacing


def roi_box(mask: Array, spacing: Spacing, margin_mm: float) -> Box | None:
    """The region of interest around kidneys and masses: the one function that training and inference share."""
    box = Box.around(mask)
    return None if box is None else box.grown(margin_mm, spacing).clipped(mask.shape)


def box_without_specks(mask: Array, spacing: Spacing) -> Box | None:
    """The tight box around a coarse mask, as inference finds it; None where the mask is empty."""
    around = Box.around(mask)
    if around is None:
        return None
    # Specks are looked for inside the box only: components of a whole large scan would need several times its size.
    found = Box.around(without_specks(around.crop(mask), spacing))
    assert found is not None  # at least one component always stays
    return found.shifted(around.start)


def kidney_boxes(mask: Array, spacing: Spacing, margin_mm: float) -> list[Box]:
    """The boxes to work on, on the mask's own grid: one for each kidney where these lie well apart.

    Boxes that share a voxel become one, and so do boxes whose common box is no larger than the two: so no voxel is in
    two boxes, and never are there more voxels in them than in the one box around everything.
    """
    found = components(without_specks(mask, spacing))
    boxes = [found.box(number).grown(margin_mm, spacing).clipped(mask.shape) for number in range(1, found.count + 1)]
    whole = roi_box(found.labels, spacing, margin_mm)
    apart = merge_boxes(boxes)
    if whole is None or sum(box.size for box in apart) < whole.size:
        return apart
    return [whole]


def boxes_in_volume(coarse: Array, spacing: Spacing, shape: Sequence[int], margin_mm: float) -> list[Box]:
    """The boxes that a coarse mask asks for, in a volume of ``shape`` whose whole field of view it shows."""
    first, second, third = (s * n / m for s, n, m in zip(spacing, shape, coarse.shape, strict=True))
    boxes = kidney_boxes(coarse, (first, second, third), margin_mm)
    # Rounding outwards must not make them overlap.
    return merge_boxes([box.on_grid(coarse.shape, shape) for box in boxes])


def merge_boxes(boxes: Sequence[Box]) -> list[Box]:
    """Unite boxes until no two intersect, and none could be united without work on more voxels."""
    done: list[Box] = []
    for box in sorted(boxes, key=lambda b: b.start):
        current = box
        # The united box may reach others that it did not reach before, so start over until nothing joins.
        while (other := next((b for b in done if _belong_together(b, current)), None)) is not None:
            done.remove(other)
            current = current.union(other)
        done.append(current)
    return sorted(done, key=lambda b: b.start)


def _belong_together(first: Box, second: Box) -> bool:
    return first.intersects(second) or first.union(second).size <= first.size + second.size

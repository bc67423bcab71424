"""From logits on a network's grid to labels at the voxels of a region, without the logits at these voxels.

nnU-Net resamples all logits, keeps them in half precision, and decides then. Here a plane is resampled, rounded (where
the logits are in half precision) and decided at a time, and only where there can be any foreground: linear
interpolation never goes beyond what lies around, so that what is surely background on the network's grid is background
between. The labels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from kits_cascade.inference.nnunet.arrays import lerp
from kits_cascade.inference.nnunet.resample import Method, chosen_planes, in_plane, places_between, stream_axis
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array

_PLANES: Final = 16  # that are resampled at a time
_ROUNDING: Final = 2.0**-9  # of the largest logit near: more than half precision loses of the two that are compared


@dataclass(frozen=True)
class Decision:
    """How labels follow from logits."""

    regions: bool  # heads are decided one by one, above 0; else the largest wins, and the first is the background
    order: tuple[int, ...] | None = None  # the label of each region, the later ones painted over the earlier

    def labels(self, logits: Array) -> Array:
        """As nnU-Net's label manager decides, without its copies: a sigmoid above 0.5 is a logit above 0."""
        if self.regions:
            labels = np.zeros(logits.shape[1:], np.uint8)
            for channel, value in enumerate(self.order or ()):
                labels[logits[channel] > 0] = value
            return labels
        largest = logits[1] > logits[0] if len(logits) == 2 else logits.astype(np.float32, copy=False).argmax(0)
        return np.asarray(largest, np.uint8)

    def lead(self, logits: Array) -> Array:
        """By how much foreground is ahead of background: above 0, or it is background."""
        lead: Array = logits.max(axis=0) if self.regions else logits[1:].max(axis=0) - logits[0]
        return lead


def resampled_labels(logits: Array, shape: Sequence[int], method: Method, decision: Decision) -> Array:
    """Labels on a grid of ``shape`` of the same field of view; ``method`` is of order 1, or 0."""
    axis = stream_axis(logits[0], method)
    others = [n for i, n in enumerate(shape) if i != axis]
    labels = np.zeros((shape[axis], *others), dtype=np.uint8)
    order = method.order_along(axis)
    planes, repeat = chosen_planes(logits.shape[axis + 1], shape[axis], order)
    changed, box = _changed_planes(np.moveaxis(logits, axis + 1, 1), planes, others, method.order, decision)
    if box is not None:
        size = logits.shape[axis + 1]
        between = (
            _between(changed, planes, size, shape[axis], box) if repeat is None else _repeated(changed, repeat, box)
        )
        for number, plane in between:
            labels[number][box[1:]] = decision.labels(plane.astype(logits.dtype, copy=False))
    return np.moveaxis(labels, 0, axis)


def _changed_planes(
    moved: Array, planes: Array, others: Sequence[int], order: int, decision: Decision
) -> tuple[Array, tuple[slice, slice, slice] | None]:
    """Planes at their new shape (heads first), and the part of them that may hold foreground, already cut to it."""
    parts, leads = [], []
    for begin in range(0, len(planes), _PLANES):
        some = moved[:, planes[begin : begin + _PLANES]].astype(np.float32)
        part = np.stack([in_plane(head, others, order) for head in some])
        parts.append(part)
        leads.append(decision.lead(part) > -(_ROUNDING * float(np.abs(some).max()) + 1e-4))
    found = Box.around(np.concatenate(leads))
    if found is None:
        return moved[:, :0], None
    box = found.slices
    return np.concatenate([part[:, :, box[1], box[2]] for part in parts], axis=1), box


def _between(values: Array, planes: Array, size: int, target: int, box: tuple[slice, slice, slice]) -> Any:
    """Planes of the target grid by their numbers, interpolated between those that may hold foreground."""
    if size == target:
        yield from ((number, values[:, number]) for number in range(box[0].start, box[0].stop))
        return
    first, second, weights = places_between(planes, size, target)
    for number in np.flatnonzero((second >= box[0].start) & (first < box[0].stop)):
        yield int(number), lerp(values[:, first[number]], values[:, second[number]], weights[number])


def _repeated(values: Array, repeat: Array, box: tuple[slice, slice, slice]) -> Any:
    for number in np.flatnonzero((repeat >= box[0].start) & (repeat < box[0].stop)):
        yield int(number), values[:, int(repeat[number])]


def is_plain(method: Method | None) -> bool:
    """Whether a method's values lie between those that they come from, plane by plane."""
    return method is not None and method.order <= 1 and method.order_z <= 1


def decision_of(manager: Any) -> Decision:
    """Of nnU-Net's label manager, or one like it."""
    order = manager.regions_class_order
    return Decision(manager.has_regions, None if order is None else tuple(int(n) for n in cast("Sequence[int]", order)))

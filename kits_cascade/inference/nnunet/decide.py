"""From logits on a network's grid to labels at the voxels of a region, without the logits at these voxels.

nnU-Net resamples all logits, keeps them in half precision, and decides then. Here a plane is resampled, rounded and
decided at a time, and only where there can be any foreground: linear interpolation never goes beyond what lies around,
so that what is surely background on the network's grid is background between. The labels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch

from kits_cascade.inference.nnunet.resample import Method, chosen_planes, in_plane, places_between, stream_axis
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array

_PLANES: Final = 16  # that are resampled at a time
_ROUNDING: Final = 2.0**-9  # of the largest logit: more than half precision loses of the two that are compared


@dataclass(frozen=True)
class Decision:
    """How labels follow from logits."""

    regions: bool  # heads are decided one by one, above 0; else the largest wins, and the first is the background
    order: tuple[int, ...] | None = None  # the label of each region, the later ones painted over the earlier

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """As nnU-Net's label manager decides, without its copies: a sigmoid above 0.5 is a logit above 0."""
        if self.regions:
            labels = torch.zeros(logits.shape[1:], dtype=torch.uint8)
            for channel, value in enumerate(self.order or ()):
                labels[logits[channel] > 0] = int(value)
            return labels
        if logits.shape[0] == 2:
            return (logits[1] > logits[0]).to(torch.uint8)
        return torch.from_numpy(logits.float().numpy().argmax(0).astype(np.uint8))

    def lead(self, logits: torch.Tensor) -> torch.Tensor:
        """By how much foreground is ahead of background: above 0, or it is background."""
        return logits.amax(dim=0) if self.regions else logits[1:].amax(dim=0) - logits[0]


@torch.inference_mode()
def resampled_labels(logits: torch.Tensor, shape: Sequence[int], method: Method, decision: Decision) -> Array:
    """Labels on a grid of ``shape`` of the same field of view; ``method`` is of order 1, or 0."""
    axis = stream_axis(logits[0].numpy(), method)
    others = [n for i, n in enumerate(shape) if i != axis]
    labels = np.zeros((shape[axis], *others), dtype=np.uint8)
    order = method.order_along(axis)
    planes, repeat = chosen_planes(logits.shape[axis + 1], shape[axis], order)
    changed, box = _changed_planes(logits.movedim(axis + 1, 1), planes, others, method.order, decision)
    if box is not None:
        size = logits.shape[axis + 1]
        between = (
            _between(changed, planes, size, shape[axis], box) if repeat is None else _repeated(changed, repeat, box)
        )
        for number, plane in between:
            labels[number][box[1:]] = decision.labels(plane.half()).numpy()
    return np.moveaxis(labels, 0, axis)


def _changed_planes(
    moved: torch.Tensor, planes: Array, others: Sequence[int], order: int, decision: Decision
) -> tuple[torch.Tensor, tuple[slice, slice, slice] | None]:
    """Planes at their new shape (heads first), and the part of them that may hold foreground, already cut to it."""
    margin = _ROUNDING * float(moved.abs().max()) + 1e-4
    parts, leads = [], []
    for begin in range(0, len(planes), _PLANES):
        some = torch.from_numpy(planes[begin : begin + _PLANES])
        part = torch.stack([in_plane(head[some].float(), others, order) for head in moved])
        parts.append(part)
        leads.append((decision.lead(part) > -margin).numpy())
    found = Box.around(np.concatenate(leads))
    if found is None:
        return moved[:, :0], None
    box = found.slices
    return torch.cat([part[:, :, box[1], box[2]] for part in parts], dim=1), box


def _between(values: torch.Tensor, planes: Array, size: int, target: int, box: tuple[slice, slice, slice]) -> Any:
    """Planes of the target grid by their numbers, interpolated between those that may hold foreground."""
    if size == target:
        yield from ((number, values[:, number]) for number in range(box[0].start, box[0].stop))
        return
    first, second, weights = places_between(planes, size, target)
    for number in np.flatnonzero((second >= box[0].start) & (first < box[0].stop)):
        yield int(number), torch.lerp(values[:, first[number]], values[:, second[number]], weights[number])


def _repeated(values: torch.Tensor, repeat: Array, box: tuple[slice, slice, slice]) -> Any:
    for number in np.flatnonzero((repeat >= box[0].start) & (repeat < box[0].stop)):
        yield int(number), values[:, int(repeat[number])]


def is_plain(method: Method | None) -> bool:
    """Whether a method's values lie between those that they come from, plane by plane."""
    return method is not None and method.order <= 1 and method.order_z <= 1


def decision_of(manager: Any) -> Decision:
    """Of nnU-Net's label manager, or one like it."""
    order = manager.regions_class_order
    return Decision(manager.has_regions, None if order is None else tuple(int(n) for n in cast("Sequence[int]", order)))

"""What happens to a patch before the network sees it, beyond nnU-Net's own augmentation; nothing of nnU-Net in here.

Transforms are called as nnU-Net's loader calls its own: with ``image`` (channel, then space) and ``segmentation``,
giving a dict of the same keys. They draw from numpy's global generator, which nnU-Net's workers seed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import edt
import numpy as np
import torch
from torch import Tensor, nn

from kits_cascade.volumes.components import components
from kits_cascade.volumes.volume import Array

Sample = dict[str, Any]
Transform = Callable[..., Sample]

GROW_MM: Final = (1.0, 5.0)
SHRINK_MM: Final = (1.0, 5.0)
SHIFT_MM: Final = (2.0, 8.0)
LOST_MM: Final = (8.0, 25.0)  # radius of the ball that is lost
WHOLE: Final = 1 / 3  # how often a whole component is lost instead
LESIONS: Final = 1 / 2  # how often lesions are lost, of the wrong masks of patches that show any


def _uniform(low: float, high: float) -> float:
    return float(np.random.uniform(low, high))  # noqa: NPY002 - see the module's docstring


def _index(count: int) -> int:
    return int(np.random.randint(count))  # noqa: NPY002


def _distance(mask: Array, spacing: Sequence[float]) -> Array:
    """Distance in mm of each voxel of ``mask`` to the nearest one outside it; beyond the patch nothing is outside."""
    distance: Array = edt.edt(np.ascontiguousarray(mask), anisotropy=tuple(spacing), parallel=1)
    return distance


class OnChannels:
    """An intensity transform that sees some of the image's channels only."""

    def __init__(self, transform: Transform, channels: Sequence[int]) -> None:
        self.transform = transform
        self.channels = list(channels)

    def __call__(self, **sample: Any) -> Sample:
        """Apply it."""
        image: Tensor = sample["image"]
        image[self.channels] = self.transform(image=image[self.channels])["image"]
        return sample

    def __repr__(self) -> str:
        return f"OnChannels({self.transform!r}, {self.channels})"


class PerturbPrior:
    """Makes the mask channel binary again after interpolation, and with a set probability wrong.

    At inference the mask is another network's: a little large or small, misplaced, or without the part that the network
    did not recognise, which is often the very tumour. A network trained with the label would trust it blindly.
    """

    def __init__(self, channel: int, spacing: Sequence[float], probability: float, lesions: Sequence[int] = ()) -> None:
        self.channel = channel
        self.spacing = tuple(spacing)
        self.probability = probability
        self.lesions = list(lesions)  # their label values in the segmentation

    def __call__(self, **sample: Any) -> Sample:
        """Apply it."""
        image: Tensor = sample["image"]
        mask = (image[self.channel] > BINARY_THRESHOLD).numpy()
        if _uniform(0, 1) < self.probability and mask.any():
            mask = self._wrong(mask, sample.get("segmentation"))
        image[self.channel] = torch.from_numpy(np.ascontiguousarray(mask)).to(image.dtype)
        return sample

    def _wrong(self, mask: Array, segmentation: Tensor | None) -> Array:
        lesions = np.zeros_like(mask) if segmentation is None else np.isin(segmentation[0].numpy(), self.lesions)
        if (lesions & mask).any() and _uniform(0, 1) < LESIONS:
            return without_lesions(mask, lesions)
        return (grown, shrunk, shifted, without_part)[_index(4)](mask, self.spacing)

    def __repr__(self) -> str:
        return (
            f"PerturbPrior(channel={self.channel}, spacing={self.spacing}, probability={self.probability}, "
            f"lesions={self.lesions})"
        )


def grown(mask: Array, spacing: Sequence[float]) -> Array:
    """Larger by some mm, at least by a voxel."""
    larger: Array = _distance(~mask, spacing) <= max(_uniform(*GROW_MM), min(spacing))
    return larger


def shrunk(mask: Array, spacing: Sequence[float]) -> Array:
    """Smaller by some mm, at least by a voxel."""
    smaller: Array = _distance(mask, spacing) > max(_uniform(*SHRINK_MM), min(spacing))
    return smaller


def shifted(mask: Array, spacing: Sequence[float]) -> Array:
    """Moved by some mm, at least by a voxel; what comes in from outside the patch is background."""
    direction = np.array([_uniform(-1, 1) for _ in spacing])
    direction *= _uniform(*SHIFT_MM) / max(float(np.linalg.norm(direction)), 1e-6)
    in_voxels = direction / np.asarray(spacing)
    moves = [round(v) for v in in_voxels]
    if not any(moves):  # thick slices
        longest = int(np.argmax(np.abs(in_voxels)))
        moves[longest] = 1 if in_voxels[longest] > 0 else -1
    out = np.zeros_like(mask)
    source = tuple(slice(max(0, -m), min(n, n - m)) for m, n in zip(moves, mask.shape, strict=True))
    target = tuple(slice(max(0, m), min(n, n + m)) for m, n in zip(moves, mask.shape, strict=True))
    if all(s.stop > s.start for s in source):
        out[target] = mask[source]
    return out


def without_part(mask: Array, spacing: Sequence[float]) -> Array:
    """Without a ball around a random voxel of the mask, or without that voxel's whole component."""
    places = np.argwhere(mask)
    centre = places[_index(len(places))]
    if _uniform(0, 1) < WHOLE:
        found = components(mask).labels
        return np.asarray(mask & (found != found[tuple(centre)]))
    grid = np.ogrid[tuple(slice(0, n) for n in mask.shape)]
    squared = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing, strict=True))
    return np.asarray(mask & (squared > _uniform(*LOST_MM) ** 2))


def without_lesions(mask: Array, lesions: Array) -> Array:
    """Without some of the lesions, at least one: what a network knows least is what it leaves out."""
    found = components(lesions & mask)
    lost = [number for number in range(1, found.count + 1) if _uniform(0, 1) < 0.5]
    return np.asarray(mask & ~np.isin(found.labels, lost or [1 + _index(found.count)]))


BINARY_THRESHOLD: Final = 0.5


class BinaryPrior:
    """A network's pre-forward hook: the mask channel is binary in training, validation and prediction alike.

    nnU-Net resamples it like an image, which leaves soft edges and overshoot that perturbed patches do not have.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = list(channels)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the network gets instead of ``inputs``."""
        image, *rest = inputs
        planes = [
            (plane > BINARY_THRESHOLD).to(plane.dtype) if index in self.channels else plane
            for index, plane in enumerate(image.unbind(1))
        ]
        return torch.stack(planes, 1), *rest


def signed_distance(mask: Array, spacing: Sequence[float]) -> Array:
    """Distance to the surface in mm, negative inside; 0 everywhere where there is no surface (empty or full)."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, dtype=np.float32)
    return _distance(~mask, spacing) - _distance(mask, spacing)


class DistanceMaps:
    """Appends the truth's signed distances, one channel per foreground class, to the list of targets.

    nnU-Net's loader hands on images and targets only, so the distances travel as one more target.
    """

    def __init__(
        self, spacing: Sequence[float], *, regions: bool, classes: int, ignore_label: int | None = None
    ) -> None:
        self.spacing = tuple(spacing)
        self.regions = regions
        self.classes = classes
        self.ignore_label = ignore_label

    def __call__(self, **sample: Any) -> Sample:
        """Apply it."""
        targets = sample["segmentation"]
        targets = list(targets) if isinstance(targets, (list, tuple)) else [targets]
        sample["segmentation"] = [*targets, self.distances(targets[0])]
        return sample

    def distances(self, target: Tensor) -> Tensor:
        """Half precision: the relative error of 0.0005 does not matter, the transfer does."""
        values = target.numpy()
        if self.regions:
            masks = [values[c].astype(bool) for c in range(self.classes)]
            ignored = values[-1].astype(bool) if self.ignore_label is not None else None
        else:
            masks = [values[0] == label for label in range(1, self.classes + 1)]
            ignored = values[0] == self.ignore_label if self.ignore_label is not None else None
        maps = np.stack([signed_distance(mask, self.spacing) for mask in masks])
        if ignored is not None:
            maps[:, ignored] = 0
        return torch.from_numpy(maps).to(torch.float16)

    def __repr__(self) -> str:
        return f"DistanceMaps(spacing={self.spacing}, regions={self.regions}, classes={self.classes})"

"""What a plan says about normalisation and resampling, as functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

from kits_cascade.errors import ModelError
from kits_cascade.inference.nnunet.resample import Method
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.volume import Array

# Normalisations that look at one voxel at a time: they may run on parts of an image.
BY_VOXEL: Final = ("CTNormalization", "NoNormalization")


def unchanged(part: Array) -> Array:
    """For what is normalised already."""
    return part


def normalizer(name: str, use_mask: bool, properties: dict[str, float]) -> Callable[[Array], Array]:
    """The plan's normalisation of a channel, by nnU-Net's own class."""
    normalization = getattr(schemes, name, None)
    if normalization is None:
        raise ModelError(f"the plan's normalisation {name!r} is not one of nnU-Net's")
    instance = normalization(use_mask_for_norm=use_mask, intensityproperties=properties)

    def run(part: Array) -> Array:
        # A copy, in the memory order of the part: nnU-Net's classes work in place.
        image = part.astype(np.float32)
        return cast("Array", instance.run(image, np.where(image != 0, 0, -1) if use_mask else None))

    return run


def box_of_nonzero(channels: Sequence[Array]) -> Box:
    """Where any channel is not zero, as nnU-Net crops before all else; the whole where all are zero."""
    whole = Box.full(channels[0].shape)
    box: Box | None = None
    for channel in channels:
        # Views: numpy's take() would copy the whole of a turned array for each face.
        if all(np.moveaxis(channel, axis, 0)[index].any() for axis in range(3) for index in (0, -1)):
            return whole  # reaches all faces: nothing to crop
        found = Box.around(channel)
        box = found if box is None else box.union(found) if found is not None else box
    return box or whole


def separate_axis(force: bool | None, spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis that nnU-Net resamples apart from the other two: the coarse one of an anisotropic grid, where it is one.

    As its ``determine_do_sep_z_and_axis``, whose module loads pandas and scikit-image.
    """
    grids = [grid for grid in (spacing, target) if force or (force is None and max(grid) / min(grid) > ANISO_THRESHOLD)]
    coarse = [axis for axis, size in enumerate(grids[0]) if max(grids[0]) / size == 1] if grids else []
    return coarse[0] if len(coarse) == 1 else None


def plan_method(name: str, options: dict[str, Any], spacing: Sequence[float], target: Sequence[float]) -> Method | None:
    """What a plan's resampling function does between two spacings; None for functions that are not known here."""
    at = separate_axis(options.get("force_separate_z"), spacing, target)
    if name == "resample_data_or_seg_to_shape":
        return Method(int(options.get("order", 3)), at, int(options.get("order_z", 0)))
    known = (
        options.get("mode", "linear") == "linear" and options.get("aniso_axis_mode", "nearest-exact") == "nearest-exact"
    )
    if name == "resample_torch_fornnunet" and known:
        return Method(1, at, 0, clip=False)
    return None

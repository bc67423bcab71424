"""One slice of a volume as a PNG file, and back: window, gamma, size, and how a slice is hung."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from kits_cascade.errors import FileFormatError, UsageError
from kits_cascade.files import atomic_path
from kits_cascade.labels import LABEL_NAMES
from kits_cascade.volumes.volume import Array

AXES: Final = {"axial": 0, "coronal": 1, "sagittal": 2}  # of the canonical array, which is z, y, x
_GREY: Final = ("1", "L")  # what a predicted mask may be


@dataclass(frozen=True)
class SliceOptions:
    """What a slice looks like in its file."""

    axis: str = "axial"
    window: tuple[float, float] = (-79.0, 304.0)  # of HU: black and white
    gamma: float = 1.0  # grey levels between 0 and 1 are raised to it
    size: int | None = None  # rows and columns after resizing; None keeps the pixels as they are
    crop: bool = False  # only the box around what is above the window's lower end
    labelled: bool = False  # only slices with a label

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise UsageError(f"--axis {self.axis}: it is one of {', '.join(AXES)}")
        if not self.window[0] < self.window[1]:
            raise UsageError(f"--window {self.window[0]:g} {self.window[1]:g}: the first must be below the second")
        if not self.gamma > 0:
            raise UsageError(f"--gamma {self.gamma:g}: it must be above 0")
        if self.size is not None and self.size < 8:
            raise UsageError(f"--size {self.size}: it must be at least 8")

    @property
    def axis_number(self) -> int:
        """Of the canonical array."""
        return AXES[self.axis]

    def to_json(self) -> dict[str, Any]:
        """For slices.json."""
        return {**asdict(self), "window": list(self.window)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> SliceOptions:
        """The inverse of :meth:`to_json`."""
        low, high = content["window"]
        return SliceOptions(**{**content, "window": (low, high)})


def cut_plane(array: Array, axis: int, index: int) -> Array:
    """A slice as it is hung: head or front up, the patient's right (sagittal: the front) on the left."""
    plane: Array = array.take(index, axis)[::-1, ::-1]
    return plane


def hang_back(plane: Array) -> Array:
    """The inverse of how :func:`cut_plane` hangs a slice."""
    return plane[::-1, ::-1]


def grey_picture(plane: Array, options: SliceOptions) -> Image.Image:
    """Window, gamma and size, rounded to 256 grey levels at the end only."""
    low, high = options.window
    values = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) ** options.gamma
    picture = Image.fromarray(np.ascontiguousarray(values))
    if options.size is not None:
        picture = picture.resize((options.size, options.size), Image.Resampling.BILINEAR)
    return Image.fromarray(np.rint(np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8))


def mask_picture(plane: Array, size: int | None) -> Image.Image:
    """Label values as they are: 0 background, 1 kidney, 2 tumour, 3 cyst (which looks black)."""
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.uint8))
    return picture if size is None else picture.resize((size, size), Image.Resampling.NEAREST)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG file atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def read_mask(path: Path, written: tuple[int, int], shape: tuple[int, int]) -> Array:
    """A predicted mask of the size that was ``written``, brought to the pixels of the volume's slice."""
    try:
        with Image.open(path) as opened:
            opened.load()
            picture: Image.Image = opened
    except (OSError, UnidentifiedImageError) as error:
        raise FileFormatError(f"{path}: not a readable PNG file ({error})") from error
    if picture.mode not in _GREY:
        raise FileFormatError(f"{path}: a picture of kind {picture.mode}; write masks as 8-bit grey PNG of the labels")
    if picture.size != (written[1], written[0]):
        got = f"{picture.size[1]}x{picture.size[0]}"
        raise FileFormatError(f"{path}: {got} pixels; the slice was exported with {written[0]}x{written[1]}")
    rows, columns = shape
    labels = np.asarray(picture.convert("L").resize((columns, rows), Image.Resampling.NEAREST))
    if picture.mode == "1":
        labels = (labels > 0).astype(np.uint8)
    if labels.max(initial=0) > max(LABEL_NAMES):
        raise FileFormatError(f"{path}: value {labels.max()} in the mask; labels are 0 to {max(LABEL_NAMES)}")
    return labels

"""What the certainty of a lesion is worth: a curve, fitted on cases with a truth, that stays with the networks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import read_json, write_json

_FILE: Final = "calibration.json"  # beside the plans of the masses network; a bundle has it in its manifest


@dataclass(frozen=True)
class Calibration:
    """A logistic curve over the logit of the mean certainty, and what it was fitted on."""

    slope: float
    offset: float
    lesions: int
    cases: int

    @property
    def curve(self) -> tuple[float, float]:
        """As :func:`kits_cascade.inference.certainty.calibrated` takes it."""
        return self.slope, self.offset

    def to_json(self) -> dict[str, Any]:
        """For a file or a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(content: Any, where: Path) -> Calibration | None:
        """The inverse; None of nothing. It may come from a stranger, so all of it is checked."""
        if content is None:
            return None
        try:
            read = Calibration(
                float(content["slope"]), float(content["offset"]), int(content["lesions"]), int(content["cases"])
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"{where}: not a valid calibration ({error!r})") from error
        if not (math.isfinite(read.slope) and math.isfinite(read.offset) and read.slope >= 0):
            raise ModelError(f"{where}: a calibration with slope {read.slope} and offset {read.offset} is none")
        return read


def read_calibration(folder: Path) -> Calibration | None:
    """Of a trained network; None where there is none."""
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        return Calibration.from_json(read_json(path), path)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Beside the plans of a trained network."""
    write_json(folder / _FILE, calibration.to_json())
    return folder / _FILE

"""The KiTS labels, the challenge's regions and its surface tolerances. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

BACKGROUND: Final = 0
KIDNEY: Final = 1
TUMOR: Final = 2
CYST: Final = 3
LABEL_NAMES: Final = MappingProxyType({KIDNEY: "kidney", TUMOR: "tumor", CYST: "cyst"})

# Later labels are painted over earlier ones: out[K|M|T] = 1; out[M] = 3; out[T] = 2.
PAINT_ORDER: Final = (KIDNEY, CYST, TUMOR)


@dataclass(frozen=True)
class Region:
    """One of the challenge's hierarchical evaluation classes."""

    name: str  # as in dataset.json and in the columns of the challenge's table
    labels: tuple[int, ...]
    tolerance_mm: float  # surface Dice tolerance: the inter-rater variability that the challenge measured
    title: str


REGIONS: Final = (
    Region("kidney", (KIDNEY, TUMOR, CYST), 1.0330772532390826, "Kidney + masses"),
    Region("masses", (TUMOR, CYST), 1.1328796488598762, "Masses"),
    Region("tumor", (TUMOR,), 1.1498198361434828, "Tumor"),
)
REGION_NAMES: Final = tuple(region.name for region in REGIONS)

"""Tissues of a painted CT: one row each, with its attenuation in every contrast phase. Pure data.

The figures are wide on purpose: a network that is to read any scanner has to have seen more than all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

PHASES: Final = ("plain", "arterial", "portal", "late")
PHASE_SHARES: Final = (0.2, 0.4, 0.3, 0.1)  # KiTS is arterial for the most part


@dataclass(frozen=True)
class Tissue:
    """Mean HU by phase (plain, arterial, portal, late), its spread from case to case, and the spread inside."""

    name: str
    hu: tuple[float, float, float, float]
    spread: float
    within: float


def _row(name: str, hu: float | tuple[float, float, float, float], spread: float, within: float) -> Tissue:
    return Tissue(name, hu if isinstance(hu, tuple) else (hu, hu, hu, hu), spread, within)


TISSUES: Final = (
    _row("air", -1000, 0, 0),
    _row("subcutaneous fat", -105, 8, 6),
    _row("visceral fat", -98, 10, 9),
    _row("skin", 15, 20, 10),
    _row("muscle", (50, 55, 60, 58), 9, 9),
    _row("cortical bone", 650, 200, 150),
    _row("marrow", 190, 60, 60),
    _row("disc", 75, 18, 10),
    _row("cartilage", 110, 35, 40),
    _row("lung", -850, 50, 60),
    _row("airway", -985, 12, 5),
    _row("liver", (55, 68, 108, 92), 14, 8),
    _row("spleen", (45, 115, 118, 95), 15, 9),
    _row("pancreas", (38, 92, 88, 70), 16, 16),
    _row("stomach", (32, 48, 60, 50), 16, 14),
    _row("small bowel", (32, 62, 68, 58), 20, 20),
    _row("colon", (30, 48, 58, 50), 18, 16),
    _row("duodenum", (32, 62, 68, 58), 18, 16),
    _row("gallbladder", 10, 10, 4),
    _row("bladder", (6, 6, 8, 60), 9, 5),
    _row("artery", (40, 270, 150, 115), 50, 10),
    _row("vein", (40, 95, 145, 115), 30, 9),
    _row("portal vein", (40, 115, 165, 120), 30, 9),
    _row("heart", (42, 190, 140, 110), 40, 22),
    _row("adrenal", (22, 62, 66, 50), 15, 8),
    _row("prostate", (38, 58, 78, 70), 15, 12),
    _row("brain", 36, 5, 5),
    _row("spinal cord", 32, 10, 8),
    _row("oesophagus", (38, 50, 60, 55), 12, 16),
    _row("thyroid", (100, 160, 150, 130), 25, 10),
    _row("small vessel", (40, 150, 135, 105), 45, 15),
    _row("loose tissue", (20, 35, 40, 35), 25, 25),
    _row("fluid", 10, 8, 4),
    _row("foreign mass", (38, 62, 72, 65), 22, 20),
    _row("gas", -920, 60, 40),
    _row("stool", (20, 20, 20, 20), 60, 90),
    _row("gut contrast", 260, 110, 50),
    _row("cortex", (33, 190, 178, 150), 38, 14),
    _row("medulla", (31, 98, 160, 152), 26, 14),
    _row("urine", (4, 6, 25, 420), 12, 8),
    _row("tumor", (36, 92, 84, 68), 34, 24),
    _row("necrosis", (24, 32, 34, 34), 10, 10),
    _row("fatty tumor", -45, 28, 28),
    _row("cyst", 13, 7, 3),
    _row("haemorrhagic cyst", 58, 15, 7),
    _row("stone", 800, 300, 120),
    _row("table", 40, 150, 15),
    _row("metal", 2800, 200, 100),
)
CODE: Final[Mapping[str, int]] = {tissue.name: code for code, tissue in enumerate(TISSUES)}

# Which tissue a structure of a whole-body label map is made of: the first pattern that is found in its name.
_STRUCTURES: Final = (
    ("kidney_cyst|kidney", "kidney"),
    ("lung", "lung"),
    ("trachea|bronch", "airway"),
    ("esophagus|oesophagus", "oesophagus"),
    ("vertebra|sacrum|rib|hip|femur|humerus|scapula|clavic|sternum|skull|bone", "marrow"),
    ("cartilage", "cartilage"),
    ("aorta|artery|brachiocephalic_trunk", "artery"),
    ("portal", "portal vein"),
    ("heart|atri|ventricle|myocard|pulmonary_vein", "heart"),
    ("vein|vena|cava", "vein"),
    ("liver", "liver"),
    ("spleen", "spleen"),
    ("pancreas", "pancreas"),
    ("stomach", "stomach"),
    ("duodenum", "duodenum"),
    ("small_bowel|small_intestine", "small bowel"),
    ("colon|rectum", "colon"),
    ("gallbladder", "gallbladder"),
    ("bladder", "bladder"),
    ("adrenal", "adrenal"),
    ("prostate|uterus|ovar", "prostate"),
    ("brain", "brain"),
    ("spinal_cord", "spinal cord"),
    ("thyroid", "thyroid"),
    ("autochthon|iliopsoas|gluteus|muscle|psoas", "muscle"),
)


def tissue_of(structure: str) -> str:
    """Name of the tissue of a structure ("kidney" for kidneys); loose tissue where the name is not known."""
    for pattern, name in _STRUCTURES:
        if re.search(pattern, structure.casefold()):
            return name
    return "loose tissue"


@dataclass(frozen=True)
class Palette:
    """The attenuation of every tissue in one case: mean, and spread inside."""

    phase: str
    mean: np.ndarray
    within: np.ndarray


# What a network may rely on is only what is always so; other tissues are drawn from all of soft tissue now and then.
_NEVER_ODD: Final = frozenset({"air", "lung", "airway", "gas", "subcutaneous fat", "visceral fat", "metal", "table"})
_KIDNEY: Final = ("cortex", "medulla")
_TUMOR: Final = ("tumor", "necrosis")
_BRIGHT_TUMOR: Final = 0.15  # chance of one that enhances nearly as the cortex does


def draw_palette(rng: np.random.Generator, phase: str | None = None, odd: float = 0.06, spread: float = 1.0) -> Palette:
    """Draw every tissue's HU. ``odd``: the share of tissues whose HU follow no table."""
    phase = phase or str(rng.choice(PHASES, p=PHASE_SHARES))
    # Real phases lie between those of the table: mix with a neighbour.
    place = PHASES.index(phase)
    other = int(np.clip(place + rng.choice((-1, 1)), 0, 3)) if place else 0
    share = rng.uniform(0, 0.4)
    table = np.array([t.hu for t in TISSUES])
    mean = table[:, place] * (1 - share) + table[:, other] * share
    mean = mean + rng.normal(0, 1, len(TISSUES)) * np.array([t.spread for t in TISSUES]) * spread
    for code, tissue in enumerate(TISSUES):
        if tissue.name not in _NEVER_ODD and tissue.name not in _KIDNEY and rng.random() < odd:
            mean[code] = rng.uniform(-10, 180)
    cortex, medulla = (CODE[name] for name in _KIDNEY)
    if rng.random() < 0.5:  # past the corticomedullary phase: the two are alike
        mean[medulla] = mean[cortex] - abs(rng.normal(0, 12))
    if rng.random() < _BRIGHT_TUMOR:
        mean[CODE["tumor"]] = mean[cortex] - rng.uniform(0, 40)
    for name in _TUMOR:  # a tumour enhances less than the kidney does; the difference is what tells it
        mean[CODE[name]] = min(mean[CODE[name]], mean[cortex] - rng.uniform(-8 if phase == "plain" else 5, 40))
    within = np.array([t.within for t in TISSUES]) * rng.uniform(0.6, 1.5, len(TISSUES))
    return Palette(phase, mean.astype(np.float32), within.astype(np.float32))

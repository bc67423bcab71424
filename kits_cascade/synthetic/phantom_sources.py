"""Made-up bodies and kidneys for the painter, for those who have no label maps at hand: ellipsoids, as in phantoms."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from kits_cascade.files import write_json
from kits_cascade.synthetic import anatomy as body
from kits_cascade.synthetic.phantom import kits_volume
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import Array

_STEP_MM: Final = 2.5
_EXTENT_MM: Final = (460.0, 280.0, 380.0)  # z, y, x
_LEFT, _RIGHT = 1, 2
_STRUCTURES: Final = {
    _LEFT: ("kidney_left", ()),
    _RIGHT: ("kidney_right", ()),
    3: ("liver", (body.LIVER,)),
    4: ("spleen", (body.SPLEEN,)),
    5: ("aorta", (body.VESSEL,)),
    6: ("vertebrae_L1", (body.BONE, body.MARROW)),
    7: ("small_bowel", (body.BOWEL, body.GAS)),
    8: ("gallbladder", (body.BILE,)),
    9: ("autochthon", (body.MUSCLE,)),
}


def write_sources(out: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """Write ``count`` bodies, and as many masks in KiTS layout; both folders."""
    bodies, masks = out / "bodies", out / "masks"
    for index in range(count):
        structures, labels = _draw(seed, index)
        spacing = (_STEP_MM,) * 3
        write_volume(bodies / f"body_{index:05d}.nii.gz", kits_volume(structures, spacing))
        write_volume(masks / f"case_{index:05d}" / "segmentation.nii.gz", kits_volume(labels, spacing))
    write_json(bodies / "labels.json", {str(value): name for value, (name, _) in _STRUCTURES.items()})
    return bodies, masks


def _draw(seed: int, index: int) -> tuple[Array, Array]:
    """Structures and KiTS labels of a body."""
    rng = np.random.default_rng([seed, index])
    anatomy = body.make_anatomy(rng, "plain")
    z, y, x = ((np.arange(n) - (n - 1) / 2) * _STEP_MM for n in (int(e / _STEP_MM) for e in _EXTENT_MM))
    table = np.zeros(16, dtype=np.uint8)
    for value, (_, tissues) in _STRUCTURES.items():
        table[list(tissues)] = value
    slices = [body.paint_slice(anatomy, x[None, :], y[:, None], float(height)) for height in z]
    labels = np.stack([part for _, part in slices])
    structures = table[np.stack([tissue for tissue, _ in slices])]
    structures[labels > 0] = _LEFT
    structures[(labels > 0) & (x > 0)] = _RIGHT
    return structures, labels

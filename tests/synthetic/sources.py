"""A small body and a small KiTS mask, made by hand, for painting."""

import json

import nibabel as nib
import numpy as np

STRUCTURES = {1: "kidney_left", 2: "kidney_right", 3: "liver", 4: "vertebrae_L1", 5: "aorta", 6: "colon", 7: "spleen"}


def _ball(shape, centre, radii):
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True)) < 1


def write_anatomy(folder, name="body"):
    """A label map of 240 x 180 x 200 mm at 4 mm, RAS, beside its labels.json."""
    shape = (60, 45, 50)
    labels = np.zeros(shape, dtype=np.uint8)
    parts = {
        4: ((30, 12, 25), (5, 5, 40)),
        5: ((30, 20, 25), (3, 3, 40)),
        3: ((44, 26, 36), (11, 13, 11)),
        7: ((13, 16, 38), (6, 6, 7)),
        6: ((16, 32, 18), (8, 6, 12)),
        1: ((18, 14, 25), (6, 5, 10)),
        2: ((42, 14, 24), (6, 5, 10)),
    }
    for value, (centre, radii) in parts.items():
        labels[_ball(shape, centre, radii)] = value
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([4.0, 4, 4, 1])), folder / f"{name}.nii.gz")
    (folder / "labels.json").write_text(json.dumps(STRUCTURES))


def write_mask(folder, case="case_00000"):
    """A KiTS mask with a tumour in one kidney and a cyst in the other, stored as KiTS stores."""
    shape = (50, 45, 60)  # z, y, x
    labels = np.zeros(shape, dtype=np.uint8)
    for x in (18, 42):
        labels[_ball(shape, (25, 20, x), (12, 6, 6))] = 1
    labels[_ball(shape, (32, 20, 18), (5, 5, 5))] = 2
    labels[_ball(shape, (20, 22, 42), (4, 4, 4))] = 3
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = -4, -4, -4, 1
    (folder / case).mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), folder / case / "segmentation.nii.gz")

"""Small cases on disk, in KiTS layout and as predictions."""

import numpy as np

from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import volume_from_stored

AFFINE = np.diag([3.0, 0.8, 0.8, 1.0])  # stored z, y, x as KiTS stores it, but for the signs
AFFINE[[0, 2]] = AFFINE[[2, 0]]


def label_map(shift=0, tumor=True, cyst=True):
    """Two kidneys, a tumour in one and a cyst in the other, in stored order."""
    labels = np.zeros((12, 40, 40), np.uint8)
    labels[2:10, 10 + shift : 22 + shift, 5:15] = 1
    labels[2:10, 10 + shift : 22 + shift, 25:35] = 1
    if tumor:
        labels[3:8, 12 + shift : 20 + shift, 6:14] = 2
    if cyst:
        labels[3:6, 12 + shift : 17 + shift, 27:32] = 3
    return labels


def write(path, labels, affine=AFFINE):
    write_volume(path, volume_from_stored(labels, affine))
    return path

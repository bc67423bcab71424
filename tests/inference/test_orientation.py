"""One case stored in all 48 axis orders and obliquely: the same result in the world, in the input's own header."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation

from kits_cascade import Cascade
from kits_cascade.inference.cascade import CascadeOptions
from kits_cascade.models.choose import resolve_models
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.runner import Runner
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import make_case, write_models
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import SPACING, two_kidneys

ORIENTATIONS = [
    np.array([(axis, flip) for axis, flip in zip(order, flips)], float)
    for order in permutations(range(3))
    for flips in product((1, -1), repeat=3)
]


def stored(array_zyx, affine, orientation):
    """A nibabel image of the same world, its axes in another order."""
    array = np.ascontiguousarray(array_zyx.transpose(2, 1, 0))
    turned = apply_orientation(array, orientation)
    return nib.Nifti1Image(turned, affine @ inv_ornt_aff(orientation, array.shape))


def canonical(image):
    return apply_orientation(np.asarray(image.dataobj), io_orientation(image.affine)).transpose(2, 1, 0)


def oblique(affine):
    a, b = np.deg2rad([11.0, 7.0])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turned = affine.copy()
    turned[:3, :3] = about_z @ about_x @ affine[:3, :3]
    return turned


def same_header(result, source):
    assert result.shape == source.shape
    np.testing.assert_array_equal(result.affine, source.affine)
    for name in ("pixdim", "qform_code", "sform_code", "quatern_b", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(result.header[name], source.header[name], name)


def test_all_48_orders_and_an_oblique_scan(tmp_path):
    labels = two_kidneys()
    affine = np.diag([*SPACING[::-1], 1.0])
    affine[:3, 3] = -100, -80, 300
    for number, orientation in enumerate(ORIENTATIONS):
        nib.save(stored(HU[labels], affine, orientation), tmp_path / f"in_{number:02d}.nii.gz")
    nib.save(stored(HU[labels], oblique(affine), ORIENTATIONS[13]), tmp_path / "in_oblique.nii.gz")
    out = tmp_path / "out"
    cascade = Cascade(predictors=Oracle(), options=CascadeOptions(postprocess=None))
    summary = Runner(lambda: cascade, out, RunManifest(out)).run(find_inputs(tmp_path))
    assert len(summary.done) == 49
    codes = set()
    for case in summary.done:
        source, result = nib.load(tmp_path / f"{case}.nii.gz"), nib.load(out / f"{case}.nii.gz")
        same_header(result, source)
        np.testing.assert_array_equal(canonical(result), labels)
        codes.add(aff2axcodes(result.affine))
    assert len(codes) == 48


@pytest.mark.slow
def test_networks_answer_alike_in_all_orders(tmp_path):
    cascade = Cascade(resolve_models(write_models(tmp_path)), device="cpu")
    image, truth = make_case(size_mm=(120, 100, 200))
    affine = np.diag([*image.spacing[::-1], 1.0])
    expected = cascade(stored(image.array, affine, ORIENTATIONS[0])).labels
    assert (expected == truth.array).mean() > 0.98
    for orientation in ORIENTATIONS[7::8]:
        np.testing.assert_array_equal(cascade(stored(image.array, affine, orientation)).labels, expected)
    np.testing.assert_array_equal(cascade(stored(image.array, oblique(affine), ORIENTATIONS[21])).labels, expected)

"""Pictures show what they should, the right way up."""

import numpy as np
import pytest

from kits_cascade.errors import GeometryError
from kits_cascade.report.figures import case_panel
from kits_cascade.report.slices import focus, outlines, planes, window
from kits_cascade.volumes.volume import volume_from_array

SPACING = (4.0, 2.0, 1.0)


def volume(array):
    return volume_from_array(array, spacing=SPACING)


@pytest.fixture
def labels():
    array = np.zeros((20, 30, 60), np.uint8)
    array[5:15, 10:20, 10:25] = 1
    array[5:15, 10:20, 40:55] = 1
    array[8:12, 12:18, 42:50] = 2
    array[8:9, 12:13, 12:13] = 2  # a speck of tumour
    array[6:14, 11:19, 12:20] = np.where(array[6:14, 11:19, 12:20] == 1, 3, array[6:14, 11:19, 12:20])
    return array


def test_the_largest_tumor_comes_before_a_larger_cyst(labels):
    z, y, x = focus(labels)
    assert 8 <= z < 12 and 12 <= y < 18 and 42 <= x < 50
    labels[labels == 2] = 0
    assert 12 <= focus(labels)[2] < 20
    assert focus(np.zeros_like(labels)) is None


def test_the_truth_decides_where_both_have_a_tumor(labels):
    other = np.zeros_like(labels)
    other[2:19, 5:25, 1:9] = 2
    assert focus(labels, other)[2] > 40
    assert focus(np.zeros_like(labels), other)[2] < 9


def test_slices_hang_as_a_radiologist_hangs_them(labels):
    image = np.zeros(labels.shape, np.float32)
    image[:, :, -1] = 1000  # the patient's right
    image[:, -1, :] = 1000  # the front
    image[-1] = 1000  # the head
    axial, coronal, sagittal = planes(volume(image), None, volume(labels), margin_mm=1000)
    assert [plane.name for plane in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert (axial.image[0] == 255).all() and (axial.image[:, 0] == 255).all() and axial.image[-1, -1] < 255
    assert (coronal.image[0] == 255).all() and (coronal.image[:, 0] == 255).all()
    assert (sagittal.image[0] == 255).all() and (sagittal.image[:, 0] == 255).all()
    assert axial.size_mm == (60.0, 60.0)
    assert coronal.size_mm == (80.0, 60.0)


def test_the_view_is_cut_with_a_margin(labels):
    axial, _, _ = planes(None, volume(labels), volume(labels), margin_mm=4)
    assert axial.truth.shape == (10 + 2 * 2, 45 + 2 * 4)


def test_nothing_segmented_shows_the_middle(labels):
    axial, coronal, sagittal = planes(volume(labels), None, volume(labels * 0))
    assert (axial.position, coronal.position, sagittal.position) == (10, 15, 30)


def test_other_shapes_are_refused(labels):
    with pytest.raises(GeometryError):
        planes(volume(labels[1:]), None, volume(labels))


def test_outlines_run_along_pixel_edges(labels):
    axial, _, _ = planes(None, None, volume(labels), margin_mm=0)
    (line,) = outlines(np.pad(np.ones((3, 4), bool), 5), axial)
    assert line[:, 0].min() == pytest.approx(5.0) and line[:, 0].max() == pytest.approx(9.0)
    assert line[:, 1].min() == pytest.approx(10.0) and line[:, 1].max() == pytest.approx(16.0)
    assert (line[0] == line[-1]).all()


def test_window():
    assert window(np.array([-2000, -160, 40, 240, 3000, np.nan])).tolist() == [0, 0, 127, 255, 255, 0]


@pytest.mark.parametrize("parts", ["itp", "ip", "tp", "p"])
def test_panels(labels, tmp_path, parts):
    image = volume((labels * 100).astype(np.int16)) if "i" in parts else None
    truth = volume(labels) if "t" in parts else None
    out = tmp_path / "a folder" / "é.png"
    case_panel(image, truth, volume(np.roll(labels, 2, axis=2)), out, "case_00000")
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    case_panel(image, truth, volume(np.roll(labels, 2, axis=2)), out, "case_00000")
    assert out.read_bytes() == first

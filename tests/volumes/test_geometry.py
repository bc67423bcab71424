import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kits_cascade.errors import GeometryError
from kits_cascade.volumes.components import components, dilated_mm, volumes_mm3
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.roi_boxes import roi_box

SIZES = st.tuples(*[st.integers(1, 12)] * 3)


@st.composite
def boxes(draw):
    shape = draw(SIZES)
    start = [draw(st.integers(0, n - 1)) for n in shape]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, shape)]
    return shape, Box(tuple(start), tuple(stop))


@given(boxes())
def test_crop_and_paste_are_inverse(case):
    shape, box = case
    array = np.arange(np.prod(shape)).reshape(shape)
    into = np.zeros_like(array)
    box.paste(into, box.crop(array))
    assert np.array_equal(box.crop(into), box.crop(array))
    inside = np.zeros(shape, bool)
    inside[box.slices] = True
    assert not into[~inside].any()


@given(boxes())
def test_around_finds_the_box(case):
    shape, box = case
    mask = np.zeros(shape, bool)
    mask[box.slices] = True
    assert Box.around(mask) == box
    assert box.union(Box.around(mask)) == box
    assert Box.from_json(box.to_json()) == box


@given(boxes(), SIZES)
def test_on_another_grid_nothing_is_lost(case, other):
    shape, box = case
    there = box.on_grid(shape, other)
    for axis in range(3):
        scale = other[axis] / shape[axis]
        assert there.start[axis] <= box.start[axis] * scale + 1e-6
        assert there.stop[axis] >= box.stop[axis] * scale - 1e-6
    assert box.on_grid(shape, shape) == box


def test_margin_is_in_mm():
    mask = np.zeros((40, 100, 100), bool)
    mask[20, 50, 50] = True
    box = roi_box(mask, (5.0, 0.8, 0.8), 20.0)
    assert box == Box((16, 25, 25), (25, 76, 76))
    assert roi_box(np.zeros_like(mask), (1, 1, 1), 20.0) is None
    assert roi_box(mask, (1, 1, 1), 1000.0) == Box.full(mask.shape)


def test_touching_an_inner_face():
    box = Box((0, 2, 2), (4, 6, 6))
    mask = np.zeros(box.shape, bool)
    mask[0, 1, 1] = True
    assert not box.inner_faces_touched(mask, (8, 8, 8))  # that face is the volume's own
    mask[3, 1, 1] = True
    assert box.inner_faces_touched(mask, (8, 8, 8))
    assert not box.inner_faces_touched(mask, (4, 8, 8))


def test_outside_is_an_error():
    with pytest.raises(GeometryError):
        Box((0, 0, 0), (5, 5, 5)).crop(np.zeros((4, 5, 5)))
    with pytest.raises(GeometryError):
        Box((0, 0, 0), (2, 2, 2)).paste(np.zeros((4, 5, 5)), np.zeros((1, 2, 2)))


def test_components_by_hand():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 0] = True  # a diagonal counts as touching
    found = components(mask)
    assert found.count == 2
    assert sorted(volumes_mm3(found, (2.0, 1.0, 1.0))) == [2.0, 4.0]
    largest = 1 + int(np.argmax(found.voxels))
    assert found.keep([largest]).sum() == 2
    assert found.box(largest) == Box((0, 0, 0), (2, 2, 2))


def test_dilation_in_mm():
    mask = np.zeros((5, 9, 9), bool)
    mask[2, 4, 4] = True
    grown = dilated_mm(mask, (5.0, 1.0, 1.0), 3.0)
    distance = np.sqrt(((np.indices(mask.shape).T - (2, 4, 4)) * (5, 1, 1)) ** 2 @ np.ones(3)).T
    assert np.array_equal(grown, distance <= 3.0)
    assert not dilated_mm(np.zeros_like(mask), (1, 1, 1), 3.0).any()

import numpy as np
import pytest

from kits_cascade.inference.measure import body_midline, largest_axial_diameter, measure_lesions, volumes_ml
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.synthetic.phantom import make_case
from kits_cascade.volumes.geometry import Box

SPACING = (5.0, 2.0, 1.5)
AFFINE = np.array([[1.5, 0, 0, -100], [0, 2.0, 0, -50], [0, 0, 5.0, 30], [0, 0, 0, 1.0]])


def two_kidneys():
    """Kidneys of 24 mL on either side of x = 0 mm; x grows to the patient's right."""
    labels = np.zeros((20, 50, 140), np.uint8)
    labels[6:14, 10:30, 20:30] = KIDNEY
    labels[6:14, 10:30, 100:110] = KIDNEY
    return labels


def measured(labels, image=None, affine=AFFINE, spacing=SPACING, **more):
    image = np.zeros(labels.shape, np.int16) if image is None else image
    return measure_lesions(labels, image, spacing, affine, **more)


def test_numbers_by_hand():
    labels = two_kidneys()
    labels[7:9, 12:18, 102:106] = TUMOR  # 2 x 6 x 4 voxels of 15 mm3, 12 mm by 6 mm in plane
    labels[10, 12:14, 22:24] = CYST
    labels[12, 20, 22] = CYST
    image = np.zeros(labels.shape, np.int16)
    image[labels == TUMOR] = 40
    image[7, 12, 102] = 88  # one of 48
    image[labels == CYST] = 5
    tumor, cyst, speck = measured(labels, image)
    assert (tumor.kind, tumor.number, tumor.side, tumor.voxels) == ("tumor", 1, "right", 48)
    assert tumor.volume_ml == 0.72
    assert tumor.mean_hu == 41.0
    # From the middle of one edge to that of another: 5.5 of 6 pixels along y and half a pixel less along x.
    assert tumor.diameter_mm == pytest.approx(max(np.hypot(12, 3 * 1.5), np.hypot(5 * 2, 6)), abs=0.01)
    assert (tumor.x_mm, tumor.y_mm, tumor.z_mm) == (-100 + 1.5 * 103.5, -50 + 2 * 14.5, 30 + 5 * 7.5)
    assert tumor.slice == 7
    assert not tumor.cut_by_border
    assert (cyst.kind, cyst.number, cyst.side, cyst.volume_ml) == ("cyst", 1, "left", 0.06)
    assert (speck.number, speck.diameter_mm, speck.mean_hu) == (2, 2.0, 5.0)
    assert volumes_ml(labels, SPACING)["tumor"] == 0.72


def test_nothing_there():
    assert measured(np.zeros((3, 4, 5), np.uint8)) == []
    assert measured(two_kidneys()) == []


def disc(radius, spacing, shape=(1, 80, 80)):
    y, x = np.ogrid[: shape[1], : shape[2]]
    inside = ((y - 40.3) * spacing[0]) ** 2 + ((x - 39.6) * spacing[1]) ** 2 <= radius**2
    return np.broadcast_to(inside, shape)


@pytest.mark.parametrize(("radius", "spacing"), [(10, (1, 1)), (12, (0.5, 0.8)), (7.3, (0.9, 0.4))])
def test_a_disc_has_its_diameter(radius, spacing):
    axial = np.array([[0, spacing[0]], [spacing[1], 0]])
    assert largest_axial_diameter(disc(radius, spacing), axial)[0] == pytest.approx(2 * radius, abs=max(spacing))


def test_the_diameter_is_that_of_all_pairs_of_outline_points():
    rng = np.random.default_rng(0)
    edges = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])
    for _ in range(20):
        mask = rng.random((3, 9, 11)) < 0.15
        expected = 0.0
        for plane in mask:
            points = (np.argwhere(plane)[:, None] + edges).reshape(-1, 2) * (0.7, 1.3)
            if len(points):
                expected = max(expected, np.linalg.norm(points[:, None] - points, axis=-1).max())
        found, _ = largest_axial_diameter(mask, np.array([[0, 0.7], [1.3, 0]]))
        assert found == pytest.approx(expected)


def test_oblique_and_sheared_grids():
    labels = two_kidneys()
    labels[7:9, 12:18, 102:106] = TUMOR
    straight = measured(labels)[0]
    angle = np.deg2rad(15)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = measured(labels, affine=turn @ AFFINE)[0]
    assert oblique.diameter_mm == straight.diameter_mm
    assert (oblique.side, oblique.volume_ml) == (straight.side, straight.volume_ml)
    assert oblique.y_mm != straight.y_mm
    shear = AFFINE.copy()
    shear[0, 1] = 2.0  # a step along y goes 2 mm along x too
    assert measured(labels, affine=shear)[0].diameter_mm > 16


def test_a_crop_gives_what_the_whole_gives():
    labels = two_kidneys()
    labels[7:9, 12:18, 102:106] = TUMOR
    labels[10, 12:14, 22:24] = CYST
    image = np.random.default_rng(0).integers(-100, 100, labels.shape).astype(np.int16)
    box = Box((5, 8, 15), (16, 35, 120))
    part = measured(box.crop(labels), box.crop(image), origin=box, full_shape=labels.shape)
    assert part == measured(labels, image)


@pytest.mark.parametrize("at", [(0, 20, 104), (19, 20, 104), (10, 0, 104), (10, 49, 104), (10, 20, 0), (10, 20, 139)])
def test_cut_by_the_border_of_the_scan(at):
    labels = two_kidneys()
    labels[at] = TUMOR
    assert measured(labels)[0].cut_by_border
    # The border of a crop is none.
    box = Box(at, tuple(a + 1 for a in at))
    crop = measured(box.crop(labels), box.crop(labels), origin=box.shifted((3, 3, 3)), full_shape=(40, 70, 160))
    assert not crop[0].cut_by_border


def sides(labels, **more):
    return [row.side for row in measured(labels, **more)]


def test_a_lesion_has_the_side_of_its_kidney():
    labels = two_kidneys()
    labels[8:10, 14:20, 30:95] = TUMOR  # from the left kidney far over the midline
    assert sides(labels) == ["left"]


def test_one_kidney_needs_the_middle_of_the_body():
    labels = two_kidneys()
    labels[:, :, 60:] = 0
    labels[8, 15:20, 22:26] = TUMOR
    assert sides(labels) == ["left"]  # the scan's middle is at 4 mm
    # The same kidney in a scan whose field of view was set to one side.
    assert sides(labels, midline_x=-90.0) == ["right"]


def test_a_horseshoe_is_split_at_the_midline():
    labels = two_kidneys()
    labels[6:8, 10:14, 20:110] = KIDNEY
    labels[9, 15:20, 22:26] = TUMOR
    labels[9, 15:20, 103:107] = CYST
    assert sides(labels) == ["left", "right"]


def test_two_kidneys_on_one_side_stay_there():
    labels = np.zeros((20, 50, 140), np.uint8)
    labels[2:9, 10:30, 100:112] = KIDNEY
    labels[11:19, 10:30, 95:110] = KIDNEY  # crossed: 9 mm apart, both right
    labels[4, 15:20, 102:106] = TUMOR
    assert sides(labels, midline_x=0.0) == ["right"]


def test_sides_and_midline_on_phantoms():
    for index in range(4):
        case = make_case(0, index)
        image, labels = case.image, case.labels
        middle = body_midline(image.array, image.affine)
        centre = (image.affine @ [*((np.array(image.shape[::-1]) - 1) / 2), 1])[0]
        assert abs(middle - centre) < 15
        rows = measure_lesions(labels.array, image.array, image.spacing, image.affine, midline_x=middle)
        assert sum(row.volume_ml for row in rows if row.kind == "tumor") == pytest.approx(
            volumes_ml(labels.array, labels.spacing)["tumor"], abs=0.01
        )
        for row in rows:
            assert (row.side == "right") == (row.x_mm > middle) or abs(row.x_mm - middle) < 20


def test_body_midline():
    image = np.full((8, 40, 80), -1000, np.int16)
    assert body_midline(image, AFFINE) is None
    image[:, 8:32, 40:60] = 0
    assert body_midline(image, AFFINE) == pytest.approx(-100 + 1.5 * 49.5, abs=3)

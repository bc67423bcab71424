import csv

import numpy as np
import pytest

from kits_cascade.inference.postprocess import CYST_MM3, TUMOR_MM3, PostprocessOptions, postprocess
from kits_cascade.labels import CYST, KIDNEY, REGIONS, TUMOR
from kits_cascade.volumes.components import dilated_mm
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import read_labels

SPACING = (5.0, 1.0, 1.0)
PUBLISHED = PostprocessOptions(min_voxels=(20000, 200, 50))


def two_kidneys():
    """30 x 30 x 80 voxels of 5 mm3: kidneys of 16 and 12 mL."""
    labels = np.zeros((30, 40, 90), np.uint8)
    labels[5:13, 10:30, 5:25] = KIDNEY
    labels[5:11, 10:30, 60:80] = KIDNEY
    return labels


def after(labels, options=None, kidney=None):
    given = labels.copy()
    result = postprocess(labels, SPACING, options, kidney)
    assert np.array_equal(labels, given)
    assert result.labels.dtype == labels.dtype
    return result


def test_the_rim_of_a_tumour_is_no_cyst():
    labels = two_kidneys()
    labels[7:11, 13:19, 9:15] = CYST
    labels[8:10, 14:18, 10:14] = TUMOR
    result = after(labels)
    assert (result.labels[7:11, 13:19, 9:15] == TUMOR).all()
    assert "that they edge" in result.notes[0]
    kept = after(labels, PostprocessOptions(thin_rims=False))
    assert (kept.labels == CYST).any()
    wide = two_kidneys()
    wide[6:12, 8:28, 6:24] = CYST  # two voxels of it stay around the tumour: 4 mL, and no ball of 1 mL inside
    wide[7:11, 10:26, 8:22] = TUMOR
    assert not (after(wide).labels == CYST).any()
    beside = two_kidneys()
    beside[6:12, 12:24, 6:14] = TUMOR
    beside[6:12, 12:24, 14:22] = CYST  # a cyst of 8 mm that touches a tumour is one
    assert np.array_equal(after(beside).labels, beside)


def test_what_is_sound_stays():
    labels = two_kidneys()
    labels[6:8, 12:18, 8:14] = TUMOR
    labels[9:11, 20:24, 62:66] = CYST
    result = after(labels)
    assert np.array_equal(result.labels, labels)
    assert result.notes == ()
    empty = np.zeros((3, 4, 5), np.uint8)
    assert np.array_equal(after(empty).labels, empty)


def test_a_small_kidney_goes_and_the_largest_stays():
    labels = two_kidneys()
    labels[20:24, 5:15, 5:15] = KIDNEY  # 2 mL
    result = after(labels)
    assert np.array_equal(result.labels, two_kidneys())
    assert result.notes == ("removed 1 kidney component too small for a kidney (2e+03 mm3)",)
    child = np.zeros_like(labels)
    child[5:9, 10:20, 5:15] = KIDNEY
    child[5:7, 10:20, 60:70] = KIDNEY
    assert np.array_equal(after(child).labels[:, :, :30], child[:, :, :30])
    assert not after(child).labels[:, :, 30:].any()


def test_a_kidney_is_judged_with_its_masses():
    labels = two_kidneys()
    labels[5:11, 10:30, 60:79] = TUMOR  # all but a shred of the second kidney
    assert np.array_equal(after(labels).labels, labels)
    # Cut in two by its tumour: neither half alone is a kidney.
    cut = two_kidneys()
    cut[7:9, 10:30, 60:80] = TUMOR
    assert np.array_equal(after(cut).labels, cut)


def test_lesions_away_from_the_kidneys_go_whatever_their_size():
    labels = two_kidneys()
    false = labels.copy()
    false[14:26, 5:35, 30:55] = TUMOR  # 45 mL, larger than any kidney
    false[0:2, 0:4, 0:4] = CYST
    result = after(false)
    assert np.array_equal(result.labels, labels)
    assert len(result.notes) == 2


@pytest.mark.parametrize(("gap", "stays"), [(0, True), (1, True), (2, True), (3, False), (6, False)])
def test_a_lesion_touches_the_kidney_within_three_millimetres(gap, stays):
    labels = two_kidneys()
    labels[6:10, 15:20, 25 + gap : 31 + gap] = CYST
    assert (after(labels).labels == CYST).any() == stays
    assert (after(labels, PostprocessOptions(touch_mm=gap + 1.0)).labels == CYST).any()


def test_a_cyst_on_a_tumour_belongs_to_the_kidney():
    labels = two_kidneys()
    labels[6:10, 15:20, 25:35] = TUMOR
    labels[6:10, 15:20, 35:45] = CYST
    assert np.array_equal(after(labels).labels, labels)


def test_small_lesions_become_what_surrounds_them():
    labels = two_kidneys()
    labels[8, 20, 10:13] = TUMOR  # 15 mm3 inside the kidney
    labels[9:12, 15:25, 15:24] = CYST
    labels[10, 20, 20] = TUMOR  # in the cyst
    labels[8, 29:33, 20] = CYST  # mostly outside
    result = after(labels).labels
    assert (result[8, 20, 10:13] == KIDNEY).all()
    assert result[10, 20, 20] == CYST
    assert (result[8, 30:33, 20] == 0).all()
    kidney = (labels > 0).astype(np.uint8)
    assert (after(labels, kidney=kidney).labels[8, 29:33, 20] == KIDNEY).all()
    assert (after(labels, kidney=np.zeros_like(kidney)).labels[8, 29:33, 20] == 0).all()


def test_thresholds_are_volumes_or_voxels():
    labels = two_kidneys()
    labels[6, 11:15, 6:11] = TUMOR  # 20 voxels, 100 mm3
    labels[6, 20, 6:11] = CYST  # 5 voxels, 25 mm3
    assert np.array_equal(after(labels).labels, labels)
    # The kidneys have fewer than 20,000 voxels too: only the largest stays.
    published = after(labels, PUBLISHED)
    assert set(np.unique(published.labels)) == {0, KIDNEY}
    assert not published.labels[:, :, 60:].any()
    assert len(published.notes) == 3
    few = after(labels, PostprocessOptions(min_voxels=(100, 20, 6)))
    assert (few.labels == TUMOR).sum() == 20
    assert not (few.labels == CYST).any()


def test_each_step_is_a_switch():
    labels = two_kidneys()
    labels[20:24, 5:15, 5:15] = KIDNEY
    labels[0:3, 0:5, 50:55] = TUMOR
    labels[8, 20, 10] = CYST
    assert np.array_equal(after(labels, PostprocessOptions(False, False, False)).labels, labels)
    kidneys = after(labels, PostprocessOptions(detached_lesions=False, small_lesions=False)).labels
    detached = after(labels, PostprocessOptions(small_kidneys=False, small_lesions=False)).labels
    small = after(labels, PostprocessOptions(small_kidneys=False, detached_lesions=False)).labels
    for result, changed in ((kidneys, KIDNEY), (detached, TUMOR), (small, CYST)):
        assert set(labels[result != labels]) == {changed}


def test_a_crop_gives_what_the_whole_gives():
    labels = two_kidneys()
    labels[20:24, 5:15, 5:15] = KIDNEY
    labels[0:3, 0:5, 50:55] = TUMOR
    box = Box.around(labels)
    assert np.array_equal(after(box.crop(labels)).labels, box.crop(after(labels).labels))


def test_twice_is_once():
    rng = np.random.default_rng(0)
    labels = two_kidneys()
    speckled = np.where(rng.random(labels.shape) < 0.02, rng.integers(0, 4, labels.shape), labels).astype(np.uint8)
    once = after(speckled).labels
    assert np.array_equal(after(once).labels, once)


# --- the published truth -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truths(kits23):
    """Spacing and labels around the foreground of the 40 masks."""
    found = []
    for folder in sorted((kits23 / "masks").iterdir()):
        volume = read_labels(next(folder.glob("*.nii.gz")))
        found.append((folder.name, volume.spacing, Box.around(volume.array).crop(volume.array).copy()))
    return found


def dice(truth, result, labels):
    """From the table of which label became which: one pass over the voxels for all regions."""
    table = np.bincount(truth.ravel().astype(np.intp) * 4 + result.ravel(), minlength=16).reshape(4, 4)
    chosen = list(labels)
    total = table[chosen].sum() + table[:, chosen].sum()
    return 1.0 if total == 0 else 2 * table[np.ix_(chosen, chosen)].sum() / total


def test_the_truth_comes_out_as_it_went_in(truths):
    assert len(truths) == 40
    worst = 1.0
    for name, spacing, labels in truths:
        result = postprocess(labels, spacing).labels
        for region in REGIONS:
            score = dice(labels, result, region.labels)
            worst = min(worst, score)
            assert score >= 0.999, (name, region.name, score)
        for label in (TUMOR, CYST):
            assert (result == label).any() == (labels == label).any(), (name, label)
    assert worst > 0.9995, worst


def test_random_false_positives_outside_the_kidneys_all_go(truths):
    rng = np.random.default_rng(1)
    small = [truth for truth in truths if truth[2].size < 2_000_000]
    assert len(small) > 10
    for name, spacing, labels in small[::4]:
        clean = np.pad(postprocess(labels, spacing).labels, [(int(30 / size),) * 2 for size in spacing])
        free = ~dilated_mm(clean > 0, spacing, 6.0)
        false = clean.copy()
        for _ in range(40):
            label = int(rng.integers(1, 4))
            # Balls; of the kidney label below the size of a kidney, of the others up to 34 mL.
            _paint_ball(false, free, rng, spacing, rng.uniform(2, 12 if label == KIDNEY else 20), label)
        specks = free & (rng.random(free.shape) < 0.001)
        false[specks] = rng.integers(1, 4, int(specks.sum()))
        assert (false != clean).sum() > 1000
        assert np.array_equal(postprocess(false, spacing).labels, clean), name


def _paint_ball(labels, allowed, rng, spacing, radius, label):
    centre = [rng.uniform(0, n) for n in labels.shape]
    low = [max(0, int(c - radius / s)) for c, s in zip(centre, spacing)]
    high = [min(n, int(c + radius / s) + 2) for c, s, n in zip(centre, spacing, labels.shape)]
    part = tuple(slice(a, b) for a, b in zip(low, high))
    grids = np.ogrid[part]
    ball = sum(((g - c) * s) ** 2 for g, c, s in zip(grids, centre, spacing)) <= radius**2
    mask = ball & allowed[part]
    labels[part][mask] = label
    # Balls keep apart: a false kidney with a false tumour on it is a kidney for all that the labels can tell.
    closer = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in part)
    allowed[closer] = False


def test_totals_of_all_published_cases(kits23):
    """What the table of all 489 cases can tell, which has totals and not lesions."""
    with (kits23 / "geometry.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 489
    below_volume, below_voxels = [], []
    for row in rows:
        voxel = float(row["s0_mm"]) * float(row["s1_mm"]) * float(row["s2_mm"])
        for column, volume, voxels in (("tumor_voxels", TUMOR_MM3, 200), ("cyst_voxels", CYST_MM3, 50)):
            total = int(row[column])
            below_volume += [row["case"]] if 0 < total * voxel < volume else []
            below_voxels += [row["case"]] if 0 < total < voxels else []
    assert below_volume == []
    assert len(below_voxels) == 4  # the fifth case has several cysts, each below 50 voxels

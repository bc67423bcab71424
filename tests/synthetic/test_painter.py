"""The painter: labels stay what they were, tissues have their HU, seeds repeat, a stopped run goes on."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.synthetic import painted_cases, painter, subjects
from kits_cascade.synthetic.body_plan import draw_plan
from kits_cascade.synthetic.painted_body import paint_body
from kits_cascade.synthetic.tissues import CODE, PHASES, TISSUES, draw_palette, tissue_of
from tests.synthetic.sources import write_anatomy, write_mask

SPACING = (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        write_anatomy(root / "anatomy")
        write_mask(root / "masks")
        yield root


@pytest.fixture(scope="module")
def sources(folders):
    return painter.Sources.find(folders / "anatomy", folders / "masks")


def paint(sources, index=0, **changes):
    options = replace(painter.PaintOptions(SPACING, view="whole"), **changes)
    return painter.paint_case(sources, 3, index, options)


def test_same_seed_same_bytes_another_seed_another_case(sources):
    first, again, other = paint(sources), paint(sources), paint(sources, 1)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_a_case_is_a_ct_with_kits_labels(sources):
    case = paint(sources)
    assert case.image.dtype == np.int16 and case.labels.dtype == np.uint8
    assert case.image.shape == case.labels.shape
    assert set(np.unique(case.labels)) <= {0, KIDNEY, TUMOR, CYST}
    assert case.image.min() >= -3024 and case.image.max() <= 3071
    assert (case.labels == KIDNEY).sum() * 0.064 > 30, "mL"


def test_lesions_keep_their_share_of_the_kidney(sources):
    """What is placed is the mask's own shape: the tumour's share stays within what turning and sampling cost."""
    truth = nib.load(sources.masks[0]).get_fdata()
    left = truth[:, :, :30] if (truth[:, :, :30] == TUMOR).any() else truth[:, :, 30:]
    wanted = (left == TUMOR).sum() / (left > 0).sum()
    found = []
    for index in range(6):
        labels = paint(sources, index).labels
        sides = [labels[:, :, : labels.shape[2] // 2], labels[:, :, labels.shape[2] // 2 :]]
        found += [(s == TUMOR).sum() / (s > 0).sum() for s in sides if (s == TUMOR).any()]
    assert found
    assert np.median(found) == pytest.approx(wanted, rel=0.35)


def test_tissues_have_their_hu(sources):
    """Without scanner effects to speak of, fat is fat, water is water, and the kidney is brighter than both."""
    seen = []
    for index in range(4):
        case = paint(sources, index, phases=("portal",), scanner=False)
        kidney, cyst = (case.image[case.labels == label].astype(float) for label in (KIDNEY, CYST))
        if len(kidney) and len(cyst):
            seen.append((np.median(kidney), np.median(cyst), np.percentile(case.image, 1)))
    assert seen
    kidney, cyst, lowest = np.median(np.array(seen), axis=0)
    assert 90 < kidney < 260
    assert -20 < cyst < 80
    assert lowest < -850


def test_cut_view_cuts_and_pelvis_has_less_kidney(sources):
    whole = paint(sources).labels
    cut = paint(sources, view="cut").labels
    assert (cut > 0).sum() < (whole > 0).sum()
    assert (cut[0] > 0).any() or (cut[-1] > 0).any()


def test_own_kidneys_have_no_lesions(sources):
    labels = paint(sources, own_kidneys=True).labels
    assert set(np.unique(labels)) == {0, KIDNEY}


@pytest.mark.parametrize("phase", PHASES)
def test_palette_keeps_to_its_table(phase):
    for seed in range(20):
        palette = draw_palette(np.random.default_rng(seed), phase, odd=0)
        assert palette.mean[CODE["air"]] == -1000
        assert palette.mean[CODE["tumor"]] < palette.mean[CODE["cortex"]] + 10
        assert palette.mean[CODE["visceral fat"]] < -50
        assert len(palette.mean) == len(TISSUES)


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("kidney_left", "kidney"),
        ("kidney_cyst_right", "kidney"),
        ("vertebrae_L3", "marrow"),
        ("urinary_bladder", "bladder"),
        ("gallbladder", "gallbladder"),
        ("portal_vein_and_splenic_vein", "portal vein"),
        ("lung_upper_lobe_left", "lung"),
        ("pulmonary_vein", "heart"),
        ("something_else", "loose tissue"),
    ],
)
def test_structures_are_told_by_name(name, tissue):
    assert tissue_of(name) == tissue


def test_a_folder_of_masks_is_an_anatomy_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_anatomy(tmp_path / "combined")
    image = nib.load(tmp_path / "combined" / "body.nii.gz")
    whole = np.asarray(image.dataobj)
    folder = tmp_path / "subjects" / "s1" / "segmentations"
    folder.mkdir(parents=True)
    for value, name in ((1, "kidney_left"), (2, "kidney_right"), (3, "liver"), (4, "vertebrae_L1")):
        nib.save(nib.Nifti1Image((whole == value).astype(np.uint8), image.affine), folder / f"{name}.nii.gz")
    (path,) = subjects.find_anatomies(tmp_path / "subjects")
    body = subjects.read_anatomy(path)
    combined = subjects.read_anatomy(tmp_path / "combined" / "body.nii.gz")
    assert set(body.kidneys) == {"left", "right"}
    for side, centre in combined.kidneys.items():
        np.testing.assert_allclose(body.kidneys[side], centre, atol=0.1)
    assert body.kidneys["left"][2] < body.kidneys["right"][2], "x runs to the patient's right in RAS"


def test_wrong_sources_say_what_is_wanted(tmp_path):
    with pytest.raises(DatasetError, match=r"labels\.json"):
        subjects.find_anatomies(tmp_path)
    with pytest.raises(DatasetError, match="KiTS layout"):
        subjects.find_masks(tmp_path)
    with pytest.raises(UsageError, match="plain, arterial"):
        painter.make_options(2.0, phases=("venous",))


def test_broken_cache_is_made_anew(folders, sources):
    for path in subjects.cache_folder().glob("*.npz"):
        path.write_bytes(b"broken")
    painter._anatomy.cache_clear()
    paint(sources)


def test_prepared_sources_paint_the_same(sources, tmp_path):
    subjects.prepare_sources(sources.anatomies, sources.masks, tmp_path)
    prepared = painter.Sources.find(tmp_path / "anatomy", tmp_path / "masks")
    assert np.array_equal(paint(prepared).image, paint(sources).image)
    assert prepared.anatomies[0].suffix == ".npz"
    assert paint(prepared).about == paint(sources).about


def test_lean_bodies_have_less_fat_around_their_kidneys(sources):
    """What is drawn for a body is the same; only fat between the organs gives way to them."""
    fat = {}
    for events in (frozenset(), frozenset({"lean"})):
        rng = np.random.default_rng(1)
        anatomy = subjects.read_anatomy(sources.anatomies[0])
        kidneys = {k.side: k for k in subjects.read_kidneys(sources.masks[0])}
        plan = replace(draw_plan(rng, anatomy, kidneys, view="abdomen"), events=events)
        canvas = paint_body(plan, (30, 50, 60), (6.0, 6.0, 6.0), [100.0, 90.0, 120.0], np.random.default_rng(2))
        fat[len(events)] = int((canvas.tissue == CODE["visceral fat"]).sum())
    assert fat[1] < 0.8 * fat[0]


def test_command_goes_on_where_it_stopped(folders, tmp_path):
    out = tmp_path / "painted"
    command = ["paint", "-o", str(out), "--masks", str(folders / "masks"), "--anatomy", str(folders / "anatomy")]
    command += ["--spacing", "4", "--view", "abdomen", "-j", "1"]
    first = CliRunner().invoke(app, [*command, "-n", "1", "--no-sheet"])
    assert first.exit_code == 0, first.output
    kept = {path: path.read_bytes() for path in (out / "case_00000").iterdir()}
    assert set(path.name for path in kept) == {"imaging.nii.gz", "segmentation.nii.gz", painted_cases.ABOUT_FILE}
    second = CliRunner().invoke(app, [*command, "-n", "2"])
    assert second.exit_code == 0, second.output
    assert {path: path.read_bytes() for path in kept} == kept
    assert (out / "case_00001" / "imaging.nii.gz").is_file()
    assert (out / "sheet.png").stat().st_size > 10_000
    wrong = CliRunner().invoke(app, [*command, "-n", "1", "--only", "nobody"])
    assert wrong.exit_code != 0

"""The 3-D page: what it holds, how large it gets, and that a real browser shows the lesion that was clicked."""

import base64
import gzip
import importlib.util
import re
import time

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.errors import CaseError, MissingExtraError, UsageError
from kits_cascade.files import sha256, write_json
from kits_cascade.inference.plausibility_finding import Finding
from kits_cascade.report import niivue
from kits_cascade.report.embedded import ViewOptions, pack_scan
from kits_cascade.report.page import build_report
from kits_cascade.report.surfaces import mask_surface
from kits_cascade.report.viewer import view_cases, write_view
from kits_cascade.volumes.volume import volume_from_array
from tests.evaluation.small_scores import label_map, write
from tests.report import browser

needs_niivue = pytest.mark.skipif(
    importlib.util.find_spec("ipyniivue") is None, reason="no NiiVue here: pip install 'kits-cascade[viewer]'"
)


@pytest.fixture
def case(tmp_path):
    """A folder as predict leaves it: one case, its image elsewhere."""
    labels = label_map()
    hu = np.array([-100, 150, 80, 5], np.int16)[labels]
    source = write(tmp_path / "images" / "a & b_0000.nii.gz", hu)
    write(tmp_path / "out" / "a & b.nii.gz", labels)
    where = tuple(int(index) for index in np.argwhere(labels == 3)[0])
    findings = [
        Finding("lesions", "doubt", "a <dense> cyst", where, "cyst 1").to_json(),
        Finding("view", "note", "short scan").to_json(),
        Finding("view", "note", "two alike slices", (999, 0, 0)).to_json(),
    ]
    sure = [
        {"kind": "tumor", "number": 1, "certainty": 0.93, "confidence": 0.87},
        {"kind": "cyst", "number": 1, "certainty": 0.61, "confidence": None},
    ]
    record = {"status": "done", "input": str(source), "warnings": ["<b>odd</b>"], "verdict": "doubtful"}
    record |= {"findings": findings, "lesions": sure, "result": sha256(tmp_path / "out" / "a & b.nii.gz")}
    write_json(tmp_path / "out" / "run.json", {"cases": {"a & b": record}})
    return tmp_path / "out" / "a & b"


def ball(radius_mm, spacing, affine):
    axes = [np.arange(round(80 / size)) * size for size in spacing]
    grid = np.meshgrid(*axes, indexing="ij")
    return mask_surface(sum((axis - 40) ** 2 for axis in grid) <= radius_mm**2, spacing, affine)


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (-1, -1)])
def test_a_ball_has_its_volume_and_its_place_whichever_way_the_axes_run(signs):
    affine = np.diag([0.8 * signs[0], 0.8 * signs[1], 3.0, 1.0])
    affine[:3, 3] = (100, -50, 7)
    surface = ball(15, (3.0, 0.8, 0.8), affine)
    assert surface.volume_mm3 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.08)  # positive: seen from outside
    centre = (surface.vertices.max(axis=0) + surface.vertices.min(axis=0)) / 2
    assert centre == pytest.approx([100 + 40 * signs[0], -50 + 40 * signs[1], 47], abs=1)


def test_a_single_voxel_has_a_surface_and_nothing_has_none():
    mask = np.zeros((8, 8, 8), bool)
    assert mask_surface(mask, (1.0, 1.0, 1.0), np.eye(4)) is None
    mask[4, 4, 4] = True
    assert mask_surface(mask, (5.0, 0.7, 0.7), np.eye(4)).volume_mm3 > 0


def unpacked(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.mark.parametrize(("bits", "step"), [(8, 2.4), (16, 0.01)])
def test_the_ct_comes_back(bits, step):
    array = np.random.default_rng(0).integers(-150, 390, (5, 6, 7)).astype(np.int16)
    affine = np.array([[-0.8, 0, 0, 9], [0, 0.8, 0, 8], [0, 0.1, 3, 7], [0, 0, 0, 1]])
    ct, overlay, notes = pack_scan(
        volume_from_array(array, affine), volume_from_array(array > 0, affine), ViewOptions(bits)
    )
    image = unpacked(ct)
    assert np.abs(image.get_fdata().transpose(2, 1, 0) - array).max() < step
    assert image.affine == pytest.approx(affine, abs=1e-5)
    assert (unpacked(overlay).get_fdata().transpose(2, 1, 0) == (array > 0)).all()
    assert not notes


def test_resolution_gives_way_to_size():
    array = np.random.default_rng(0).integers(-200, 400, (20, 120, 120)).astype(np.int16)  # noise: as large as can be
    volume = volume_from_array(array, np.diag([0.5, 0.5, 5.0, 1.0]))
    ct, _, notes = pack_scan(volume, volume.with_array((array > 0).astype(np.uint8)), ViewOptions(megabytes=0.1))
    image = unpacked(ct)
    assert 50_000 < len(ct) <= 100_000
    assert image.shape[2] == 20 and image.shape[0] < 120  # the fine axes first
    corner = image.affine @ [-0.5, -0.5, -0.5, 1]
    assert corner[:3] == pytest.approx([-0.25, -0.25, -2.5], abs=1e-4)
    assert "lower resolution" in notes[0]


@needs_niivue
def test_the_page_is_whole_and_self_contained(case):
    (task,) = view_cases(case)
    page = task.write().read_text(encoding="utf-8")
    assert task.page == case.parent / "view" / "a & b.html"
    own = page.replace(niivue.niivue_script(), "")
    assert "a &amp; b" in own and "&lt;b&gt;odd&lt;/b&gt;" in own
    assert "Tumor 1" in own and "Cyst 1" in own and "Redistributions" in own
    assert own.count('class="mesh"') == 3
    assert 'class="verdict doubtful"' in own and "a &lt;dense&gt; cyst" in own and own.count("data-spot=") == 1
    assert "right in 87 %" in own and "certainty 0.61" in own and own.count('class="sure soft unsure"') == 1
    assert "two alike slices" in own and "outside of this page" in own
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", own)
    assert '<a class="view" href="view/a%20%26%20b.html">' in build_report(case.parent).page.read_text(encoding="utf-8")


@needs_niivue
def test_what_was_said_of_other_labels_is_not_shown(case):
    labels = label_map()
    labels[labels == 3] = 1
    write(case.parent / "a & b.nii.gz", labels)
    page = view_cases(case)[0].write().read_text(encoding="utf-8").replace(niivue.niivue_script(), "")
    assert "labels have been changed" in page
    assert 'class="verdict' not in page and "certainty 0" not in page


def test_the_report_tells_how_sure_the_networks_are(case):
    page = build_report(case.parent).page.read_text(encoding="utf-8")
    assert '<td class="">0.93</td><td class="">87%</td>' in page and '<td class="low">0.61</td>' in page
    assert "a &lt;dense&gt; cyst" in page and "<td>cyst 1</td>" in page


@needs_niivue
def test_nothing_segmented_is_shown_too(tmp_path):
    volume = volume_from_array(np.zeros((6, 8, 8), np.int16), np.eye(4))
    page = write_view(tmp_path / "a.html", "a", volume, volume.with_array(np.zeros((6, 8, 8), np.uint8)))
    assert "No lesion segmented" in page.read_text(encoding="utf-8")


def test_what_is_not_there_is_named(case, monkeypatch):
    with pytest.raises(UsageError, match="no such case; there is a & b"):
        view_cases(case.parent / "c")
    (case.parent.parent / "images" / "a & b_0000.nii.gz").unlink()
    (lost,) = view_cases(case.parent)
    with pytest.raises(CaseError, match="-i"):
        lost.write()
    niivue.niivue_script.cache_clear()
    monkeypatch.setattr(niivue, "_CARRIER", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"kits-cascade\[viewer\]"):
        niivue.niivue_script()


@needs_niivue
@pytest.mark.slow
@pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")
@pytest.mark.parametrize("phone", [False, True])
def test_a_browser_shows_the_lesion_that_is_clicked(case, phone):
    (task,) = view_cases(case)
    page = task.write()
    with browser.browser(*((390, 844) if phone else (1280, 900)), phone=phone, webgl=True) as window:
        window.open(page.as_uri())
        state = wait_until_drawn(window)
        if state != "ready" and not window.run("return !!document.createElement('canvas').getContext('webgl2')"):
            pytest.skip("this browser draws no WebGL 2")
        assert state == "ready", window.run("return document.querySelector('#message').textContent")
        for number, label in ((1, "cyst"), (0, "tumor")):
            window.run(f"document.querySelector('button[data-lesion=\"{number}\"]').click()")
            assert window.run("return document.body.dataset.label") == label
        window.run("document.querySelector('button[data-spot]').click()")
        assert window.run("return document.body.dataset.label") == "cyst"
        for view in ("axial", "coronal", "sagittal", "solid", "all"):
            window.run(f"document.querySelector('button[data-view={view}]').click()")
        assert window.run("return document.querySelector('#near-left').textContent") == "R"
        assert window.run("return document.documentElement.scrollWidth <= innerWidth")
        loaded = (
            "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !/^(data|blob):/.test(n))"
        )
        assert window.run(loaded) == []
        assert window.console() == []
        marks = window.run("return performance.getEntriesByType('mark').map(mark => mark.name)")
        assert marks == ["slices", "ready"]


def wait_until_drawn(window, seconds=240):
    for _ in range(seconds * 5):
        state = window.run("return document.body.dataset.state")
        if state not in ("loading", "slices"):
            break
        time.sleep(0.2)
    return state

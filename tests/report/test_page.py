"""The page: what is on it, and that a real browser opens it, quickly and without a complaint."""

import re
import shutil

import numpy as np
import pytest

from kits_cascade.files import read_json, write_json
from kits_cascade.report.page import Strip, build_report
from kits_cascade.report.pictures import PictureTask, draw_case, svg_path
from kits_cascade.report.slices import planes
from kits_cascade.volumes.nifti import read_labels
from tests.evaluation.small_scores import AFFINE, label_map, write
from tests.report import browser


@pytest.fixture
def run_folder(folders, tmp_path):
    """A folder as predict leaves it, with the images somewhere else."""
    predictions, truth = folders
    cases = {}
    for path in sorted(predictions.glob("*.nii.gz")):
        image = np.random.default_rng(0).normal(40, 60, (12, 40, 40)).astype(np.int16)
        source = write(tmp_path / "the images" / path.name.replace(".nii", "_0000.nii"), image)
        cases[path.name.removesuffix(".nii.gz")] = {"status": "done", "input": str(source), "seconds": {"coarse": 2.0}}
    cases["kaputt"] = {"status": "failed", "input": "/nowhere", "reason": "truncated <b>file</b>"}
    header = {"versions": {"torch": "2"}, "device": "cpu", "models": [{"stage": "coarse"}], "options": {"tta": False}}
    write_json(predictions / "run.json", {**header, "cases": cases})
    return predictions, truth


def test_the_page_is_whole_and_self_contained(run_folder):
    predictions, truth = run_folder
    report = build_report(predictions, truth, panels=2)
    page = report.page.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 9
    assert page.index("case-case_00000") < page.index("case-case_00500")  # worst first
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", page)
    assert "truncated &lt;b&gt;file&lt;/b&gt;" in page  # what comes from files is escaped
    assert re.findall(r'<path class="(\w+)"', page)
    assert sorted(path.name for path in report.pictures) == [
        "case_00000.png", "case_00001.png", "distributions.png", "lesions.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.pictures)
    assert (predictions / "evaluation.csv").is_file()


def test_what_is_not_to_be_believed_comes_first_and_says_why_and_where(run_folder):
    predictions, _ = run_folder
    content = read_json(predictions / "run.json")
    last = sorted(name for name in content["cases"] if name != "kaputt")[-1]
    finding = {"check": "kidneys: flat end", "severity": "doubt", "text": "a kidney ends flat", "where": [3, 20, 20]}
    content["cases"][last] |= {"verdict": "doubtful", "findings": [finding | {"look": "slice 3 from the feet"}]}
    write_json(predictions / "run.json", content)
    page = build_report(predictions).page.read_text(encoding="utf-8")
    assert page.index(f'id="case-{last}"') == min(match.start() for match in re.finditer('id="case-', page))
    assert '<span class="tag warn">doubtful</span>' in page and ", 1 doubtful." in page
    assert "<b>kidneys: flat end</b> a kidney ends flat" in page and "(look at slice 3 from the feet)" in page


def test_slices_meet_where_one_is_asked_to_look(folders):
    predictions, _ = folders
    path = sorted(predictions.glob("*.nii.gz"))[0]
    labels = read_labels(path)
    assert [plane.position for plane in planes(None, None, labels, point=(5, 18, 19))] == [5, 18, 19]


def test_the_same_twice(run_folder):
    first = build_report(*run_folder).page.read_bytes()
    assert build_report(*run_folder, jobs=2).page.read_bytes() == first


def test_without_truth(run_folder):
    predictions, _ = run_folder
    report = build_report(predictions)
    page = report.page.read_text(encoding="utf-8")
    assert report.scores is None
    assert "Predicted volume" in page and "missed" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S)


def test_scores_that_are_there_already_are_used(run_folder):
    predictions, truth = run_folder
    build_report(predictions, truth)
    assert build_report(predictions).scores is not None


def test_without_images_and_with_broken_files(run_folder, tmp_path):
    predictions, truth = run_folder
    (predictions / "run.json").write_text("{broken")
    (predictions / "case_00001.nii.gz").write_bytes(b"")
    shutil.copy(truth / "case_00000" / "segmentation.nii.gz", predictions / "né, & <x>.nii.gz")
    report = build_report(predictions, truth)
    page = report.page.read_text(encoding="utf-8")
    assert [failure.split(":")[0] for failure in report.failures] == ["case_00001"]
    assert "jpeg;base64" not in page
    assert "né, &amp; &lt;x&gt;" in page


def test_an_image_that_does_not_fit_is_left_out_and_named(folders, tmp_path):
    predictions, truth = folders
    wrong = write(tmp_path / "image.nii.gz", np.zeros((5, 40, 40), np.int16))
    case = "case_00000"
    drawn = draw_case(
        PictureTask(case, predictions / f"{case}.nii.gz", truth / case / "segmentation.nii.gz", image=wrong)
    )
    assert drawn.planes[0].jpeg is None
    assert "another shape" in drawn.notes[0]


def test_lesions_carry_their_verdict(folders):
    predictions, truth = folders
    write(predictions / "case_00000.nii.gz", label_map(cyst=False))
    drawn = draw_case(PictureTask("a", predictions / "case_00000.nii.gz", truth / "case_00000" / "segmentation.nii.gz"))
    assert [(line.kind, line.source, line.verdict) for line in drawn.lesions] == [
        ("tumor", "prediction", "correct"), ("cyst", "truth", "missed"),
    ]  # fmt: skip
    assert drawn.lesions[0].volume_ml == pytest.approx(5 * 8 * 8 * 3 * 0.64 / 1000)


def test_an_empty_prediction_is_drawn(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.zeros((12, 40, 40), np.uint8))
    drawn = draw_case(PictureTask("a", path))
    assert len(drawn.planes) == 3 and drawn.lesions == ()


def test_outlines_are_short_and_exact():
    square = np.array([[0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [0, 0]], float)
    assert svg_path(square) == "M0 0l20 0l0 20l-20 0z"


def test_tukeys_box():
    strip = Strip.of("x", {str(i): v for i, v in enumerate([0.1, 0.8, 0.82, 0.84, 0.86, 0.88])}, high=1.0)
    assert strip.quartiles == pytest.approx((0.805, 0.83, 0.855))
    assert strip.whiskers == (0.8, 0.88)  # 0.1 is an outlier
    assert strip.place(0.5) == 50


def large_cases(folder, count):
    """Cases with pictures of real size: noise compresses worse than any CT."""
    rng = np.random.default_rng(0)
    affine = AFFINE.copy()
    labels = np.zeros((40, 300, 420), np.uint8)
    labels[5:35, 90:230, 60:160] = labels[5:35, 90:230, 260:360] = 1
    labels[10:30, 120:170, 60:120] = 2
    labels[10:20, 180:220, 300:340] = 3
    for number in range(count):
        image = rng.normal(40, 60, labels.shape).astype(np.int16)
        write(folder / "images" / f"case_{number:05d}_0000.nii.gz", image, affine)
        write(folder / "pred" / f"case_{number:05d}.nii.gz", np.roll(labels, number, axis=2), affine)
        write(folder / "truth" / f"case_{number:05d}.nii.gz", labels, affine)
    return folder / "pred", folder / "truth", folder / "images"


@pytest.fixture(scope="module")
def page_of_forty(tmp_path_factory):
    """Forty cards, from three cases that are drawn for real."""
    predictions, truth, images = large_cases(tmp_path_factory.mktemp("forty"), 3)
    for number in range(3, 40):
        for folder, ending in ((predictions, ""), (truth, ""), (images, "_0000")):
            source = folder / f"case_{number % 3:05d}{ending}.nii.gz"
            (folder / f"case_{number:05d}{ending}.nii.gz").hardlink_to(source)
    return build_report(predictions, truth, images, panels=0, jobs=None).page


@pytest.mark.slow
def test_forty_cases_are_under_15_mb(page_of_forty):
    assert page_of_forty.stat().st_size < 15e6


@pytest.mark.slow
@pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")
@pytest.mark.parametrize("phone", [False, True])
def test_forty_cases_open_in_two_seconds_without_a_complaint(page_of_forty, phone):
    with browser.browser(*((390, 844) if phone else (1280, 900)), phone=phone) as window:
        window.open("about:blank")
        seconds = min(window.open(page_of_forty.as_uri()) for _ in range(2))  # the machine may be busy
        assert window.console() == []
        assert seconds < 2
        assert window.run("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")
def test_the_page_in_a_browser(run_folder):
    page = build_report(*run_folder).page
    names = "return [...document.querySelectorAll('#cards .case')].filter(c => !c.hidden).map(c => c.dataset.name)"
    with browser.browser() as window:
        window.open(page.as_uri())
        assert window.run(names) == ["case_00000", "case_00001", "case_00500"]
        window.run(
            "const o = document.querySelector('#order'); o.value = 'rank down'; o.dispatchEvent(new Event('change'))"
        )
        assert window.run(names) == ["case_00500", "case_00001", "case_00000"]
        window.run("const s = document.querySelector('#search'); s.value = '0001'; s.dispatchEvent(new Event('input'))")
        assert window.run(names) == ["case_00001"]
        window.run("document.querySelectorAll('table.sortable th[data-sort]')[4].click()")
        first = "return document.querySelector('table.sortable tbody tr').dataset.case"
        assert window.run(first) == "case_00000"
        window.run("document.querySelectorAll('table.sortable th[data-sort]')[4].click()")
        assert window.run(first) == "case_00500"
        shown = "return getComputedStyle(document.querySelector('.plane .t')).display"
        assert window.run(shown) != "none"
        window.run("document.querySelector('input[data-hide=no-truth]').click()")
        assert window.run(shown) == "none"
        loaded = "return [...document.images].every(i => !i.complete || i.naturalWidth > 0)"
        assert window.run(loaded)
        assert window.console() == []


def test_the_page_may_lie_elsewhere(run_folder, tmp_path):
    predictions, truth = run_folder
    before = sorted(path.name for path in predictions.iterdir())
    report = build_report(predictions, truth, out=tmp_path / "page", panels=1)
    assert report.page == tmp_path / "page" / "report.html"
    assert sorted(path.name for path in predictions.iterdir()) == before
    assert (tmp_path / "page" / "evaluation.json").is_file()

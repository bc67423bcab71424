"""Options from a file: some, all, or those of another run; what is wrong is named."""

import json
from dataclasses import asdict

import pytest

from kits_cascade.cli.root import respell
from kits_cascade.cli.runs import _chosen_options
from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import Speed
from kits_cascade.inference.options_file import read_options
from kits_cascade.inference.pipeline import CascadeOptions
from kits_cascade.inference.postprocess import PostprocessOptions


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "options.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_what_is_not_named_is_as_usual(file):
    assert read_options(file({})) == (CascadeOptions(), Speed())
    options, speed = read_options(
        file({"margin_mm": 25, "postprocess": {"min_voxels": [20000, 200, 50]}, "tta": False})
    )
    assert options == CascadeOptions(25, postprocess=PostprocessOptions(min_voxels=(20000, 200, 50)))
    assert speed == Speed(tta=False)
    assert read_options(file({"postprocess": None}))[0].postprocess is None


def test_what_run_json_holds_can_be_given_back(file):
    options = CascadeOptions(7.5, "full", PostprocessOptions(small_kidneys=False, cyst_mm3=1), True, True)
    speed = Speed(tta=False, skip_beyond_mm=None)
    written = json.loads(json.dumps(asdict(options) | asdict(speed)))
    assert read_options(file(written)) == (options, speed)
    assert read_options(file({"schema": 1, "options": written, "cases": {}})) == (options, speed)


def test_the_command_line_counts_for_more(file):
    path = file({"margin_mm": 25, "on_empty": "full", "postprocess": {"tumor_mm3": 5}})
    options, _ = _chosen_options(path, 10, None, None, True, False)
    assert (options.margin_mm, options.on_empty, options.save_probabilities) == (10, "full", True)
    assert options.postprocess == PostprocessOptions(tumor_mm3=5)
    assert _chosen_options(path, None, None, False, False, False)[0].postprocess is None
    assert _chosen_options(file({"postprocess": None}), None, None, True, False, False)[0] == CascadeOptions()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"margin": 5}, "unknown option margin; known are .*margin_mm"),
        ({"margin_mm": -1}, "margin_mm is -1; it takes a number of at least 0"),
        ({"margin_mm": "much"}, "margin_mm is 'much'"),
        ({"on_empty": "never"}, "on_empty is 'never'; it takes 'empty' or 'full'"),
        ({"tta": 1}, "tta is 1; it takes true or false"),
        ({"postprocess": {"tumour_mm3": 1}}, "postprocess: unknown option tumour_mm3; known are .*tumor_mm3"),
        ({"postprocess": {"min_voxels": [1, 2]}}, "min_voxels is .*a list of 3 numbers or null"),
        ([], "not an object"),
    ],
)
def test_wrong_options_are_named(file, content, words):
    with pytest.raises(UsageError, match=words):
        read_options(file(content))


def test_files_that_are_none(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_options(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="not a file of options"):
        read_options(tmp_path / "bad.json")


def test_old_spellings_work_with_a_word(capsys):
    assert respell(["predict", "-i", "a", "--output", "b", "-j", "2"]) == [
        "predict", "-i", "a", "--out", "b", "--threads", "2",
    ]  # fmt: skip
    assert "called --out now" in capsys.readouterr().err
    assert respell(["evaluate", "-j", "2"]) == ["evaluate", "-j", "2"]
    with pytest.raises(UsageError, match=r"--options FILE.*small_lesions"):
        respell(["predict", "--keep-small-lesions"])

"""The names that users import: listed, loaded when they are asked for, and no others."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import kits_cascade

NAMES = [
    "Cascade", "CascadeOptions", "PostprocessOptions", "Speed", "__version__", "case_panel", "evaluate_folder",
    "postprocess", "predict_folder", "read_labels", "read_volume", "score_arrays",
]  # fmt: skip


def test_the_list_is_the_list():
    assert sorted(kits_cascade.__all__) == sorted(NAMES) == sorted(dir(kits_cascade))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name):
    found = getattr(kits_cascade, name)
    assert isinstance(found, str) or (found.__name__ == name and found.__doc__)


def test_files_may_be_named_by_strings(tmp_path):
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)), path)
    assert kits_cascade.read_volume(str(path)).array.shape == (5, 4, 3)
    assert kits_cascade.read_labels(str(path)).array.sum() == 60


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'cascade_of_names'"):
        kits_cascade.cascade_of_names  # noqa: B018


def test_reading_and_scoring_bring_no_torch():
    code = "import sys; from kits_cascade import read_volume, score_arrays; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

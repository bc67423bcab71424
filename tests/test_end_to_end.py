"""From nothing to scores through nnU-Net's own commands, with a few training steps: all runs and resumes."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.slow

QUICK = ["--train", "--quick", "--cases", "5", "--held-out", "2", "--device", "cpu"]
DEMO = [sys.executable, "-m", "kits_cascade", "demo", *QUICK]


def run(command, cwd):
    env = {k: v for k, v in os.environ.items() if k not in {"nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"}}
    env |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=900, check=False, env=env
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("an émo with spaces")
    result = run([*DEMO, "-o", "demo"], root)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return root / "demo", result


def test_all_that_was_promised_is_there(finished):
    root, result = finished
    for name in ("picture.png", "scores/evaluation.csv", "predictions/run.json", "predictions/report.html"):
        assert (root / name).stat().st_size > 100, name
    assert "surface" in result.stdout
    results = root / "nnunet/nnUNet_results"
    assert len(list(results.glob("Dataset22[123]_*/Demo*__nnUNetPlans__3d_*res/fold_0/checkpoint_final.pth"))) == 3
    assert len(list(results.glob("Dataset22[123]_*/*/fold_0/training_progress.json"))) == 3


def test_results_lie_on_their_inputs(finished):
    root, _ = finished
    for case in ("case_00000", "case_00001"):
        image = nib.load(root / f"held-out/{case}/imaging.nii.gz")
        labels = nib.load(root / f"predictions/{case}.nii.gz")
        assert labels.shape == image.shape
        assert np.array_equal(labels.affine, image.affine)
        assert set(np.unique(np.asanyarray(labels.dataobj))) <= {0, 1, 2, 3}
    record = json.loads((root / "predictions/run.json").read_text())
    assert len(record["cases"]) == 2


def test_run_again_it_does_nothing_twice(finished):
    root, _ = finished
    watched = [p for p in root.rglob("*") if p.is_file() and p.suffix in {".pth", ".gz", ".b2nd"}]
    before = {p: p.stat().st_mtime_ns for p in watched}
    result = run([*DEMO, "-o", "demo"], root.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in watched} == before


def test_plain_nnunet_goes_on_with_our_trainer(finished):
    """`nnUNetv2_train ... -tr` and `nnUNetv2_predict` know the trainer and the folders that our commands made."""
    root, _ = finished
    code = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as p; p()"
    (model,) = (root / "nnunet/nnUNet_results").glob("Dataset222_*/*")
    source = root / "nnunet/nnUNet_raw/Dataset222_KidneyFine/imagesTr"
    one = root / "one"
    one.mkdir()
    (one / "x_0000.nii.gz").symlink_to(next(iter(source.glob("*_0000.nii.gz"))).resolve())
    command = [sys.executable, "-c", code, "-i", one, "-o", root / "plain", "-m", model, "-f", "0", "-device", "cpu"]
    result = run([str(c) for c in command] + ["--disable_tta", "-npp", "1", "-nps", "1"], root)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (root / "plain/x.nii.gz").is_file()

"""The commands: exit codes, what they print, and where they write."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.evaluation.small_scores import label_map, write


def kits_cascade(*arguments):
    """The command in a process of its own, as a user runs it."""
    return subprocess.run(
        [sys.executable, "-c", "from kits_cascade.cli.app import main; main()", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", env={**os.environ, "COLUMNS": "80"}, timeout=120, check=False,
    )  # fmt: skip


def test_evaluate(folders, tmp_path):
    predictions, truth = folders
    done = kits_cascade("evaluate", "-p", predictions, "-g", truth, "-j", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("case_00000") < done.stdout.index("case_00500")  # worst on top
    assert "…" not in done.stdout  # nothing is cut where there is no terminal
    assert {"evaluation.csv", "evaluation.json", "cases.csv"} <= {path.name for path in predictions.iterdir()}


def test_evaluate_names_what_it_cannot_score(folders, tmp_path):
    predictions, truth = folders
    (predictions / "case_00001.nii.gz").write_bytes(b"")
    (predictions / "case_00000.nii.gz").unlink()
    write(predictions / "andere.nii.gz", label_map())
    out = tmp_path / "out put"
    done = kits_cascade("evaluate", "-p", predictions, "-g", truth, "-o", out, "-j", "1")
    assert done.returncode == 1
    assert "not scored: case_00001" in done.stderr
    assert "missing: 1 without a prediction: case_00000" in done.stderr
    assert "extra: 1 without a truth: andere" in done.stderr
    assert "Traceback" not in done.stderr
    assert "case_00001" not in (out / "evaluation.csv").read_text()


def test_missing_predictions_fail_only_when_asked(folders):
    predictions, truth = folders
    (predictions / "case_00000.nii.gz").unlink()
    arguments = ("evaluate", "-p", predictions, "-g", truth, "-j", "1")
    assert kits_cascade(*arguments).returncode == 0
    assert kits_cascade(*arguments, "--complete").returncode == 1


def test_rank(folders, tmp_path):
    predictions, truth = folders
    better = tmp_path / "better"
    for path in predictions.glob("*.nii.gz"):
        write(better / path.name, label_map())
    for folder in (predictions, better):
        assert kits_cascade("evaluate", "-p", folder, "-g", truth, "-j", "1").returncode == 0
    done = kits_cascade("rank", predictions, better, "-o", tmp_path / "ranking")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("better") < done.stdout.index("pred ")
    assert (tmp_path / "ranking" / "ranking.csv").read_text().splitlines()[1].startswith("better,1,")


def test_rank_without_scores(tmp_path):
    done = kits_cascade("rank", tmp_path)
    assert done.returncode == 2
    assert "kits-cascade evaluate" in done.stderr


def test_report(folders):
    predictions, truth = folders
    done = kits_cascade("report", predictions, "-g", truth, "-j", "1", "--panels", "1")
    assert done.returncode == 0, done.stderr
    assert "3 PNG files" in done.stdout
    assert (predictions / "report.html").is_file()


@pytest.mark.parametrize("good", [True, False])
def test_submission(folders, tmp_path, good):
    predictions, _ = folders
    images = tmp_path / "images"
    for path in predictions.iterdir():
        write(images / path.name, np.zeros((12, 40, 40), np.int16))
    if not good:
        (predictions / "case_00001.nii.gz").unlink()
        (predictions / "case_00500.nii.gz").write_bytes(b"x")
    target = tmp_path / "für die Challenge.zip"
    done = kits_cascade("submission", "-i", images, "-p", predictions, "-o", target, "-j", "1")
    assert done.returncode == (0 if good else 1)
    assert target.exists() == good
    lines = done.stdout.splitlines()
    assert len(lines) == (1 if good else 2)
    assert "ready for submission" in lines[0] if good else lines[0].startswith("case_00001.nii.gz: missing")


def test_help_loads_no_torch():
    modules = "kits_cascade.cli.evaluation, kits_cascade.evaluation.score, kits_cascade.report.page"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

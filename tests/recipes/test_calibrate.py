"""What the certainty of lesions is worth: learned from a run, kept with the networks, told of each lesion."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from kits_cascade import Cascade
from kits_cascade.cli.app import app
from kits_cascade.errors import DatasetError, ModelError
from kits_cascade.inference.certainty import Certainty
from kits_cascade.models.bundle import export_models, import_models, store_calibration
from kits_cascade.models.calibration import Calibration, read_calibration
from kits_cascade.models.choose import resolve_models
from kits_cascade.models.network import MANIFEST
from kits_cascade.recipes.calibrate import fit, rate_held_out, rate_lesions, tabulate
from kits_cascade.stages import STAGES
from kits_cascade.volumes.geometry import Box
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import volume_from_array
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys
from tests.models.test_models import train

CURVE = Calibration(1.5, -0.5, 40, 8)
BROKEN = (
    "[]",
    "{",
    '{"slope": "x"}',
    '{"slope": -1, "offset": 0, "lesions": 1, "cases": 1}',
    '{"slope": NaN, "offset": 0, "lesions": 1, "cases": 1}',
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_models(results):
    for stage in STAGES:
        train(results, stage)
    return results


def write_run(run, truth, cases=4):
    """In each case six tumours in a row, of which the networks are the surer the more often they are right."""
    rng, records = np.random.default_rng(0), {}
    for number in range(cases):
        labels = np.zeros((6, 8, 60), np.uint8)
        true = labels.copy()
        rows = []
        for rank in range(6):  # by falling volume
            place = np.s_[1 : 6 - rank // 2, 2:5, 10 * rank : 10 * rank + 7 - rank]
            labels[place] = 2
            right = rng.random() < 0.3 + 0.1 * rank
            if right:
                true[place] = 2
            rows.append({"kind": "tumor", "number": rank + 1, "certainty": 0.5 + 0.08 * rank})
        name = f"case_{number}"
        write_volume(run / f"{name}.nii.gz", volume_from_array(labels))
        write_volume(truth / f"{name}.nii.gz", volume_from_array(true))
        records[name] = {"status": "done", "lesions": rows}
    (run / "run.json").write_text(json.dumps({"cases": records}))


def test_a_run_with_a_truth_gives_a_curve(tmp_path):
    run, truth = tmp_path / "run", tmp_path / "truth"
    write_run(run, truth)
    cases = rate_lesions(run, truth)
    assert [len(case) for case in cases] == [6] * 4
    assert [round(said, 2) for said, _ in cases[0]] == [0.5, 0.58, 0.66, 0.74, 0.82, 0.9]
    found = fit(cases)
    assert (found.lesions, found.cases) == (24, 4)
    assert found.slope >= 0
    table, error = tabulate(rate_held_out(cases))
    assert sum(row.lesions for row in table) == 24
    assert 0 <= error <= 1
    with pytest.raises(DatasetError, match="at least 20"):
        fit(cases[:2])
    with pytest.raises(DatasetError, match=r"no run\.json"):
        rate_lesions(truth, truth)


def test_the_table_says_how_far_words_and_facts_are_apart():
    table, error = tabulate([(0.95, True), (0.95, True), (1.0, False), (0.25, False)])
    assert [(row.low, row.lesions) for row in table] == [(0.2, 1), (0.9, 3)]
    assert table[1].right == pytest.approx(2 / 3)
    assert error == pytest.approx(0.25 * 0.25 + 0.75 * abs(2.9 / 3 - 2 / 3))


def test_the_curve_stays_with_the_networks(tmp_path):
    results = write_models(tmp_path / "results")
    bundle = export_models(resolve_models(results), tmp_path / "plain.zip")
    assert resolve_models(bundle).calibration is None
    before = {info.filename: info.CRC for info in zipfile.ZipFile(bundle).infolist()}
    assert store_calibration(resolve_models(bundle), bundle, CURVE) == bundle
    after = {info.filename: info.CRC for info in zipfile.ZipFile(bundle).infolist()}
    assert {name for name in after if after[name] != before[name]} == {MANIFEST}
    assert resolve_models(bundle).calibration == CURVE

    folders = import_models(bundle, tmp_path / "unpacked")
    assert read_calibration(folders[-1]) == CURVE
    assert resolve_models(tmp_path / "unpacked").calibration == CURVE
    store_calibration(resolve_models(tmp_path / "unpacked"), tmp_path / "unpacked", Calibration(2.0, 0.0, 9, 3))
    assert resolve_models(tmp_path / "unpacked").calibration.slope == 2.0

    written = store_calibration(resolve_models(results), results, CURVE)
    assert "MassesTumor" in str(written)
    models = resolve_models(results)
    assert models.calibration == CURVE
    assert resolve_models(export_models(models, tmp_path / "with.zip")).calibration == CURVE


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_curve_is_refused(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ModelError, match=r"calibration"):
        read_calibration(tmp_path)


class Sure(Oracle):
    """An oracle that says how sure it is of its masses."""

    def region(self, image, spacing, box):
        region = super().region(image, spacing, box)
        region.certainty = [Certainty("masses", np.full((3, 3, 3), 0.7, np.float32), Box.full(image.shape))]
        return region


def test_a_lesion_s_confidence_is_what_its_certainty_is_worth(tmp_path):
    cascade = Cascade(predictors=Sure())
    plain = cascade(HU[two_kidneys()], spacing=(4.0, 2.0, 2.0))
    assert "lesions: unsure" not in {finding.check for finding in plain.findings}
    cascade.models = replace(resolve_models(write_models(tmp_path)), calibration=Calibration(1.0, -3.0, 40, 8))
    told = [f for f in cascade(HU[two_kidneys()], spacing=(4.0, 2.0, 2.0)).findings if f.check == "lesions: unsure"]
    assert told and told[0].severity == "note" and "10% are right" in told[0].text


def test_the_command_shows_the_table_and_keeps_the_curve(tmp_path, capsys):
    run, truth = tmp_path / "run", tmp_path / "truth"
    write_run(run, truth)
    bundle = export_models(resolve_models(write_models(tmp_path / "results")), tmp_path / "networks.zip")
    command = ["models", "calibrate", str(run), "-g", str(truth), "-m", str(bundle)]
    app([*command, "--dry-run"], standalone_mode=False)
    assert "24 lesions of 4 cases" in capsys.readouterr().out
    assert resolve_models(bundle).calibration is None
    app(command, standalone_mode=False)
    assert "expected calibration error" in capsys.readouterr().out
    assert resolve_models(bundle).calibration.lesions == 24

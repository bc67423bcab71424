import json

import pytest
from typer.testing import CliRunner

from kits_cascade.cli import doctor
from kits_cascade.cli.app import app
from kits_cascade.inference.nnunet import engines
from kits_cascade.nnunet_folders import VARIABLES


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for name in VARIABLES:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def one(check, topic):
    return next(f for f in check() if f.topic == topic)


def test_folders_in_order(folders):
    assert {f.status for f in doctor._folders()} <= {"ok", "warn"}


def test_a_variable_that_is_not_set(folders, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    finding = one(doctor._folders, "nnUNet_raw")
    assert (finding.status, finding.detail) == ("fail", "not set")
    assert "export nnUNet_raw=" in finding.remedy


def test_a_folder_that_is_not_there(folders, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(folders / "nowhere é"))
    finding = one(doctor._folders, "nnUNet_results")
    assert finding.status == "fail"
    assert "mkdir" in finding.remedy


def test_a_folder_that_cannot_be_written(folders, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "not writable (Read-only file system)" in one(doctor._folders, "nnUNet_raw").detail


def test_a_full_disk(folders, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: _Usage(1 << 30))
    assert one(doctor._folders, "nnUNet_raw").status == "fail"


class _Usage:
    def __init__(self, free):
        self.free = free


@pytest.mark.parametrize("installed", [True, False])
def test_the_engine_and_what_the_extra_would_bring(monkeypatch, installed):
    monkeypatch.setattr(engines.util, "find_spec", lambda name: name != "openvino" or installed or None)
    monkeypatch.setattr(engines, "surely_no_gpu", lambda: True)
    finding = one(doctor._engine, "engine")
    assert finding.status == "ok"
    assert ("openvino" if installed else "torch") in finding.detail
    assert ("kits-cascade[fast]" in finding.remedy) is not installed


def test_torchvision_that_does_not_match(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = one(doctor._torchvision, "torchvision")
    assert finding.status == "fail"
    assert "does not match torch" in finding.remedy


def test_nnunet_outside_the_tested_range(monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3.0" if name == "nnunetv2" else real(name))
    finding = one(doctor._nnunet, "nnunetv2")
    assert finding.status == "fail"
    assert "pip install 'nnunetv2" in finding.remedy


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def broken_check():
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor, "_CHECKS", (broken_check,))
    (finding,) = doctor.examine()
    assert finding.status == "fail"
    assert "surprise" in finding.detail
    assert not doctor.healthy([finding])


def test_models_per_stage(folders):
    model = folders / "nnUNet_results/Dataset222_KidneyFine/SurfaceLossTrainer__nnUNetPlans__3d_fullres"
    for fold in (0, 3):
        (model / f"fold_{fold}").mkdir(parents=True)
        (model / f"fold_{fold}/checkpoint_final.pth").touch()
    found = {f.topic: f for f in doctor._models()}
    assert found["model 222 kidney"].status == "ok"
    assert "folds 0, 3" in found["model 222 kidney"].detail
    assert found["model 221 coarse"].status == "warn"


@pytest.mark.parametrize(("gib", "status"), [(1, "fail"), (3, "warn"), (8, "warn"), (64, "ok")])
def test_memory(monkeypatch, gib, status):
    monkeypatch.setattr(doctor.os, "sysconf", lambda key: 4096 if key == "SC_PAGE_SIZE" else gib << 18)
    assert one(doctor._memory, "memory").status == status


@pytest.mark.parametrize("status", ["ok", "fail"])
def test_exit_code_and_json(monkeypatch, status):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("thing", status, "é detail", "do this")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == (status == "fail")
    content = json.loads(result.stdout)
    assert content["ok"] == (status == "ok")
    assert content["findings"][0]["detail"] == "é detail"
    screen = CliRunner().invoke(app, ["doctor"]).stdout
    assert "thing" in screen
    assert "do this" in screen

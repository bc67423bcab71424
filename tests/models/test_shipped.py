"""The networks that come with the package: whole, taken where nothing else is given, and able to see."""

import json
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib import util

import numpy as np
import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.inference.cascade import Cascade, Speed
from kits_cascade.models.choose import NOTICE, SHIPPED, resolve_models
from kits_cascade.synthetic.painter import PaintOptions, Sources, paint_case
from kits_cascade.synthetic.phantom_sources import write_sources
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import volume_from_array
from tests.inference.handmade import dice

MOST_MB = 40
# Dice of kidneys with masses in the painted case below, as measured (0.972), less 0.05.
FLOOR = 0.92
# In another process, with the networks that the first one has left converted: PyTorch is not even loaded.
AGAIN = """
import sys, numpy as np
from kits_cascade.inference.cascade import Cascade, Speed
np.save(sys.argv[2], Cascade(speed=Speed(tta=False), device="cpu")(sys.argv[1]).labels)
assert "torch" not in sys.modules
"""


def test_each_file_has_its_checksum():
    assert SHIPPED.stat().st_size < MOST_MB * 1e6
    with zipfile.ZipFile(SHIPPED) as archive:
        files = json.loads(archive.read("kits-cascade-models.json"))["files"]
        assert len([name for name in files if name.endswith(".pth")]) == 3
        for name, entry in files.items():
            assert sha256(archive.read(name)).hexdigest() == entry["sha256"], name


def test_the_licence_lies_beside_it():
    text = (SHIPPED.parent / "LICENSE.md").read_text(encoding="utf-8")
    assert "CC BY-NC-SA 4.0" in text
    assert "KiTS23" in text
    assert "TotalSegmentator" in text


def test_they_are_taken_where_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert resolve_models().notice == NOTICE
    monkeypatch.delenv("nnUNet_results")
    assert [model.key for model in resolve_models().all] == ["coarse", "kidney", "masses"]
    listed = CliRunner().invoke(app, ["models", "list"])
    assert "painted CT" in listed.output
    assert "not for diagnosis" in listed.output


@pytest.mark.slow
def test_kidneys_of_a_painted_case_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("nnUNet_results", raising=False)  # no other networks than those of the package
    bodies, masks = write_sources(tmp_path, 1, seed=4)
    case = paint_case(Sources.find(bodies, masks), 1, 0, PaintOptions((3.0, 3.0, 3.0), view="abdomen"))
    volume = volume_from_array(case.image, spacing=case.spacing)
    found = Cascade(speed=Speed(tta=False), device="cpu")(volume).labels
    assert dice(case.labels > 0, found > 0) > FLOOR
    if util.find_spec("openvino") is not None and sys.platform == "linux":  # which tells what a processor can do
        write_volume(tmp_path / "ct.nii.gz", volume)
        command = [sys.executable, "-c", AGAIN, str(tmp_path / "ct.nii.gz"), str(tmp_path / "labels.npy")]
        subprocess.run(command, check=True)
        assert dice(found > 0, np.load(tmp_path / "labels.npy") > 0) > 0.999

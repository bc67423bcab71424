"""The commands download, convert and stats: what they print, and their exit codes."""

import runpy
import sys
from functools import partial

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.cli.bars import describe, transfer_bar
from kits_cascade.data import download as room
from kits_cascade.data.transfer import Expected, Meter
from tests.conftest import REPOSITORY
from tests.data.http_server import FaultyServer
from tests.data.test_convert import make_case, truncated_image
from tests.data.test_download import git_sha1, payload


@pytest.fixture
def source(tmp_path):
    for number in range(3):
        make_case(tmp_path / "KiTS é", f"case_{number:05d}", seed=number)
    return tmp_path / "KiTS é"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_convert_says_what_it_did(source, tmp_path):
    result = call("convert", source, "--nnunet-dir", tmp_path / "nn", "-j", 1)
    assert result.exit_code == 0
    assert "Dataset220_KiTS: 3 cases" in result.output and "3 by hard link" in result.output


def test_convert_lists_bad_cases_and_exits_with_1(source, tmp_path):
    truncated_image(source / "case_00001")
    result = call("convert", source, "--nnunet-dir", tmp_path / "nn", "-j", 1, "--max-slices", 100)
    assert result.exit_code == 1
    assert "left out (1)" in result.output and "case_00001" in result.output and "truncated" in result.output
    again = call("convert", source, "--nnunet-dir", tmp_path / "nn", "-j", 1)
    assert "max_slices" in str(again.exception)


def test_convert_takes_a_list_and_a_limit(source, tmp_path):
    result = call("convert", source, "--nnunet-dir", tmp_path / "nn", "-j", 1, "--cases", "1-2", "--limit", 1)
    assert result.exit_code == 0 and ": 1 cases" in result.output
    assert (tmp_path / "nn/nnUNet_raw/Dataset220_KiTS/imagesTr/case_00001_0000.nii.gz").is_file()


def test_conversion_script(source, tmp_path, monkeypatch):
    script = REPOSITORY / "dataset_conversion" / "Dataset220_KiTS.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(source), "--nnunet-dir", str(tmp_path / "nn"), "-j", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert (tmp_path / "nn/nnUNet_raw/Dataset220_KiTS/dataset.json").is_file()


def test_stats(source, tmp_path):
    truncated_image(source / "case_00001")
    result = call("stats", source, "-o", tmp_path / "out", "-j", 1)
    assert result.exit_code == 1
    assert "2 cases" in result.output and "case_00001" in result.output
    assert (tmp_path / "out/cases.csv").is_file() and (tmp_path / "out/hu_histogram.png").is_file()


def test_download_names_what_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    server, content = FaultyServer(), payload(0, 5000)
    names = ("case_00000", "case_00001")
    expected = Expected(len(content), git_sha1=git_sha1(content))
    monkeypatch.setattr(room, "mask_table", lambda: dict.fromkeys(names, expected))
    monkeypatch.setattr(room, "Source", partial(room.Source, endpoint=server.url))
    for name in names:
        server.add_image(room.IMAGES, f"images/{name}.nii.gz", content)
        server.files[f"/{name}/segmentation.nii.gz"] = content
    server.always["GET /case_00001/segmentation.nii.gz"] = "corrupt"
    arguments = ("download", "-o", tmp_path, "--cases", "0-1", "--masks-url", server.url, "--retries", 0)
    result = call(*arguments)
    assert result.exit_code == 1
    assert "not downloaded (1)" in result.output and "case_00001/segmentation.nii.gz: " in result.output
    server.always.clear()
    result = call(*arguments)
    assert result.exit_code == 0 and "1 files fetched" in result.output and "3 were right already" in result.output
    server.close()


def test_progress_in_words():
    meter = Meter(4)
    meter.add(expected=2_000_000, sized=1)
    meter.add(done=1_000_000)
    assert describe(meter, 10.0) == "0/4 files, 1.0 MB of about 8.0 MB, 100.0 kB/s, 1:10 left"


def test_progress_lines_come_now_and_then(capsys):
    with transfer_bar("download") as changed:
        meter = Meter(2, changed)
        for _ in range(1000):
            meter.add(done=1000)
        meter.add(files=2)
    assert len(capsys.readouterr().err.splitlines()) == 1

"""The demonstrations as lists of commands."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import UsageError
from kits_cascade.recipes import demo


def commands(plan):
    return [command[0] for _, command in plan.steps()]


def test_what_the_shipped_networks_do_needs_no_training(tmp_path):
    assert commands(demo.Demo(tmp_path)) == ["phantom", "paint", "predict", "evaluate", "report"]
    assert commands(demo.Demo(tmp_path, ct=tmp_path / "ct.nii.gz")) == ["predict", "report"]
    whole = commands(demo.TrainingDemo(tmp_path))
    assert whole[-4:] == ["train", "predict", "evaluate", "report"]
    assert whole[0] == "phantom"


def test_without_networks_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHIPPED", Path(tmp_path / "networks.zip"))
    with pytest.raises(UsageError, match="--train"):
        demo.run(demo.Demo(tmp_path / "out"), lambda _: None)
    assert not (tmp_path / "out").exists()


def test_training_makes_its_own_cases(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--train", "--ct", "ct.nii.gz", "-o", str(tmp_path)])
    assert result.exit_code != 0

"""The recipe of the shipped networks: its commands, what is left of them, and what a failure says."""

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.recipes import weights
from kits_cascade.stages import STAGES
from tests.synthetic.sources import write_anatomy, write_mask


@pytest.fixture
def plan(tmp_path):
    write_anatomy(tmp_path / "anatomy", "s1")
    write_anatomy(tmp_path / "anatomy", weights.HELD_OUT)
    write_mask(tmp_path / "masks")
    return weights.Weights(tmp_path / "out", tmp_path / "masks", tmp_path / "anatomy", count=7)


def test_steps_are_commands_in_order(plan):
    steps = weights.weight_steps(plan)
    assert [step.argv[1] for step in steps] == [
        "paint",
        "convert",
        "derive-stages",
        "plan",
        "221",
        "222",
        "223",
        "models",
    ]
    paint = steps[0].argv
    assert paint[paint.index("--only") + 1] == "s1", "the anatomy that is held out is not painted"
    assert steps[6].argv[5] == "PaintedMassesTrainer"


def test_a_stopped_training_goes_on_and_a_finished_one_is_left(plan):
    coarse, kidney, _ = (plan.fold(stage) for stage in STAGES)
    (coarse / "validation").mkdir(parents=True)
    (coarse / "checkpoint_final.pth").touch()
    (coarse / "validation" / "summary.json").touch()
    kidney.mkdir(parents=True)
    (kidney / "checkpoint_latest.pth").touch()
    trainings = [step.argv for step in weights.weight_steps(plan) if step.argv[0] == "nnUNetv2_train"]
    assert [argv[1] for argv in trainings] == ["222", "223"]
    assert trainings[0][-1] == "--c"
    assert trainings[1][-2:] == ("-pretrained_weights", str(plan.root / "start_masses.pth"))


def test_a_failed_step_says_which_and_that_nothing_is_lost(plan):
    ran = []

    def run(argv, environment):
        ran.append(argv[1])
        assert environment["nnUNet_results"].startswith(str(plan.root))
        return 1 if argv[1] in ("convert", "plan") else 0

    with pytest.raises(weights.WeightsError, match=r"kits-cascade ended with exit code 1.*run it again"):
        weights.make_weights(plan, lambda _: None, run)
    assert ran == ["paint", "convert", "derive-stages", "plan"], "convert may leave cases without kidneys out"


def test_dry_run_prints_the_commands(plan):
    sources = ["--masks", str(plan.masks), "--anatomy", str(plan.anatomy), "-o", str(plan.root)]
    result = CliRunner().invoke(app, ["weights", *sources, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "nnUNetv2_train 221 3d_lowres 0 -tr PaintedTrainer" in result.output
    assert not plan.root.exists()

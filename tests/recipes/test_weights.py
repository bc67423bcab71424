"""The recipe of the shipped networks: its commands, what is left of them, and what a failure says."""

from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import UsageError
from kits_cascade.models.choose import SHIPPED
from kits_cascade.recipes import weights
from kits_cascade.recipes.steps import StepFailedError
from kits_cascade.report.training_curves import draw_curves, read_log
from kits_cascade.stages import STAGES
from tests.synthetic.sources import write_anatomy, write_mask


@pytest.fixture
def plan(tmp_path):
    write_anatomy(tmp_path / "anatomy", "s1")
    write_anatomy(tmp_path / "anatomy", weights.HELD_OUT)
    write_mask(tmp_path / "masks")
    return weights.Weights(tmp_path / "out", tmp_path / "masks", tmp_path / "anatomy", count=7)


def test_steps_are_commands_in_order(plan):
    steps = weights.data_steps(plan)
    assert [step.argv[1] for step in steps] == ["paint", "convert", "derive-stages", "plan"]
    paint = steps[0].argv
    assert paint[paint.index("--only") + 1] == "s1", "the anatomy that is held out is not painted"


def finish(plan, stage):
    plan.fold(stage).mkdir(parents=True)
    (plan.fold(stage) / "checkpoint_final.pth").touch()


def test_what_is_done_is_left(plan):
    assert weights.stages_left(plan) == list(STAGES)
    finish(plan, STAGES[0])
    assert weights.stages_left(plan) == list(STAGES[1:])
    for stage in STAGES:
        folder = plan.folders["nnUNet_preprocessed"] / stage.dataset
        folder.mkdir(parents=True)
        (folder / "nnUNetPlans.json").write_text("{}")
    assert weights.data_steps(plan) == []
    ran, trained = [], []
    made = weights.make_weights(
        plan,
        lambda _: None,
        lambda argv, _environment: ran.append(argv[1:3]) or 0,
        lambda _plan, stage, _say: trained.append(stage.key),
    )
    assert trained == ["kidney", "masses"]
    assert ran == [("models", "export")]
    assert made == plan.bundle


def test_curves_are_drawn_of_the_logs(tmp_path):
    log = tmp_path / "stream_log.txt"
    log.write_text(
        "    2 s  step      1  cases    5  loss 1.920  dice 0.010 0.020\nprior taken anew\n"
        "   17 s  step     90  cases   26  loss 0.700  dice 0.610 0.550\n"
    )
    assert read_log(log) == [(1, 1.92, (0.01, 0.02)), (90, 0.7, (0.61, 0.55))]
    with Image.open(draw_curves({"masses": log, "kidney": log}, tmp_path / "curves.png")) as picture:
        assert picture.width > 500


def test_a_failed_step_says_which_and_that_nothing_is_lost(plan):
    ran = []

    def run(argv, environment):
        ran.append(argv[1])
        assert environment["nnUNet_results"].startswith(str(plan.root))
        return 1 if argv[1] in ("convert", "plan") else 0

    with pytest.raises(StepFailedError, match=r"kits-cascade plan ended with exit code 1.*run it again"):
        weights.make_weights(plan, lambda _: None, run)
    assert ran == ["paint", "convert", "derive-stages", "plan"], "convert may leave cases without kidneys out"


def test_dry_run_prints_the_commands(plan):
    sources = ["--masks", str(plan.masks), "--anatomy", str(plan.anatomy), "-o", str(plan.root)]
    result = CliRunner().invoke(app, ["weights", *sources, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "kits-cascade plan --preset shipped" in result.output
    assert "training of coarse, kidney, masses" in result.output
    assert not plan.root.exists()


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no networks in this checkout")
def test_one_stage_is_trained_further_and_the_others_are_taken_over(plan):
    plan = replace(plan, start=SHIPPED, stages=("masses",), minutes=2.0)
    assert weights.data_steps(plan) == [], "the bundle has its plans"
    assert [stage.key for stage in weights.stages_left(plan)] == ["masses"]
    weights._take_over(plan)
    kept = [plan.fold(stage) / "checkpoint_final.pth" for stage in STAGES[:2]]
    assert all(path.stat().st_size > 5e6 for path in kept)
    assert all((path.parents[1] / name).is_file() for path in kept for name in ("plans.json", "dataset.json"))
    job = weights._job(plan, STAGES[2], "cpu")
    assert job.course.seconds == 120, "all of the time"
    assert job.start.parents[1].name == plan.fold(STAGES[2]).parent.name
    assert job.plans["foreground_intensity_properties_per_channel"]["0"]["std"] > 0
    assert job.kidney == kept[1]


@pytest.mark.parametrize(("stages", "words"), [(("fine",), "no stage fine; there are"), (("masses",), "--start")])
def test_wrong_stages_are_named(plan, stages, words):
    with pytest.raises(UsageError, match=words):
        replace(plan, stages=stages)

"""Systems side by side, with a player instead of the commands: resumed, failing, killed; the table and the page."""

import csv
import pickle
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.data.presets import load_preset
from kits_cascade.errors import UsageError
from kits_cascade.evaluation.score import evaluate_folder
from kits_cascade.files import read_json, write_json
from kits_cascade.recipes import compare_steps
from kits_cascade.recipes.budget import parse_budget
from kits_cascade.recipes.compare import compare
from kits_cascade.recipes.compare_steps import Comparison, Usage, run_measured, system_steps
from kits_cascade.report.comparison import background_iou
from kits_cascade.systems import find_system
from kits_cascade.volumes.nifti import read_labels, write_volume
from tests.data.small import make_source

NAMES = ("unet2d", "nnunet", "cascade")


class Player:
    """Plays training by files, prediction by spoiled labels, and scores for real."""

    def __init__(self, plan, fail_at=None, stop_at=None):
        self.plan, self.fail_at, self.stop_at = plan, fail_at, stop_at
        self.seen = []

    def __call__(self, argv, environment):
        assert environment["nnUNet_raw"] == str(self.plan.folders.raw)
        text = " ".join(argv)
        if self.stop_at and self.stop_at in text:
            raise KeyboardInterrupt
        self.seen.append(text)
        if self.fail_at and self.fail_at in text:
            return Usage(3)
        options = {name: argv[number + 1] for number, name in enumerate(argv[:-1]) if name.startswith("-")}
        getattr(self, argv[1])(options)
        return Usage(0, 60.0, 90.0, 512.0)

    def train(self, options):
        system = find_system(options["--system"])
        for stage in system.stages:
            for fold in options["--folds"].split(","):
                epochs = [{"ema_pseudo_dice": value} for value in (0.1, 0.5, 0.7)]
                model = self.plan.model(system, stage.key)
                write_json(model / f"fold_{fold}" / "training_progress.json", {"epochs": epochs})

    def predict(self, options):
        images, out = self.plan.out.parent / options["-i"], self.plan.out.parent / options["-o"]
        for label in (images.parent / "labels").glob("*.nii.gz"):
            volume = read_labels(label)
            array = volume.array.copy()
            if options["--system"] == "unet2d":
                array[array > 1] = 1  # finds no mass at all
            elif options["--system"] == "nnunet":
                array = np.roll(array, 1, axis=2)
            write_volume(out / label.name, volume, array)

    def evaluate(self, options):
        root = self.plan.out.parent
        evaluate_folder(root / options["-p"], root / options["-g"], root / options["-o"])


@pytest.fixture
def plan(tmp_path):
    folders = make_source(tmp_path / "nnunet", 4)
    systems = tuple(find_system(name) for name in NAMES)
    return Comparison(folders, tmp_path / "out", systems, (0, 1), parse_budget("30min"), 220, "cpu", pictures=False)


def table(plan):
    with (plan.out / "comparison.csv").open(newline="", encoding="utf-8") as stream:
        return {row["system"]: row for row in csv.DictReader(stream)}


@pytest.mark.slow
def test_one_table_and_one_page(plan):
    plan = replace(plan, pictures=True)
    player, said = Player(plan), []
    report = compare(plan, run=player, say=said.append)
    assert not report.failed and len(player.seen) == 3 * (1 + 2 * 2)
    assert said[0] == "[1/3] unet2d: plan and train"
    rows = table(plan)
    assert list(rows) == ["cascade", "nnunet", "unet2d"], "best first"
    assert [rows[name]["rank"] for name in rows] == ["1", "2", "3"]
    assert float(rows["cascade"]["tumor_dice"]) == 1 and float(rows["unet2d"]["tumor_dice"]) == 0
    assert float(rows["nnunet"]["kidney_dice_low"]) <= float(rows["nnunet"]["kidney_dice"]) < 1
    assert float(rows["unet2d"]["tumor_sensitivity"]) == 0
    assert float(rows["nnunet"]["training_h"]) == pytest.approx(1 / 60, rel=1e-3)
    assert float(rows["nnunet"]["predict_s"]) == pytest.approx(2 * 60 / int(rows["nnunet"]["cases"]), rel=1e-3)
    assert float(rows["nnunet"]["peak_mb"]) == 512
    page = report.page.read_text(encoding="utf-8")
    assert "What a mean over all voxels would hide" in page and "Tumor Dice 0.000" in page
    assert page.count("<polyline") == 2 * (1 + 1 + 3)
    for name in NAMES:
        for word in ("best", "median", "worst"):
            for end in ("", "-strip"):
                assert (plan.out / "pictures" / f"{name}-{word}{end}.png").stat().st_size > 1000
                assert f"pictures/{name}-{word}{end}.png" in page
    content = read_json(plan.out / "comparison.json")
    assert len(content["ranking"]["tests"]) == 9
    assert content["systems"][2]["hidden_by_the_background"]


def test_a_system_that_fails_stands_as_failed_and_the_others_go_on(plan):
    player = Player(plan, fail_at="predict -i")
    player.fail_at = "--system unet2d -f 1"
    report = compare(plan, run=player)
    assert list(report.failed) == ["unet2d"] and "exit code 3" in report.failed["unet2d"]
    rows = table(plan)
    assert list(rows) == ["cascade", "nnunet", "unet2d"]
    assert rows["unet2d"]["rank"] == "" and "predict fold 1" in rows["unet2d"]["failed"]
    assert "unet2d</b>: unet2d: predict fold 1" in report.page.read_text(encoding="utf-8")
    again = Player(plan)
    assert not compare(plan, run=again).failed
    assert [text.split()[1] for text in again.seen] == ["predict", "evaluate"], "only what was left"


def test_all_fail(plan):
    report = compare(plan, run=Player(plan, fail_at="train"))
    assert len(report.failed) == 3 and report.page.is_file()


def test_each_system_goes_to_a_worker(plan):
    player, said = Player(plan, fail_at="--system unet2d -f 1"), []
    with ThreadPoolExecutor(3) as pool:
        report = compare(plan, run=player, say=said.append, executor=pool)
    assert list(report.failed) == ["unet2d"] and "exit code 3" in report.failed["unet2d"]
    assert list(table(plan)) == ["cascade", "nnunet", "unet2d"]
    assert said[:3] == [f"[{n}/3] {name}: to a worker" for n, name in enumerate(NAMES, 1)] or len(said) > 3
    assert len(report.steps) == len(player.seen) == 2 * 5 + 4
    again = Player(plan)
    with ThreadPoolExecutor(3) as pool:
        assert not compare(plan, run=again, executor=pool).failed
    assert [text.split()[1] for text in again.seen] == ["predict", "evaluate"], "only what was left"


class Dead:
    """An executor whose workers die."""

    def submit(self, work, *arguments):
        pickle.loads(pickle.dumps((work, *arguments)))  # it could have been sent
        future = Future()
        future.set_exception(RuntimeError("a process was terminated"))
        return future


def test_a_system_whose_worker_dies_stands_as_failed(plan):
    report = compare(plan, executor=Dead(), say=print)
    assert sorted(report.failed) == sorted(NAMES)
    assert "its worker died (RuntimeError: a process was terminated)" in report.failed["nnunet"]


def test_what_a_worker_runs_ends_with_it():
    program = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    raise SystemExit(7)"
    process = subprocess.Popen([sys.executable, "-c", program])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    compare_steps.end_command(process, seconds=0.1)
    assert process.returncode == 7


def test_killed_it_goes_on_where_it_was(plan):
    first = Player(plan, stop_at="--system nnunet -f 0")
    with pytest.raises(KeyboardInterrupt):
        compare(plan, run=first)
    second = Player(plan)
    compare(plan, run=second)
    assert len(first.seen) + len(second.seen) == 3 * 5
    assert second.seen[0].startswith("kits-cascade predict") and "--system nnunet -f 0" in second.seen[0]
    third = Player(plan)
    compare(plan, run=third)
    assert third.seen == []


def test_the_budget_is_the_same_for_all(plan):
    compare(plan, run=Player(plan))
    single, cascade = (read_json(plan.out / name / "preset.json") for name in ("nnunet", "cascade"))
    assert single["training"]["minutes"] == 30 and cascade["training"]["minutes"] == 10
    assert single["plans_name"] == "nnunetPlansWithin30min"
    assert load_preset(str(plan.out / "cascade" / "preset.json")).plans_name == "nnUNetPlansWithin30min"
    command = " ".join(system_steps(plan, plan.systems[2])[0].argv)
    assert "--trainer coarse=KitsTrainer" in command, "nnU-Net's own trainer would not see the budget"
    assert "--trainer kidney" not in command


@pytest.mark.parametrize(
    ("text", "networks", "options"),
    [
        ("2h", 1, {"minutes": 120}),
        ("90min", 3, {"minutes": 30}),
        ("3cpuh", 3, {"processor_minutes": 60}),
        ("90cpumin", 1, {"processor_minutes": 90}),
        ("50epochs", 1, {"num_epochs": 50}),
        ("50 epochs", 3, {"num_epochs": 17}),
        ("2000steps", 1, {"num_epochs": 8, "num_iterations_per_epoch": 250}),
        ("100steps", 1, {"num_epochs": 1, "num_iterations_per_epoch": 100}),
    ],
)
def test_budgets(text, networks, options):
    assert options.items() <= parse_budget(text).options(networks).items()


@pytest.mark.parametrize("text", ["", "2", "h", "0min", "2 days"])
def test_wrong_budgets(text):
    with pytest.raises(UsageError, match="published, or an amount"):
        parse_budget(text)


def test_as_published_nothing_is_overlaid(plan):
    published = replace(plan, budget=parse_budget("published"))
    argv = system_steps(published, published.systems[0])[0].argv
    assert argv[argv.index("--preset") + 1] == "unet2d"
    assert published.model(published.systems[0], "source").name == "KitsTrainer__unet2dPlans__2d"


def test_the_command_shows_what_it_would_do(plan):
    arguments = ["compare", "--systems", "unet2d,cascade", "--folds", "0-1", "-o", "somewhere", "--dry-run"]
    where = ["--device", "cpu", "--nnunet-dir", str(plan.folders.raw.parent)]
    out = CliRunner().invoke(app, [*arguments, *where])
    assert out.exit_code == 0, out.output
    lines = out.output.splitlines()
    assert len(lines) == 2 * 5 and lines[0].startswith("kits-cascade train --system unet2d --preset unet2d --folds 0,1")
    assert not (plan.out.parent / "somewhere").exists()
    wrong = CliRunner().invoke(app, [*arguments[:3], "--folds", "0-9", "-o", "x", *where])
    assert isinstance(wrong.exception, UsageError)


def test_each_system_once(plan):
    with pytest.raises(UsageError, match="each system once"):
        compare(replace(plan, systems=plan.systems * 2), dry_run=True)


def test_the_backgrounds_iou_is_what_it_says(tmp_path, plan):
    compare(plan, run=Player(plan))
    truth = next(plan.truth(0).glob("*.nii.gz"))
    system = plan.systems[1]
    prediction = read_labels(plan.predictions(system, 0) / truth.name).array == 0
    true = read_labels(truth).array == 0
    name = truth.name.removesuffix(".nii.gz")
    scores = evaluate_folder(plan.predictions(system, 0), plan.truth(0)).cases
    case = next(case for case in scores if case.case == name)
    assert background_iou(case, truth) == pytest.approx((true & prediction).sum() / (true | prediction).sum(), rel=1e-6)


def test_what_a_command_takes_is_measured():
    used = run_measured(["kits-cascade", "--version"], {})
    assert used.code == 0 and used.seconds > 0
    assert run_measured(["kits-cascade", "no-such-command"], {}).code == 2

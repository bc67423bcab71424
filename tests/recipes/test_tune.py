"""The search for better options, with a player instead of trainings: pruned, failing, killed, and its best preset."""

import json

import pytest

from kits_cascade.data.presets import load_preset
from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.nnunet_folders import open_folders
from kits_cascade.recipes.tune import Tuning, tune
from kits_cascade.systems import find_system
from kits_cascade.training.trainer_options import TrainerOptions
from tests.conftest import REPOSITORY

optuna = pytest.importorskip("optuna", reason="the extra tune is not installed")
pytestmark = pytest.mark.slow
DATASET = "Dataset220_KiTS"


class Played:
    """A training whose every look brings an epoch."""

    def __init__(self, path, scores, code=0):
        self.path, self.scores, self.code = path, scores, code
        self.shown, self.ended = 0, False

    def poll(self):
        if self.ended or self.shown == len(self.scores):
            return self.code
        self.shown += 1
        epochs = [{"ema_pseudo_dice": value} for value in self.scores[: self.shown]]
        write_json(self.path / "training_progress.json", {"epochs": epochs})
        return None

    def terminate(self):
        self.ended = True

    def wait(self):
        return self.code


class Player:
    """Starts trainings that come out as the list says: scores by epoch, an exit code, or an exception."""

    def __init__(self, plan, outcomes):
        self.plan, self.outcomes = plan, list(outcomes)
        self.started = []

    def __call__(self, argv, environment):
        assert environment["nnUNet_results"] == str(self.plan.folders.results)
        name = argv[argv.index("-p") + 1]
        self.started.append(Played(self.plan.fold_of(int(name.rpartition("Trial")[2])), []))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, type):
            raise outcome
        if isinstance(outcome, int):
            self.started[-1].code = outcome
        else:
            self.started[-1].scores = outcome
        return self.started[-1]


@pytest.fixture
def plan(tmp_path):
    system = find_system("unetr2d")
    folders = open_folders(tmp_path / "nnunet")
    preset = json.loads((REPOSITORY / "plans/unetr2d.json").read_text(encoding="utf-8"))
    plans = {"plans_name": "unetr2dPlans", "kits_cascade": preset["training"]}
    plans["configurations"] = {"2d": preset["stages"]["source"]["2d"]}
    write_json(folders.preprocessed / DATASET / "unetr2dPlans.json", plans)
    return Tuning(folders, tmp_path / "tune", system, 3, 4, 0, 220, "cpu", pause_s=0)


def planned(argv, environment):
    assert argv[:2] == ("kits-cascade", "plan")
    return 0


def test_the_best_of_the_trials_becomes_a_preset(plan):
    player = Player(plan, [[0.1, 0.2], [0.3, 0.6], [0.2, 0.4]])
    report = tune(plan, run=planned, start=player)
    assert report.value == 0.6
    best = load_preset(str(report.best))
    trial = read_json(plan.folders.preprocessed / DATASET / "unetr2dPlansTrial1.json")
    for knob in plan.system.search:
        arguments = trial["configurations"]["2d"]["architecture"]["arch_kwargs"]
        tried = trial["kits_cascade"] if knob.place == "training" else arguments
        assert report.values[knob.name] == tried[knob.name]
    assert best.training["learning_rate"] == report.values["learning_rate"]
    assert best.training["num_epochs"] == 300, "trained as long as the system is, not as a trial"
    assert TrainerOptions.from_plans(trial).num_epochs == 4
    assert best.plans_name == "unetr2dPlansTuned" and report.command.endswith(f"--preset {report.best}")
    assert {path.name for path in report.plots} >= {"optimization_history.png", "slice.png"}
    assert all(path.stat().st_size > 1000 for path in report.plots)


def test_a_bad_trial_is_ended_early(plan):
    from dataclasses import replace

    good = [[0.5, 0.6, 0.7, 0.8]] * 3
    player = Player(plan, [*good, [0.1, 0.1, 0.1, 0.1]])
    report = tune(replace(plan, trials=4), run=planned, start=player)
    assert player.started[3].ended and player.started[3].shown < 4
    assert report.value == 0.8


def test_a_failing_trial_does_not_stop_the_others(plan):
    report = tune(plan, run=planned, start=Player(plan, [3, [0.4], [0.5]]))
    assert report.value == 0.5
    again = Player(plan, [])
    assert tune(plan, run=planned, start=again).value == 0.5
    assert again.started == []


def test_killed_it_goes_on_with_what_it_was_at(plan):
    with pytest.raises(KeyboardInterrupt):
        tune(plan, run=planned, start=Player(plan, [[0.2], KeyboardInterrupt]))
    player = Player(plan, [[0.3], [0.4]])
    assert tune(plan, run=planned, start=player).value == 0.4
    first, second = (
        read_json(plan.folders.preprocessed / DATASET / f"unetr2dPlansTrial{number}.json") for number in (1, 2)
    )
    assert first["kits_cascade"] == second["kits_cascade"], "the trial that was killed is tried again"


def test_what_cannot_be_tuned_says_so(plan):
    from dataclasses import replace

    with pytest.raises(UsageError, match="no search space"):
        tune(replace(plan, system=find_system("cascade")), run=planned)
    with pytest.raises(KitsCascadeError, match="no trial of unetr2d came to its end"):
        tune(plan, run=planned, start=Player(plan, [1, 1, 1]))
    with pytest.raises(KitsCascadeError, match="plan and preprocess: ended with exit code 2"):
        tune(plan, run=lambda argv, environment: 2)

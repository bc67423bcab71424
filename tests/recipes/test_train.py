"""The training recipe, with a runner that plays nnU-Net."""

import shlex
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kits_cascade.data.derive import derive_stages
from kits_cascade.errors import DatasetError, KitsCascadeError, UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.recipes.train import train
from kits_cascade.volumes.nifti import read_volume, write_volume
from tests.data.small import make_source

NAMES = {221: "Dataset221_KidneyCoarse", 222: "Dataset222_KidneyFine", 223: "Dataset223_MassesTumor"}


class Player:
    """Does what the commands would do, as far as the recipe can see it: derives for real, trains by copying labels."""

    def __init__(self, folders, stop_at=None):
        self.folders, self.stop_at = folders, stop_at
        self.seen = []
        self.lock = threading.Lock()

    def __call__(self, argv, environment):
        with self.lock:
            self.seen.append((shlex.join(argv), dict(environment)))
        if self.stop_at is not None and self.stop_at in self.seen[-1][0]:
            return 1
        options = {name: argv[number + 1] for number, name in enumerate(argv[:-1]) if name.startswith("-")}
        if argv[1] == "derive-stages":
            derive_stages(
                self.folders,
                stages=[options["--stages"]],
                margin_mm=float(options.get("--margin-mm", 20)),
                coarse_predictions=self.path(options, "--coarse-predictions"),
                kidney_predictions=self.path(options, "--kidney-predictions"),
                overwrite="--overwrite" in argv,
                jobs=1,
            )
        elif argv[0] == "nnUNetv2_train":
            self.play_training(int(argv[1]), argv[2], argv[3], options)
        return 0

    def path(self, options, name):
        return self.folders.raw.parent / options[name] if name in options else None

    def play_training(self, number, configuration, fold, options):
        raw = self.folders.raw / NAMES[number]
        plans = options.get("-p", "nnUNetPlans")
        model = self.folders.results / NAMES[number] / f"{options['-tr']}__{plans}__{configuration}" / f"fold_{fold}"
        splits = read_json(self.folders.preprocessed / NAMES[number] / "splits_final.json")
        cases = splits[0]["train"] + splits[0]["val"] if fold == "all" else splits[int(fold)]["val"]
        for case in cases:
            label = read_volume(raw / "labelsTr" / f"{case}.nii.gz")
            write_volume(model / "validation" / f"{case}.nii.gz", label)
        (model / "checkpoint_final.pth").touch()
        write_json(model / "validation" / "summary.json", {})

    @property
    def trainings(self):
        return [command for command, _ in self.seen if command.startswith("nnUNetv2_train")]

    def derivations(self):
        return [command for command, _ in self.seen if "derive-stages" in command]


@pytest.fixture
def folders(tmp_path):
    return make_source(tmp_path, 5)


def test_the_whole_recipe(folders):
    player = Player(folders)
    shown = []
    report = train(folders, run=player, progress=lambda *step: shown.append(step))
    commands = [command for command, _ in player.seen]
    assert len(commands) == 3 * (2 + 5) and report.notes == []
    assert commands[:3] == [
        "kits-cascade derive-stages -d 220 --stages coarse=221",
        "kits-cascade plan --stages coarse=221 --preset default",
        "nnUNetv2_train 221 3d_lowres 0 -tr nnUNetTrainer",
    ]
    model = folders.results / "Dataset221_KidneyCoarse" / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    assert f"--coarse-predictions {model}" in commands[7]
    assert commands[9] == "nnUNetv2_train 222 3d_fullres 0 -tr SurfaceLossTrainer"
    assert "SurfaceLossTrainer__nnUNetPlans__3d_fullres" in commands[14] and "--kidney-predictions" in commands[14]
    records = read_json(folders.raw / NAMES[223] / "roi.json")
    assert {record["box_from"] for record in records["cases"].values()} == {"coarse prediction"}
    assert records["options"]["kidney_predictions"] is True
    assert [(done, total) for done, total, _ in shown] == [(n, 21) for n in range(21)]
    assert shown[2][2] == "Dataset221_KidneyCoarse: train fold 0 (nnUNetTrainer)"
    for _, environment in player.seen:
        assert environment["nnUNet_raw"] == str(folders.raw)


def test_a_second_run_repeats_no_finished_fold(folders):
    stopped = Player(folders, stop_at="nnUNetv2_train 222 3d_fullres 2")
    with pytest.raises(KitsCascadeError, match=r"train fold 2 .*exit code 1 .nnUNetv2_train 222 3d_fullres 2.*again"):
        train(folders, run=stopped)
    fold = folders.results / NAMES[222] / "SurfaceLossTrainer__nnUNetPlans__3d_fullres" / "fold_2"
    fold.mkdir()
    (fold / "checkpoint_latest.pth").touch()
    unvalidated = fold.parent / "fold_1"
    (unvalidated / "validation" / "summary.json").unlink()
    player = Player(folders)
    report = train(folders, run=player)
    assert player.trainings[:4] == [
        "nnUNetv2_train 222 3d_fullres 1 -tr SurfaceLossTrainer --val",
        "nnUNetv2_train 222 3d_fullres 2 -tr SurfaceLossTrainer --c",
        "nnUNetv2_train 222 3d_fullres 3 -tr SurfaceLossTrainer",
        "nnUNetv2_train 222 3d_fullres 4 -tr SurfaceLossTrainer",
    ]
    assert len(report.finished_before) == 5 + 1
    again = Player(folders)
    assert len(train(folders, run=again).finished_before) == 15
    assert not again.trainings


def test_some_folds_only_fall_back_to_the_labels_and_say_so(folders):
    player = Player(folders)
    report = train(folders, folds=["0"], run=player)
    assert not any("predictions" in command for command in player.derivations())
    assert [note.split(": ")[:2] for note in report.notes] == [
        [NAMES[222], "the ROI comes from the labels"],
        [NAMES[223], "the ROI comes from the labels"],
        [NAMES[223], "the kidney channel comes from the labels"],
    ]
    assert "no prediction for 4 of 5 cases" in report.notes[0]
    # The other folds later: what a model was trained on is not changed under its feet.
    later = Player(folders)
    train(folders, run=later)
    assert not any("predictions" in command for command in later.derivations())
    anew = Player(folders)
    train(folders, run=anew, overwrite=True)
    assert sum("--coarse-predictions" in command for command in anew.derivations()) == 2


def test_datasets_derived_from_labels_before_are_derived_anew_while_no_model_depends_on_them(folders):
    derive_stages(folders, jobs=1)
    player = Player(folders)
    train(folders, run=player)
    assert ["--overwrite" in command for command in player.derivations()] == [False, True, True]


def test_oof_required_or_never(folders):
    with pytest.raises(DatasetError, match="Dataset222_KidneyFine: out-of-fold predictions are required"):
        train(folders, folds=["all"], oof="require", run=Player(folders))
    never = Player(folders)
    assert train(folders, oof="never", run=never, trainers={"coarse": "OtherTrainer"}).notes == []
    assert not any("predictions" in command for command in never.derivations())


def test_dry_run_runs_nothing(folders):
    def refuse(argv, environment):
        raise AssertionError(argv)

    report = train(folders, run=refuse, dry_run=True, devices=["cuda:0", "cuda:1"], preset="resenc-l")
    shown = [step.shown() for step in report.steps]
    assert len(shown) == 21 and not report.notes
    assert shown[3] == (
        "CUDA_VISIBLE_DEVICES=1 nnUNetv2_train 221 3d_lowres 1 -tr nnUNetTrainer -p nnUNetResEncUNetLPlans"
    )
    assert "--coarse-predictions" in shown[7] and "--kidney-predictions" in shown[14]
    assert not (folders.raw / NAMES[221]).exists()


def test_a_pair_of_nets_and_ids_of_ones_own(folders):
    report = train(
        folders,
        dry_run=True,
        folds=[0],
        devices=["cpu"],
        stages=[221, 322, 323],
        trainers={"masses": ["MassTrainer", "TumorTrainer"]},
        gpu_memory_gb=24,
    )
    shown = [step.shown() for step in report.steps]
    assert shown[-2:] == [
        "nnUNetv2_train 323 3d_fullres 0 -tr MassTrainer -device cpu",
        "nnUNetv2_train 323 3d_fullres 0 -tr TumorTrainer -device cpu",
    ]
    assert "--stages masses=323 --preset default --gpu-memory 24" in shown[-3]


def test_devices_work_at_the_same_time(folders):
    together = threading.Barrier(2, timeout=120)

    class Pair(Player):
        def __call__(self, argv, environment):
            if argv[0] == "nnUNetv2_train" and argv[3] in {"0", "1"}:
                together.wait()  # passes only when two trainings run at once
            return super().__call__(argv, environment)

    player = Pair(folders)
    train(folders, folds=[0, 1], devices=["cuda:0", "cuda:3"], stages=["221"], run=player)
    used = {env["CUDA_VISIBLE_DEVICES"] for command, env in player.seen if "train" in command}
    assert used == {"0", "3"}


def test_trainings_go_to_an_executor(folders):
    player = Player(folders)
    with ThreadPoolExecutor(2) as pool:
        report = train(folders, run=player, executor=pool, stages=["221"], devices=["cuda:1"])
    assert len(player.trainings) == 5
    assert {variables["CUDA_VISIBLE_DEVICES"] for command, variables in player.seen if "train" in command} == {"1"}
    assert len(report.steps) == 2 + 5
    with ThreadPoolExecutor(2) as pool, pytest.raises(KitsCascadeError, match=r"train fold 1 .* exit code 1"):
        failing = Player(folders, stop_at="3d_fullres 1")
        train(folders, run=failing, executor=pool, stages=["222"], oof="never")


def test_wrong_options(folders):
    for wrong in (
        {"folds": [5]},
        {"folds": []},
        {"folds": ["some"]},
        {"devices": ["gpu"]},
        {"devices": ["cpu:1"]},
        {"devices": ["cuda", "cuda"]},
        {"trainers": {"fine": "X"}},
        {"trainers": {"masses": []}},
        {"oof": "maybe"},
        {"preset": "huge"},
        {"stages": ["220"]},
    ):
        with pytest.raises(UsageError):
            train(folders, dry_run=True, **wrong)
    with pytest.raises(DatasetError, match="kits-cascade convert"):
        train(folders, dry_run=True, source_id=219)

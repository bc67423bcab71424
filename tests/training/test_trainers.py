"""The trainers on tiny phantoms: what they train, write, save and continue."""

import importlib
import json
import math
import os
import pickle
from copy import deepcopy
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import kits_cascade
from kits_cascade.errors import DatasetError, MissingExtraError, UsageError
from kits_cascade.training import base, trainers
from kits_cascade.training.augment import OnChannels, PerturbPrior
from kits_cascade.training.losses import SurfaceOverlapLoss, WithExtraTerm
from kits_cascade.training.trainer_options import TrainerOptions
from kits_cascade.volumes.nifti import read_labels
from tests.training.tiny import inline_workers, plans_for, write_tiny

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "seed": 1}
SMALL = {"patch": 16, "features": (16, 16, 16), "configurations": ("3d_fullres",), "options": SHORT}

# These names are in checkpoints and folder names of users: add to the list, never change what is in it.
NAMES = [
    "KitsTrainer",
    "SurfaceLossTrainer",
    "BoundaryLossTrainer",
    "RegionTrainer",
    "KidneyTrainer",
    "MassTrainer",
    "TumorTrainer",
    "RegionSurfaceLossTrainer",
    "KidneySurfaceLossTrainer",
    "MassSurfaceLossTrainer",
    "TumorSurfaceLossTrainer",
]


def make(tiny, trainer="SurfaceLossTrainer", configuration="3d_fullres", **options):
    plans = deepcopy(tiny.plans)
    plans["kits_cascade"] |= options
    return getattr(trainers, trainer)(plans, configuration, 0, deepcopy(tiny.dataset_json), torch.device("cpu"))


def test_the_names_are_all_there():
    every = [name + suffix for name in NAMES for suffix in ("", *(f"_{n}epochs" for n in (5, 50, 100, 250)))]
    assert sorted(trainers.__all__) == sorted(every)


def test_the_plugin_gives_the_same_classes(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(kits_cascade.__file__).parent / "nnunet_plugin"))
    plugin = importlib.import_module("kits_cascade_trainers")
    for name in trainers.__all__:
        found = getattr(plugin, name)
        assert found is getattr(trainers, name)
        assert pickle.loads(pickle.dumps(found)) is found
        assert found.__name__ == name
        assert issubclass(found, nnUNetTrainer)
        assert found.__doc__


def test_epoch_variants_have_their_epochs(nnunet):
    tiny = Plain(nnunet)
    assert make(tiny, "SurfaceLossTrainer_5epochs").num_epochs == 5
    assert make(tiny, "MassSurfaceLossTrainer_250epochs").num_epochs == 250
    assert make(tiny, "SurfaceLossTrainer_5epochs", num_epochs=7).num_epochs == 5, "the name counts"
    assert make(tiny, num_epochs=7).num_epochs == 7
    assert make(tiny).num_epochs == 1000


class Plain:
    """Plans without data, where nothing is trained."""

    def __init__(self, folders, labels=None, spacing=(1.0, 1.0, 1.0), channels=None, **plan):
        del folders
        self.plans = plans_for("Dataset900_Plain", spacing, channels=len(channels or ["CT"]), **plan)
        self.dataset_json = {
            "channel_names": {str(i): name for i, name in enumerate(channels or ["CT"])},
            "labels": labels or {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3},
            "file_ending": ".nii.gz",
        }


def built(trainer):
    trainer._set_batch_size_and_oversample()
    return trainer._build_loss()


@pytest.mark.parametrize(("configuration", "radius"), [("3d_fullres", (1, 2, 3)), ("2d", (2, 3))])
def test_the_radius_comes_from_the_plan(nnunet, configuration, radius):
    loss = built(make(Plain(nnunet, spacing=(5.0, 0.5, 0.35)), configuration=configuration))
    assert isinstance(loss, WithExtraTerm)
    assert isinstance(loss.extra, SurfaceOverlapLoss)
    assert loss.extra.radius == radius


def test_the_radius_can_be_set(nnunet):
    tiny = Plain(nnunet)
    assert built(make(tiny, surface_radius=[0, 0, 0])).extra.radius == (0, 0, 0)
    assert built(make(tiny, surface_tolerance_mm=3.0)).extra.radius == (3, 3, 3)
    assert built(make(tiny, configuration="2d", surface_radius=[1, 2, 3])).extra.radius == (2, 3)
    with pytest.raises(UsageError, match=r"\[1\].*3d_fullres has more axes"):
        built(make(tiny, surface_radius=[1]))


def test_class_attributes_set_options_below_the_plans(nnunet, monkeypatch):
    class Half(trainers.SurfaceLossTrainer):
        options: ClassVar = {"surface_weight": 0.25, "seed": 4}

    monkeypatch.setattr(trainers, "Half", Half, raising=False)
    made = make(Plain(nnunet), "Half", seed=5)
    assert (made.settings.surface_weight, made.settings.seed) == (0.25, 5)
    assert made.my_init_kwargs["plans"]["kits_cascade"]["surface_weight"] == 0.25, "kept in the checkpoint"


def test_the_weight_of_each_epoch(nnunet):
    made = make(Plain(nnunet))
    assert [made.extra_weight(e) for e in (0, 99, 200, 300, 999)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])


def test_the_kidney_channel_is_known_by_its_name(nnunet):
    found = make(Plain(nnunet, channels=["CT", "NoNorm"]))
    assert found.settings.prior_channels == (1,)
    assert make(Plain(nnunet, channels=["CT", "Kidney_Mask"])).settings.prior_channels == (1,)
    assert make(Plain(nnunet)).settings.prior_channels == ()


def test_a_normalised_kidney_channel_is_an_error(nnunet):
    tiny = Plain(nnunet, channels=["CT", "kidney_mask"])
    for settings in tiny.plans["configurations"].values():
        settings["normalization_schemes"][1] = "ZScoreNormalization"
    with pytest.raises(DatasetError, match=r"ZScoreNormalization.*preprocess again"):
        make(tiny)


@pytest.mark.parametrize(
    ("labels", "trainer", "lesions"),
    [
        ({"background": 0, "kidney": 3, "tumor": 1, "cyst": 2}, "RegionTrainer", (1, 2)),
        ({"background": 0, "masses": [1, 2], "tumor": 2}, "TumorTrainer", (1, 2)),
        ({"background": 0, "masses": [1, 2], "tumor": 2}, "SurfaceLossTrainer", (1, 2)),
        ({"background": 0, "vessel": 1}, "SurfaceLossTrainer", ()),
    ],
)
def test_lesions_are_the_datasets_whatever_the_heads_are(nnunet, labels, trainer, lesions):
    tiny = Plain(nnunet, labels=labels, channels=["CT", "noNorm"])
    if "masses" in labels:
        tiny.dataset_json["regions_class_order"] = [1, 2]
    assert make(tiny, trainer).lesions == lesions


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_only_the_image_gets_intensity_transforms(nnunet, dummy_2d):
    made = make(Plain(nnunet, channels=["CT", "noNorm"]))
    transforms = made.get_training_transforms(
        (16, 16, 16), (-0.1, 0.1), [[1, 1, 1]], (0, 1, 2), dummy_2d, use_mask_for_norm=[False, False]
    ).transforms
    wrapped = [t for t in transforms if isinstance(t, OnChannels)]
    assert len(wrapped) == 7, "noise, blur, brightness, contrast, low resolution, and gamma twice"
    assert all(t.channels == [0] for t in wrapped)
    names = [type(t).__name__ for t in transforms]
    place = names.index("PerturbPrior")
    assert names[place - 1] == ("Convert2DTo3DTransform" if dummy_2d else "SpatialTransform")
    assert names[place + 1] == "OnChannels"
    assert isinstance(transforms[place], PerturbPrior)


def test_geometry_moves_mask_and_image_alike_and_intensity_leaves_the_mask(nnunet):
    """A mask that is the image itself: after augmentation it must still lie where the image is."""
    made = make(Plain(nnunet, channels=["CT", "noNorm"]), prior_probability=0.0)
    transforms = made.get_training_transforms((24, 24, 24), (-0.5, 0.5), None, (0, 1, 2), False)
    grid = np.indices((32, 32, 32))
    block = ((abs(grid - np.array([12, 16, 18])[:, None, None, None]) < 7).all(0)).astype(np.float32)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    for _ in range(20):
        image = torch.from_numpy(np.stack([block * 100, block]))
        out = transforms(image=image, segmentation=torch.from_numpy(block[None]).to(torch.int16))
        mask, truth = out["image"][1], out["segmentation"][0]
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        agree = ((mask > 0) == (truth > 0)).float().mean()
        assert agree > 0.97
        assert np.corrcoef(out["image"][0].ravel(), mask.ravel())[0, 1] > 0.6


def test_the_predictors_network_has_a_binary_mask_channel(nnunet):
    tiny = Plain(nnunet, channels=["CT", "noNorm"], features=(16, 16))
    made = make(tiny)
    network = trainers.SurfaceLossTrainer.build_network_architecture(
        made.plans_manager, made.configuration_manager, 2, 4, enable_deep_supervision=False
    ).eval()
    image = torch.rand(1, 2, 16, 16, 16)
    hard = torch.stack([image[:, 0], (image[:, 1] > 0.5).float()], 1)
    with torch.no_grad():
        assert torch.equal(network(image), network(hard))


def test_class_names_follow_the_heads(nnunet):
    assert make(Plain(nnunet, {"background": 0, "cyst": 2, "kidney": [1]})).class_names == ["kidney", "cyst"]
    assert make(Plain(nnunet), "RegionTrainer").class_names == ["kidney", "masses", "tumor"]
    assert make(Plain(nnunet), "TumorTrainer").class_names == ["tumor"]


@pytest.fixture
def regions(nnunet):
    return write_tiny(nnunet, 801, "regions", **SMALL)


def trained(trainer):
    with inline_workers():
        trainer.run_training()
    return trainer


def log_of(trainer):
    kept = trainer.logger.local_logger.my_fantastic_logging
    return {name: kept[name] for name in ("train_losses", "val_losses", "lrs", "mean_fg_dice", "ema_fg_dice")}


def test_a_training_leaves_what_the_predictor_needs(regions):
    made = trained(make(regions, "MassSurfaceLossTrainer"))
    model = Path(made.output_folder_base)
    saved = json.loads((model / "dataset.json").read_text())
    assert saved["labels"] == {"background": 0, "masses": [2, 3]}
    assert json.loads((model / "plans.json").read_text())["kits_cascade"]["surface_weight"] == 0.5
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "MassSurfaceLossTrainer"
    assert checkpoint["init_args"]["plans"]["kits_cascade"]["num_epochs"] == 2
    assert checkpoint["init_args"]["dataset_json"]["labels"] == saved["labels"]
    heads = [w for name, w in checkpoint["network_weights"].items() if "seg_layers" in name and name.endswith("weight")]
    assert {w.shape[0] for w in heads} == {1}
    assert not list(model.rglob(".kc-tmp-*"))


@pytest.mark.parametrize(
    ("kind", "trainer", "values"),
    [("labels", "TumorTrainer", (2,)), ("regions", "MassTrainer", (2, 3)), ("masses", "RegionTrainer", (1, 2))],
)
def test_validation_measures_the_heads_regions(nnunet, kind, trainer, values):
    """summary.json counts the voxels of the head's region, though truth and prediction hold other labels too."""
    made = trained(make(write_tiny(nnunet, 804, kind, cases=2, **SMALL | {"patch": 32}), trainer))
    made.inference_allowed_mirroring_axes = None
    with inline_workers():
        made.perform_actual_validation()
    summary = json.loads((Path(made.output_folder) / "validation" / "summary.json").read_text())
    (case,) = summary["metric_per_case"]
    key = str(tuple(values) if len(values) > 1 else values * 2)
    truth = read_labels(Path(case["reference_file"])).array
    predicted = read_labels(Path(case["prediction_file"])).array
    assert case["metrics"][key]["n_ref"] == np.isin(truth, values).sum()
    assert case["metrics"][key]["n_pred"] == np.isin(predicted, values).sum()
    assert set(np.unique(predicted)) <= {0, *made.dataset_json["regions_class_order"]}


def test_progress_is_written_each_epoch(regions):
    made = trained(make(regions))
    found = json.loads((Path(made.output_folder) / "training_progress.json").read_text())
    assert (found["trainer"], found["fold"], found["num_epochs"]) == ("SurfaceLossTrainer", 0, 2)
    assert found["classes"] == ["kidney", "masses", "tumor"]
    assert [entry["epoch"] for entry in found["epochs"]] == [0, 1]
    assert [entry["extra_loss_weight"] for entry in found["epochs"]] == [0, 0.5]
    last = found["epochs"][-1]
    assert last["train_loss"] == pytest.approx(float(log_of(made)["train_losses"][-1]))
    assert set(last["pseudo_dice"]) == {"kidney", "masses", "tumor"}
    assert last["learning_rate"] < 0.01
    assert last["seconds"] > 0


@pytest.mark.parametrize("trainer", ["SurfaceLossTrainer", "BoundaryLossTrainer"])
def test_a_continued_training_is_the_one_that_ran_through(regions, trainer, tmp_path):
    options = {"num_epochs": 4, "save_every": 1}
    through = trained(make(regions, trainer, **options))
    expected = log_of(through)
    weights = {name: w.clone() for name, w in through.network.state_dict().items()}

    stopped = make(regions, trainer, **options)
    stopped.num_epochs = 4

    def stop(epoch_end=stopped.on_epoch_end):
        epoch_end()
        if stopped.current_epoch == 2:
            raise KeyboardInterrupt

    stopped.on_epoch_end = stop
    with pytest.raises(KeyboardInterrupt):
        trained(stopped)
    continued = make(regions, trainer, **options)
    continued.load_checkpoint(str(Path(stopped.output_folder) / "checkpoint_latest.pth"))
    assert continued.current_epoch == 2
    trained(continued)
    for name, values in log_of(continued).items():
        assert np.allclose(values, expected[name], atol=1e-6), name
    assert continued.loss.weight == through.loss.weight > 0
    for name, weight in continued.network.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name


def test_the_checkpoints_options_count_when_it_is_continued(regions):
    first = trained(make(regions, surface_weight=0.25, surface_radius=[2, 2, 2]))
    again = make(regions, surface_weight=1.0)
    again.load_checkpoint(str(Path(first.output_folder) / "checkpoint_final.pth"))
    assert again.settings.surface_weight == 0.25
    assert again.loss.extra.radius == (2, 2, 2)
    assert again.plans_manager.plans["kits_cascade"]["surface_weight"] == 0.25


def test_a_run_killed_while_saving_keeps_the_last_checkpoint(regions, monkeypatch):
    made = trained(make(regions))
    path = Path(made.output_folder) / "checkpoint_final.pth"
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        made.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".kc-tmp-*"))


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("kind", ["labels", "regions"])
@pytest.mark.parametrize("trainer", ["SurfaceLossTrainer", "BoundaryLossTrainer", "TumorTrainer"])
def test_a_step_with_the_ignore_label(nnunet, trainer, kind, deep):
    tiny = write_tiny(nnunet, 802, kind, ignore=True, cases=2, **SMALL)
    made = make(tiny, trainer)
    made.enable_deep_supervision = deep
    made.on_train_start()
    made.on_train_epoch_start()
    if hasattr(made.loss, "weight"):
        made.loss.weight = 0.5
    step = made.train_step(next(made.dataloader_train))
    assert math.isfinite(step["loss"])
    made.network.eval()
    with torch.no_grad():
        checked = made.validation_step(next(made.dataloader_val))
    assert math.isfinite(checked["loss"])
    assert len(checked["tp_hard"]) == len(made.class_names)


def test_the_prior_dataset_trains(nnunet):
    made = trained(make(write_tiny(nnunet, 803, "masses", **SMALL), "TumorSurfaceLossTrainer", prior_probability=1.0))
    assert made.num_input_channels == 2
    assert all(math.isfinite(value) for value in log_of(made)["train_losses"])


def test_tensorboard_on_request(regions):
    made = trained(make(regions, loggers=["tensorboard"]))
    assert list((Path(made.output_folder) / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_weights_and_biases_offline(regions, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra logging is not installed")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    made = trained(make(regions, loggers=["wandb"]))
    wandb.finish()
    (kept,) = (Path(made.output_folder) / "wandb").glob("offline-run-*/run-*.wandb")
    assert kept.stat().st_size > 0, "to be sent later with wandb sync"


def test_bfloat16_and_mirroring_are_options(regions, monkeypatch):
    monkeypatch.setattr(base, "fast_bfloat16", lambda device: True)
    made = make(regions, bfloat16=True, mirror=False)
    made.initialize()
    with patch.object(torch, "autocast", wraps=torch.autocast) as used:
        outputs = made.network(torch.rand(1, made.num_input_channels, *made.configuration_manager.patch_size))
    used.assert_called_once_with("cpu", torch.bfloat16, enabled=True)
    assert outputs[0].dtype == torch.float32
    axes = []
    for trainer in (made, make(regions)):
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes.append(trainer.inference_allowed_mirroring_axes)
    assert axes == [None, (0, 1, 2)]


def test_a_logger_that_is_not_installed(regions, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"wandb.*kits-cascade\[logging\]"):
        make(regions, loggers=["wandb"]).on_train_start()


def test_nothing_is_set_in_the_environment(regions):
    before = dict(os.environ)
    make(regions)
    assert dict(os.environ) == before


@pytest.mark.parametrize("loss", ["dice_ce", "cross_entropy", "focal_tversky", "boundary"])
def test_the_options_name_the_loss_and_the_optimizer(regions, loss):
    course = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "num_epochs": 1}
    made = make(regions, "KitsTrainer", loss=loss, deep_supervision=False, **course)
    trained(made)
    assert type(made.optimizer) is torch.optim.AdamW
    assert made.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert not made.enable_deep_supervision
    assert all(math.isfinite(value) for value in log_of(made)["train_losses"])
    assert TrainerOptions.from_plans(made.plans_manager.plans) == made.settings, "kept in the plans"


def test_patience_ends_a_training_and_concludes_it(regions, monkeypatch):
    made = make(regions, num_epochs=9, patience=2)
    monkeypatch.setattr(made, "validation_step", lambda batch: made.loss and {
        "loss": np.float32(1), "tp_hard": np.zeros(3), "fp_hard": np.ones(3), "fn_hard": np.ones(3)
    })  # fmt: skip
    trained(made)
    assert made.current_epoch == 3  # the first one was the best, and two were waited for
    assert (Path(made.output_folder) / "checkpoint_final.pth").is_file()


def test_minutes_set_the_number_of_epochs_and_the_fall_of_the_learning_rate(regions, monkeypatch):
    made = make(regions, num_epochs=9, minutes=1e-9)
    trained(made)
    assert made.current_epoch == 1, "an epoch that is begun is finished"
    assert (Path(made.output_folder) / "checkpoint_final.pth").is_file()
    made.current_epoch = 2
    made._fit_into(50, 20.0)
    assert made.num_epochs == made.lr_scheduler.max_steps == 5
    made._fit_into(900, 20.0)
    assert made.num_epochs == 9, "never more than the options say"


def test_the_processors_time_may_be_the_budget(regions):
    made = trained(make(regions, num_epochs=9, processor_minutes=1e-9))
    (seconds,) = made.logger.local_logger.my_fantastic_logging["processor_seconds"]
    assert made.current_epoch == 1 and seconds > 0
    again = make(regions, num_epochs=9, processor_minutes=1e-9)
    again.initialize()
    again.load_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
    assert again.logger.local_logger.my_fantastic_logging["processor_seconds"] == [seconds], "it goes on with the rest"


def test_a_network_with_one_output_is_trained_without_deep_supervision(nnunet):
    tiny = Plain(nnunet)
    for settings in tiny.plans["configurations"].values():
        settings["architecture"]["network_class_name"] = "monai.networks.nets.UNet"
    assert not make(tiny).enable_deep_supervision
    with pytest.raises(UsageError, match="deep_supervision is true"):
        make(tiny, deep_supervision=True)

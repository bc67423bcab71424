"""What the trainers rely on in nnU-Net; a new version that changes it is to fail here, by name."""

import inspect

import pytest
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.logging.nnunet_logger import LocalLogger, MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("__init__", ["self", "plans", "configuration", "fold", "dataset_json", "device"]),
        ("_build_loss", ["self"]),
        ("initialize", ["self"]),
        ("on_train_start", ["self"]),
        ("on_train_epoch_start", ["self"]),
        ("on_epoch_end", ["self"]),
        ("train_step", ["self", "batch"]),
        ("validation_step", ["self", "batch"]),
        ("get_tr_and_val_datasets", ["self"]),
        ("save_checkpoint", ["self", "filename"]),
        ("load_checkpoint", ["self", "filename_or_checkpoint"]),
        (
            "build_network_architecture",
            [
                "plans_manager",
                "configuration_manager",
                "num_input_channels",
                "num_output_channels",
                "enable_deep_supervision",
            ],
        ),
    ],
)
def test_hooks(name, expected):
    assert parameters(getattr(nnUNetTrainer, name)) == expected


def test_both_pipelines_are_made_by_hooks():
    source = inspect.getsource(nnUNetTrainer.get_dataloaders)
    assert "self.get_training_transforms(" in source
    assert "self.get_validation_transforms(" in source


def test_the_json_files_beside_the_model_are_the_trainers_own():
    source = inspect.getsource(nnUNetTrainer.on_train_start)
    assert "save_json(self.dataset_json, join(self.output_folder_base, 'dataset.json')" in source
    assert "save_json(self.plans_manager.plans, join(self.output_folder_base, 'plans.json')" in source


def test_the_log_holds_what_the_progress_file_reads():
    log = LocalLogger().my_fantastic_logging
    assert {
        "mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region", "train_losses", "val_losses", "lrs",
        "epoch_start_timestamps", "epoch_end_timestamps",
    } <= set(log)  # fmt: skip


def test_loggers_are_handed_every_value(tmp_path):
    seen = []

    class Logger:
        def log(self, *values):
            seen.append(values)

    meta = MetaLogger(str(tmp_path), resume=False)
    meta.loggers.append(Logger())
    meta.log("train_losses", 0.5, 0)
    assert seen == [("train_losses", 0.5, 0)]


def test_training_transforms_are_a_list_of_known_kinds():
    pipeline = nnUNetTrainer.get_training_transforms((16, 16, 16), (-0.1, 0.1), None, (0, 1, 2), False)
    assert isinstance(pipeline, ComposeTransforms)
    intensity = [t for t in pipeline.transforms if isinstance(t, RandomTransform)]
    assert all(isinstance(t.transform, ImageOnlyTransform) for t in intensity)
    geometry = [t for t in pipeline.transforms if isinstance(t, (SpatialTransform, MirrorTransform))]
    assert len(geometry) == 2


def test_a_repeated_value_makes_a_region():
    manager = LabelManager({"background": 0, "tumor": [2, 2]}, [2])
    assert manager.has_regions
    assert manager.num_segmentation_heads == 1

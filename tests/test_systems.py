"""A new system is a row and a preset: planned, trained for a step and predicted, with nothing else written for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kits_cascade.data.plans import plan_stages
from kits_cascade.errors import UsageError
from kits_cascade.files import read_json, write_json
from kits_cascade.inference.cascade import Cascade
from kits_cascade.models.choose import resolve_single
from kits_cascade.recipes.train import train
from kits_cascade.systems import CASCADE, SYSTEMS, System, find_system, single_stage
from kits_cascade.training.architecture import check_network
from kits_cascade.training.base import KitsTrainer
from tests.conftest import REPOSITORY
from tests.data.small import make_source
from tests.training.tiny import inline_workers

MONAI = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
NETWORKS = {
    "2d": ("monai.networks.nets.UNet", {"spatial_dims": 2, **MONAI}),
    "3d_fullres": ("monai.networks.nets.UNet", {"spatial_dims": 3, **MONAI}),
}


def preset(configuration):
    """As plans/NAME.json would have it: a network that is not nnU-Net's, its sizes, and how it is trained."""
    name, arguments = NETWORKS[configuration]
    axes = 2 if configuration == "2d" else 3
    return {
        "plans_name": "madeUpPlans",
        "training": {
            "loss": "focal_tversky", "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "seed": 1,
            "num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1,
        },
        "stages": {"source": {configuration: {
            "spacing": [4.0] * axes, "patch_size": [16] * axes, "batch_size": 2,
            "normalization_schemes": ["ZScoreNormalization"],
            "architecture": {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []},
        }}},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_made_up_system_is_planned_trained_and_predicted(tmp_path, monkeypatch, configuration):
    pytest.importorskip("monai", reason="the extra systems is not installed")
    write_json(tmp_path / "made-up.json", preset(configuration))
    system = System("made-up", "a made-up one", "nobody", single_stage(configuration), str(tmp_path / "made-up.json"))
    (stage,) = system.stages
    folders = make_source(tmp_path, 3)

    report = plan_stages(folders, preset=system.preset, known=system.stages, jobs=1, check=check_network)
    plans = read_json(report.plans["source"])
    assert plans["configurations"][configuration]["normalization_schemes"] == ["ZScoreNormalization"]
    assert (folders.preprocessed / stage.dataset / "splits_final.json").is_file()

    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # patches are drawn in this process
    dataset = read_json(folders.raw / stage.dataset / "dataset.json")
    trainer = KitsTrainer(plans, configuration, 0, dataset, torch.device("cpu"))
    with inline_workers():
        trainer.run_training()
    assert type(trainer.optimizer) is torch.optim.Adam
    assert type(trainer.network).__module__.startswith("monai.")

    model = resolve_single(stage, results=folders.results)
    assert model.model.name == f"KitsTrainer__madeUpPlans__{configuration}"
    image = folders.raw / stage.dataset / "imagesTr" / "case_00000_0000.nii.gz"
    prediction = Cascade(model, device="cpu", accept_values=True)(image)
    assert prediction.labels.shape == prediction.loaded.volume.shape
    assert set(np.unique(prediction.labels)) <= {0, 1, 2, 3}


def test_the_recipe_walks_the_row(tmp_path):
    folders = make_source(tmp_path, 2)
    system = replace(CASCADE, name="made-up", stages=single_stage("2d"), preset="default")
    steps = train(folders, system=system, folds=[0, 1], devices=["cpu"], dry_run=True).steps
    assert [step.title.partition(": ")[2] for step in steps] == [
        "plan and preprocess",
        "train fold 0 (KitsTrainer)",
        "train fold 1 (KitsTrainer)",
    ]
    assert steps[0].argv[-2:] == ("--system", "made-up")
    assert steps[1].argv == ("nnUNetv2_train", "220", "2d", "0", "-tr", "KitsTrainer", "-device", "cpu")


def test_the_rows_are_whole():
    assert SYSTEMS[0] is CASCADE
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    for system in SYSTEMS:
        assert find_system(system.name) is system
        assert any((REPOSITORY / "plans").glob(f"{system.preset}*.json"))
    with pytest.raises(UsageError, match="there is no system 'other'; there are cascade, "):
        find_system("other")

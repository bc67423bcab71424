"""training_progress.json from nnU-Net's log."""

import json

import numpy as np

from kits_cascade.training.progress import progress, write_progress

LOG = {
    "mean_fg_dice": [0.5, 0.6],
    "ema_fg_dice": [0.5, 0.51],
    "dice_per_class_or_region": [[np.float32(0.4), np.float32(np.nan)], [0.5, 0.7]],
    "train_losses": [np.float32(1.0), 0.5],
    "val_losses": [1.5, 1.25],
    "lrs": [0.01, 0.005, 0.0],
    "epoch_start_timestamps": [10.0, 20.0, 30.0],
    "epoch_end_timestamps": [12.5, 22.0],
}


def test_finished_epochs_as_json(tmp_path):
    content = progress(LOG, ["kidney", "tumor"], [None, 0.25], {"trainer": "T"})
    write_progress(tmp_path, content)
    found = json.loads((tmp_path / "training_progress.json").read_text())
    assert found["trainer"] == "T"
    first, second = found["epochs"]
    assert first == {
        "epoch": 0,
        "train_loss": 1.0,
        "val_loss": 1.5,
        "mean_pseudo_dice": 0.5,
        "ema_pseudo_dice": 0.5,
        "learning_rate": 0.01,
        "pseudo_dice": {"kidney": float(np.float32(0.4)), "tumor": None},
        "seconds": 2.5,
    }
    assert second["extra_loss_weight"] == 0.25
    assert second["pseudo_dice"] == {"kidney": 0.5, "tumor": 0.7}


def test_before_the_first_epoch_there_is_none():
    assert progress({name: [] for name in LOG}, ["kidney"], [], {})["epochs"] == []

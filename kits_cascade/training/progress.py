"""How a training went, epoch by epoch: ``training_progress.json`` beside the checkpoints; TensorBoard on request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import MissingExtraError
from kits_cascade.files import write_json

PROGRESS_FILE: Final = "training_progress.json"
TENSORBOARD_FOLDER: Final = "tensorboard"

# Name in our file -> name in nnU-Net's log.
_SCALARS: Final = {
    "train_loss": "train_losses",
    "val_loss": "val_losses",
    "mean_pseudo_dice": "mean_fg_dice",
    "ema_pseudo_dice": "ema_fg_dice",
    "learning_rate": "lrs",
}


def progress(
    log: Mapping[str, Sequence[Any]], classes: Sequence[str], weights: Sequence[float | None], head: Mapping[str, Any]
) -> dict[str, Any]:
    """All finished epochs of nnU-Net's log as one JSON-ready object; ``head`` says what was trained.

    ``weights``: the extra loss term's weight in each epoch, None where a trainer has none.
    """
    return {
        **head,
        "classes": list(classes),
        "epochs": [_epoch(log, classes, weights, i) for i in range(_finished(log))],
    }


def _finished(log: Mapping[str, Sequence[Any]]) -> int:
    return min((len(values) for values in log.values()), default=0)


def _epoch(
    log: Mapping[str, Sequence[Any]], classes: Sequence[str], weights: Sequence[float | None], index: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {"epoch": index}
    entry |= {ours: _number(log[theirs][index]) for ours, theirs in _SCALARS.items()}
    per_class = log["dice_per_class_or_region"][index]
    entry["pseudo_dice"] = {name: _number(value) for name, value in zip(classes, per_class, strict=True)}
    entry["seconds"] = _number(log["epoch_end_timestamps"][index] - log["epoch_start_timestamps"][index])
    weight = weights[index]
    if weight is not None:
        entry["extra_loss_weight"] = weight
    return entry


def _number(value: Any) -> float | None:
    """JSON has no NaN: a class that an epoch's patches do not hold has no pseudo Dice."""
    number = float(value)
    return number if math.isfinite(number) else None


def write_progress(folder: Path, content: Mapping[str, Any]) -> None:
    """Atomically: a reader sees the last epoch whole or not at all."""
    write_json(folder / PROGRESS_FILE, content)


class TensorBoardLogger:
    """One of the loggers that nnU-Net's own MetaLogger hands every value to."""

    def __init__(self, folder: Path, first_epoch: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "logging") from error
        # Epochs that a killed run wrote after its last checkpoint are hidden when the continued run writes them again.
        self._writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_epoch or None)

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Plans and hyperparameters, as text."""
        for name, value in config.items():
            self._writer.add_text(name, f"```\n{value}\n```")

    def log(self, key: str, value: Any, step: int) -> None:
        """One value of one epoch."""
        self._writer.add_scalar(key, float(value), step)
        self._writer.flush()

    def log_summary(self, key: str, value: Any) -> None:
        """One value of the whole training."""
        self._writer.add_text(key, str(value))
        self._writer.flush()

"""What can be set about our trainers, in a plans file's ``kits_cascade`` entry.

The entry is completed with the defaults and kept in the plans that nnU-Net stores in every checkpoint, so that a
continued training and a later reader see what was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from kits_cascade.errors import UsageError

PLANS_KEY: Final = "kits_cascade"
LOSSES: Final = ("dice_ce", "cross_entropy", "focal_tversky", "surface", "boundary")
OPTIMIZERS: Final = ("sgd", "adam", "adamw")
LOGGERS: Final = ("tensorboard", "wandb")


@dataclass(frozen=True)
class TrainerOptions:
    """Options of the trainers. None means: what the trainer or nnU-Net does by default."""

    loss: str | None = None  # a row of training.loss_table
    surface_weight: float = 0.5
    surface_tolerance_mm: float = 1.1
    surface_radius: tuple[int, ...] | None = None  # voxels per axis, instead of the one from the spacing
    boundary_weight: float = 0.02
    prior_probability: float = 0.5  # how often the kidney channel is perturbed in training
    prior_channels: tuple[int, ...] | None = None  # the channels with a kidney mask, instead of going by their names
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    save_every: int | None = None  # epochs between checkpoints
    optimizer: str | None = None  # one of OPTIMIZERS; nnU-Net's is sgd
    learning_rate: float | None = None  # at the start; nnU-Net's polynomial schedule takes it to 0
    weight_decay: float | None = None
    patience: int | None = (
        None  # epochs without a better validation score (nnU-Net's own average) that end the training
    )
    minutes: float | None = None  # the training takes about as long: the number of epochs, at most num_epochs, follows
    processor_minutes: float | None = None  # as minutes, but of processor time of the training process, all threads
    deep_supervision: bool | None = None  # None: where the network has it
    bfloat16: bool | None = None  # true: also on a processor that multiplies in it; GPUs have half precision anyhow
    mirror: bool | None = None  # false: predictions, the validation's too, without the mean over mirrored tiles
    seed: int | None = None
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("surface_weight", "surface_tolerance_mm", "boundary_weight"):
            _check(_is_number(getattr(self, name)) and getattr(self, name) >= 0, name, self, "a number of at least 0")
        _check(
            _is_number(self.prior_probability) and 0 <= self.prior_probability <= 1,
            "prior_probability",
            self,
            "a number from 0 to 1",
        )
        for name in (
            "num_epochs",
            "num_iterations_per_epoch",
            "num_val_iterations_per_epoch",
            "save_every",
            "patience",
        ):
            value = getattr(self, name)
            _check(value is None or (_is_count(value) and value >= 1), name, self, "a whole number of at least 1")
        _check(self.seed is None or (_is_count(self.seed) and self.seed >= 0), "seed", self, "a whole number, or null")
        self._check_course()
        self._check_lists()

    def _check_course(self) -> None:
        for name, known in (("loss", LOSSES), ("optimizer", OPTIMIZERS)):
            _check(getattr(self, name) in (None, *known), name, self, f"one of {', '.join(known)}, or null")
        for name, least in (("learning_rate", "above"), ("weight_decay", "of at least")):
            value = getattr(self, name)
            fits = value is None or (_is_number(value) and (value > 0 or (value == 0 and least != "above")))
            _check(fits, name, self, f"a number {least} 0, or null")
        for name in ("minutes", "processor_minutes"):
            value = getattr(self, name)
            _check(value is None or (_is_number(value) and value > 0), name, self, "a number above 0, or null")
        one = self.minutes is None or self.processor_minutes is None
        _check(one, "processor_minutes", self, "null beside minutes: there is one budget")
        for name in ("deep_supervision", "bfloat16", "mirror"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, bool), name, self, "true, false or null")

    def _check_lists(self) -> None:
        for name in ("surface_radius", "prior_channels"):
            value = getattr(self, name)
            fits = value is None or (isinstance(value, tuple) and all(_is_count(v) and v >= 0 for v in value))
            _check(fits, name, self, "a list of whole numbers, or null")
        known = isinstance(self.loggers, tuple) and all(name in LOGGERS for name in self.loggers)
        _check(known, "loggers", self, f"a list of {', '.join(LOGGERS)}")

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> TrainerOptions:
        """Read a plans file's entry; what it does not name comes from ``defaults`` (a trainer's class attribute)."""
        entry = plans.get(PLANS_KEY, {})
        if not isinstance(entry, Mapping):
            raise UsageError(f"the plans entry {PLANS_KEY!r} is {entry!r}; it must be an object of options")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(entry) - known)
        if unknown:
            raise UsageError(
                f"unknown option {', '.join(unknown)} in the plans entry {PLANS_KEY!r}; "
                f"known are {', '.join(sorted(known))}"
            )
        merged: dict[str, Any] = {**(defaults or {}), **entry}
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in merged.items()}
        return cls(**values)

    def to_plans(self) -> dict[str, Any]:
        """For the plans: JSON types only."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check(fits: bool, name: str, options: TrainerOptions, takes: str) -> None:
    if not fits:
        raise UsageError(
            f"option {name} in the plans entry {PLANS_KEY!r} is {getattr(options, name)!r}; it takes {takes}"
        )

"""How much each system of a comparison may train: equal for all, or as published."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from kits_cascade.errors import UsageError

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*((?:cpu)?(?:min|h)|epochs?|steps?)")
_STEPS_PER_EPOCH: Final = 250  # nnU-Net's
# Shorter epochs where time is the budget, so that it is kept to on slow machines too; the same share for validation.
_EPOCH_STEPS: Final = 50
_LONG_MIN: Final = 60  # below, half of that: so that even a short training has some epochs, by which its rate falls
_NO_END: Final = 100_000
_OPTIONS: Final = {"min": "minutes", "cpumin": "processor_minutes"}  # of the trainers, by unit


@dataclass(frozen=True)
class Budget:
    """What a fold of a system may take, over all of its networks."""

    text: str
    amount: float = 0.0
    unit: str = ""  # empty: as published

    @property
    def is_published(self) -> bool:
        """Whether each system trains as its preset says."""
        return not self.unit

    @property
    def suffix(self) -> str:
        """Added to the plans' names, so that these networks are never taken for fully trained ones."""
        return "" if self.is_published else f"Within{self.amount:g}{self.unit}".replace(".", "p")

    def options(self, networks: int) -> dict[str, Any]:
        """What a preset's training is overlaid with, for each of a system's networks."""
        share = self.amount / networks
        if self.unit in _OPTIONS:
            return {_OPTIONS[self.unit]: share, "num_epochs": _NO_END, "patience": None, **_epoch(share)}
        if self.unit == "epochs":
            return {"num_epochs": math.ceil(share), "patience": None}
        epochs = math.ceil(share / _STEPS_PER_EPOCH)
        steps = math.ceil(share / epochs)
        lengths = {"num_iterations_per_epoch": steps, "num_val_iterations_per_epoch": math.ceil(steps / 5)}
        return {"num_epochs": epochs, "patience": None, **lengths}


def _epoch(minutes: float) -> dict[str, int]:
    steps = _EPOCH_STEPS if minutes >= _LONG_MIN else _EPOCH_STEPS // 2
    return {"num_iterations_per_epoch": steps, "num_val_iterations_per_epoch": steps // 5}


def parse_budget(text: str) -> Budget:
    """``published``, or an amount: of time on the clock (2h, 90min) or of the processor (2cpuh), of epochs or steps."""
    if text.strip() == "published":
        return Budget("published")
    found = _FORM.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise UsageError(
            f"--budget {text}: give published, or an amount such as 2h, 90min, 2cpuh, 50epochs or 2000steps"
        )
    amount, unit = float(found[1]), found[2]
    if unit.endswith("h"):
        return Budget(text.strip(), amount * 60, f"{unit.removesuffix('h')}min")
    return Budget(text.strip(), amount, unit if unit in _OPTIONS else f"{unit.removesuffix('s')}s")

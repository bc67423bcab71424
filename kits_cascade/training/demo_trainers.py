"""Short trainers for the demo: minutes on two CPU cores. They are nnU-Net's own training with another budget.

A thousand epochs of SGD find the optimum of a real dataset; a few hundred steps on phantoms want an optimizer that
moves at once, and patches that show what is to be learnt. Nothing else differs from the trainers that real data are
trained with.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from kits_cascade.training.base import KitsTrainer, changes_intensity
from kits_cascade.training.heads import EvenCases
from kits_cascade.training.trainers import SurfaceLossTrainer

_BUDGET: Final = {"num_iterations_per_epoch": 50, "num_val_iterations_per_epoch": 4, "save_every": 2}


class _Short(KitsTrainer):
    """AdamW and a budget of its own."""

    options: ClassVar[dict[str, Any]] = {
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 1e-4,
        "bfloat16": True,
        "mirror": False,  # at prediction, which makes the validation eight times as long
        **_BUDGET,
    }


class _Geometric(_Short):
    """Augments geometry only.

    Phantoms come from one scanner: a network that is taught to distrust the brightness of a tissue takes far longer to
    tell a spleen from a kidney.
    """

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own, without those that change intensities."""
        whole = super().get_training_transforms(*args, **kwargs)
        return ComposeTransforms([t for t in whole.transforms if not changes_intensity(t)])


class DemoTrainer(_Geometric):
    """Dice and cross-entropy, for the coarse stage."""

    options: ClassVar[dict[str, Any]] = {"num_epochs": 13}


class DemoSurfaceLossTrainer(_Geometric, SurfaceLossTrainer):
    """With the surface loss, for the kidney stage."""

    options: ClassVar[dict[str, Any]] = {"num_epochs": 15}


class DemoMassesTrainer(_Short, SurfaceLossTrainer):
    """For the masses stage: a cyst or a tumour in every patch, and a kidney mask that is wrong more often than not."""

    options: ClassVar[dict[str, Any]] = {"learning_rate": 1.5e-3, "num_epochs": 19, "prior_probability": 0.75}

    def initialize(self) -> None:
        """As nnU-Net does, then show a lesion in every patch of a batch, not in a third of them."""
        super().initialize()
        self.oversample_foreground_percent = 1.0

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Cysts as often as tumours: they are the smaller part of the masses, and the first to be missed."""
        training, validation = super().get_tr_and_val_datasets()
        return EvenCases(training), EvenCases(validation)


_QUICK: Final = {"num_iterations_per_epoch": 8, "num_val_iterations_per_epoch": 1, "num_epochs": 1}


class DemoQuickTrainer(DemoTrainer):
    """A few steps: shows that everything runs."""

    options: ClassVar[dict[str, Any]] = _QUICK


class DemoQuickSurfaceLossTrainer(DemoSurfaceLossTrainer):
    """A few steps: shows that everything runs."""

    options: ClassVar[dict[str, Any]] = _QUICK


class DemoQuickMassesTrainer(DemoMassesTrainer):
    """A few steps: shows that everything runs."""

    options: ClassVar[dict[str, Any]] = _QUICK


__all__ = [name for name, kind in vars().items() if isinstance(kind, type) and name.startswith("Demo")]

"""Short trainers for the demo: minutes on two CPU cores. They are nnU-Net's own training with another budget.

A thousand epochs of SGD find the optimum of a real dataset; a few hundred steps on phantoms want one that moves at
once. Nothing else differs from the trainers that real data are trained with.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from kits_cascade.training.base import KitsTrainer
from kits_cascade.training.trainers import SurfaceLossTrainer

_BUDGET: Final = {"num_iterations_per_epoch": 50, "num_val_iterations_per_epoch": 4, "save_every": 2}


class _Short(KitsTrainer):
    """AdamW and a budget of its own."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW with nnU-Net's polynomial schedule."""
        self.initial_lr = 3e-3
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=1e-4)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's hook
        """As nnU-Net does; but without mirroring at prediction, which makes the validation eight times as long."""
        chosen = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return chosen


class DemoTrainer(_Short):
    """Dice and cross-entropy, for the coarse stage."""

    options: ClassVar[dict[str, Any]] = {**_BUDGET, "num_epochs": 14}


class DemoSurfaceLossTrainer(_Short, SurfaceLossTrainer):
    """With the surface loss, for the fine stages."""

    options: ClassVar[dict[str, Any]] = {**_BUDGET, "num_epochs": 12}


_QUICK: Final = {"num_iterations_per_epoch": 8, "num_val_iterations_per_epoch": 1, "num_epochs": 1}


class DemoQuickTrainer(DemoTrainer):
    """A few steps: shows that everything runs."""

    options: ClassVar[dict[str, Any]] = _QUICK


class DemoQuickSurfaceLossTrainer(DemoSurfaceLossTrainer):
    """A few steps: shows that everything runs."""

    options: ClassVar[dict[str, Any]] = _QUICK


__all__ = ["DemoQuickSurfaceLossTrainer", "DemoQuickTrainer", "DemoSurfaceLossTrainer", "DemoTrainer"]

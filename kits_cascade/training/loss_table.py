"""The losses that the option ``loss`` can name: a new one is a row here, and a name in ``trainer_options.LOSSES``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import nn

from kits_cascade.errors import UsageError
from kits_cascade.training.losses import (
    BoundaryLoss,
    FocalTverskyLoss,
    SurfaceOverlapLoss,
    WithExtraTerm,
    full_precision,
    surface_radius,
)
from kits_cascade.training.trainer_options import TrainerOptions


@dataclass(frozen=True)
class Loss:
    """One loss: how a trainer builds it, and what it needs of the course of the training."""

    build: Callable[[Any], nn.Module]
    weight: Callable[[TrainerOptions], float] | None = None  # of an extra term, reached after the first epochs
    distances: bool = False  # batches bring the truth's signed distances as one more target


def _dice_ce(trainer: Any) -> nn.Module:
    """nnU-Net's own."""
    return cast("nn.Module", nnUNetTrainer._build_loss(trainer))


def _surface(trainer: Any) -> nn.Module:
    radius = trainer.settings.surface_radius or surface_radius(trainer.spacing, trainer.settings.surface_tolerance_mm)
    if len(radius) < len(trainer.spacing):
        raise UsageError(
            f"option surface_radius is {list(radius)}; {trainer.configuration_name} has more axes than that"
        )
    overlap = SurfaceOverlapLoss(
        radius[-len(trainer.spacing) :],  # a 2d configuration takes the last two of three
        regions=trainer.label_manager.has_regions,
        ignore_label=trainer.label_manager.ignore_label,
        batch_dice=trainer.configuration_manager.batch_dice,
        gather=_gather if trainer.is_ddp else None,
    )
    return WithExtraTerm(_dice_ce(trainer), overlap)


def _gather(sums: torch.Tensor) -> torch.Tensor:
    """Sums over the processes of a distributed training, with gradient."""
    gathered: torch.Tensor = AllGatherGrad.apply(sums)
    return gathered.sum(0)


def _boundary(trainer: Any) -> nn.Module:
    return WithExtraTerm(_dice_ce(trainer), BoundaryLoss(regions=trainer.label_manager.has_regions))


def _focal_tversky(trainer: Any) -> nn.Module:
    manager = trainer.label_manager
    return _at_all_resolutions(
        trainer, FocalTverskyLoss(regions=manager.has_regions, ignore_label=manager.ignore_label)
    )


class _BinaryCrossEntropy(nn.Module):
    """For region heads; the last channel of the target says what is to be ignored, where there is an ignore label."""

    def __init__(self, ignore: bool) -> None:
        super().__init__()
        self.ignore = ignore

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        truth = target[:, : logits.shape[1]].to(torch.float32)
        loss = nn.functional.binary_cross_entropy_with_logits(full_precision(logits), truth, reduction="none")
        if not self.ignore:
            return loss.mean()
        valid = (target[:, -1:] == 0).expand_as(loss)
        return (loss * valid).sum() / valid.sum().clamp_min(1)


def _cross_entropy(trainer: Any) -> nn.Module:
    ignore = trainer.label_manager.ignore_label
    if trainer.label_manager.has_regions:
        return _at_all_resolutions(trainer, _BinaryCrossEntropy(ignore is not None))
    return _at_all_resolutions(trainer, RobustCrossEntropyLoss(ignore_index=-100 if ignore is None else ignore))


def _at_all_resolutions(trainer: Any, loss: nn.Module) -> nn.Module:
    """As nnU-Net weighs the outputs of deep supervision: half as much at each step, the coarsest not at all."""
    if not trainer.enable_deep_supervision:
        return loss
    weights = 1 / 2.0 ** np.arange(len(trainer._get_deep_supervision_scales()))
    # Without torch.compile, distributed training stops at parameters that take no part.
    weights[-1] = 1e-6 if trainer.is_ddp and not trainer._do_i_compile() else 0
    return cast("nn.Module", DeepSupervisionWrapper(loss, weights / weights.sum()))


LOSSES: Final = {
    "dice_ce": Loss(_dice_ce),
    "cross_entropy": Loss(_cross_entropy),
    "focal_tversky": Loss(_focal_tversky),
    "surface": Loss(_surface, lambda options: options.surface_weight),
    # Its weight is never reached in the first epochs: far from a solution the distances drown everything else.
    "boundary": Loss(_boundary, lambda options: options.boundary_weight, distances=True),
}

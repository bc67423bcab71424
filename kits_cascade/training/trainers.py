"""The trainers that ``nnUNetv2_train -tr NAME`` finds. Their names live in checkpoints and folders: never rename one.

Options come from the plans file's ``kits_cascade`` entry (:mod:`kits_cascade.training.trainer_options`), or from the
class attribute ``options`` of a subclass.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad

from kits_cascade.errors import UsageError
from kits_cascade.training.augment import DistanceMaps
from kits_cascade.training.base import KitsTrainer
from kits_cascade.training.losses import BoundaryLoss, SurfaceOverlapLoss, WithExtraTerm, ramp, surface_radius

EPOCHS: Final = (5, 50, 100, 250)  # the short variants, named as nnU-Net names them


class SurfaceLossTrainer(KitsTrainer):
    """Dice and cross-entropy plus the overlap of the surfaces, whose weight rises from 0."""

    def _build_loss(self) -> torch.nn.Module:
        return WithExtraTerm(super()._build_loss(), self._surface_loss())

    def _surface_loss(self) -> SurfaceOverlapLoss:
        radius = self.settings.surface_radius or surface_radius(self.spacing, self.settings.surface_tolerance_mm)
        if len(radius) < len(self.spacing):
            raise UsageError(
                f"option surface_radius is {list(radius)}; {self.configuration_name} has more axes than that"
            )
        return SurfaceOverlapLoss(
            radius[-len(self.spacing) :],  # a 2d configuration takes the last two of three
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            gather=_gather if self.is_ddp else None,
        )

    def extra_weight(self, epoch: int) -> float:
        """Computed from the epoch's number, so it is right after a resumed checkpoint."""
        return self.settings.surface_weight * ramp(epoch, self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """Set the weight of this epoch."""
        super().on_train_epoch_start()
        self.loss.weight = self.extra_weight(self.current_epoch)


def _gather(sums: torch.Tensor) -> torch.Tensor:
    """Sums over the processes of a distributed training, with gradient."""
    gathered: torch.Tensor = AllGatherGrad.apply(sums)
    return gathered.sum(0)


class BoundaryLossTrainer(KitsTrainer):
    """Dice and cross-entropy plus probability times signed distance to the true surface (Kervadec et al.)."""

    def _build_loss(self) -> torch.nn.Module:
        return WithExtraTerm(super()._build_loss(), BoundaryLoss(regions=self.label_manager.has_regions))

    def extra_weight(self, epoch: int) -> float:
        """Never from epoch 0: far from a solution the distances drown everything else."""
        return self.settings.boundary_weight * ramp(epoch, self.num_epochs)

    def on_train_epoch_start(self) -> None:
        """Set the weight of this epoch."""
        super().on_train_epoch_start()
        self.loss.weight = self.extra_weight(self.current_epoch)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Also the distances: they are computed by the loader's workers, of the truth as it is after augmentation."""
        return self._with_distances(super().get_training_transforms(*args, **kwargs))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """The same for the validation patches."""
        return self._with_distances(super().get_validation_transforms(*args, **kwargs))

    def _with_distances(self, transforms: Any) -> Any:
        transforms.transforms.append(
            DistanceMaps(
                self.spacing,
                regions=self.label_manager.has_regions,
                classes=len(self.class_names),
                ignore_label=self.label_manager.ignore_label,
            )
        )
        return transforms

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; the last target is the distances."""
        step: dict[str, Any] = super().train_step(self._take_distances(batch))
        return step

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; the last target is the distances."""
        step: dict[str, Any] = super().validation_step(self._take_distances(batch))
        return step

    def _take_distances(self, batch: dict[str, Any]) -> dict[str, Any]:
        *targets, distances = batch["target"]
        self.loss.reference = distances.to(self.device, non_blocking=True)
        return {**batch, "target": targets if self.enable_deep_supervision else targets[0]}


class RegionTrainer(KitsTrainer):
    """The challenge's three regions as heads, from any KiTS-labelled dataset."""

    heads = ()


class KidneyTrainer(KitsTrainer):
    """Kidneys with their masses, one head."""

    heads = ("kidney",)


class MassTrainer(KitsTrainer):
    """Masses (tumours and cysts), one head."""

    heads = ("masses",)


class TumorTrainer(KitsTrainer):
    """Tumours, one head."""

    heads = ("tumor",)


class RegionSurfaceLossTrainer(SurfaceLossTrainer):
    """:class:`RegionTrainer` with the surface loss."""

    heads = RegionTrainer.heads


class KidneySurfaceLossTrainer(SurfaceLossTrainer):
    """:class:`KidneyTrainer` with the surface loss."""

    heads = KidneyTrainer.heads


class MassSurfaceLossTrainer(SurfaceLossTrainer):
    """:class:`MassTrainer` with the surface loss."""

    heads = MassTrainer.heads


class TumorSurfaceLossTrainer(SurfaceLossTrainer):
    """:class:`TumorTrainer` with the surface loss."""

    heads = TumorTrainer.heads


TRAINERS: Final[tuple[type[KitsTrainer], ...]] = (
    KitsTrainer,
    SurfaceLossTrainer,
    BoundaryLossTrainer,
    RegionTrainer,
    KidneyTrainer,
    MassTrainer,
    TumorTrainer,
    RegionSurfaceLossTrainer,
    KidneySurfaceLossTrainer,
    MassSurfaceLossTrainer,
    TumorSurfaceLossTrainer,
)


def short_variants(trainer: type[KitsTrainer], module: dict[str, Any]) -> list[str]:
    """Put ``trainer``'s 5, 50, 100 and 250 epoch forms into a module's namespace; their names."""
    names = []
    for epochs in EPOCHS:
        name = f"{trainer.__name__}_{epochs}epochs"
        text = f"{trainer.__name__} for {epochs} epochs."
        module[name] = type(name, (trainer,), {"__module__": module["__name__"], "__doc__": text, "epochs": epochs})
        names.append(name)
    return names


# The names that nnU-Net can ask for.
__all__ = [name for t in TRAINERS for name in (t.__name__, *short_variants(t, globals()))]

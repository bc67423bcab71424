"""The trainers that ``nnUNetv2_train -tr NAME`` finds. Their names live in checkpoints and folders: never rename one.

Each is a small subclass of nnU-Net's own. What they share is in :class:`KitsTrainer`; options come from the plans
file's ``kits_cascade`` entry or from the class attribute ``options`` (see :mod:`kits_cascade.training.options`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.files import atomic_path
from kits_cascade.training.heads import HeadLabels, with_heads
from kits_cascade.training.losses import SurfaceOverlapLoss, WithExtraTerm, ramp, surface_radius
from kits_cascade.training.options import PLANS_KEY, TrainerOptions

EPOCHS: Final = (5, 50, 100, 250)  # the short variants, named as nnU-Net names them

Plans = dict[str, Any]


class KitsTrainer(nnUNetTrainer):
    """What our trainers share: options kept in the checkpoint, region heads, repeatable epochs, whole checkpoints."""

    heads: ClassVar[tuple[str, ...] | None] = None  # None: as the dataset.json says; (): all of the challenge's regions
    options: ClassVar[Mapping[str, Any]] = {}  # defaults of this class, below what the plans say
    epochs: ClassVar[int | None] = None  # set in the short variants, above what the plans say

    def __init__(
        self,
        plans: Plans,
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        self.settings = TrainerOptions.from_plans(plans, self.options)
        plans.setdefault("continue_training", False)
        plans[PLANS_KEY] = self.settings.to_plans()
        adapted = with_heads(dataset_json, self.heads)
        super().__init__(plans, configuration, fold, adapted, device)
        if adapted != dataset_json:
            self.label_manager = HeadLabels(adapted, PlansManager(plans).get_label_manager(dataset_json))
        self._apply_settings()

    def _apply_settings(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            if getattr(self.settings, name) is not None:
                setattr(self, name, getattr(self.settings, name))
        if self.epochs is not None:
            self.num_epochs = self.epochs

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size of the configuration in the axes that the network sees."""
        return tuple(self.configuration_manager.spacing[-len(self.configuration_manager.patch_size) :])

    def initialize(self) -> None:
        """Network, optimizer and loss; the weights come from the seed, where there is one."""
        self._seed(0)
        super().initialize()

    def _seed(self, step: int) -> None:
        """One random stream per epoch and process, so that a continued training draws as one that ran through."""
        if self.settings.seed is None:
            return
        state = np.random.SeedSequence([self.settings.seed, step, self.local_rank]).generate_state(3)
        random.seed(int(state[0]))
        np.random.seed(int(state[1]))  # noqa: NPY002 - what nnU-Net's loader draws from
        torch.manual_seed(int(state[2]))

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, where a seed is set."""
        self._seed(self.current_epoch + 1)
        super().on_train_epoch_start()

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net does, but a run that is killed while it saves leaves the last checkpoint whole."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Continue with the options that the checkpoint was trained with."""
        super().load_checkpoint(filename_or_checkpoint)
        kept = TrainerOptions.from_plans(self.my_init_kwargs["plans"], self.options)
        if kept != self.settings:
            self.print_to_log_file(f"Options of the checkpoint are used: {kept}")
            self.settings = kept
            self.plans_manager.plans[PLANS_KEY] = kept.to_plans()
            self._apply_settings()
            self.loss = self._build_loss()


class SurfaceLossTrainer(KitsTrainer):
    """Dice and cross-entropy plus the overlap of the surfaces, whose weight rises from 0."""

    def _build_loss(self) -> torch.nn.Module:
        return WithExtraTerm(super()._build_loss(), self._surface_loss())

    def _surface_loss(self) -> SurfaceOverlapLoss:
        settings = self.settings
        radius = settings.surface_radius or surface_radius(self.spacing, settings.surface_tolerance_mm)
        return SurfaceOverlapLoss(
            radius[-len(self.spacing) :],
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            batch_dice=self.configuration_manager.batch_dice,
            gather=_gather if self.is_ddp else None,
        )

    def on_train_epoch_start(self) -> None:
        """Set the weight of this epoch: computed from its number, so it is right after a resumed checkpoint."""
        super().on_train_epoch_start()
        self.loss.weight = self.settings.surface_weight * ramp(self.current_epoch, self.num_epochs)


def _gather(sums: torch.Tensor) -> torch.Tensor:
    """Sums over the processes of a distributed training, with gradient."""
    gathered: torch.Tensor = AllGatherGrad.apply(sums)
    return gathered.sum(0)


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


_TRAINERS: Final = (
    SurfaceLossTrainer,
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
        body = {
            "__module__": module["__name__"],
            "__doc__": f"{trainer.__name__} for {epochs} epochs.",
            "epochs": epochs,
        }
        module[name] = type(name, (trainer,), body)
        names.append(name)
    return names


__all__ = [name for t in _TRAINERS for name in (t.__name__, *short_variants(t, globals()))]

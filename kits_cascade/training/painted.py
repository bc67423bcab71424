"""The trainers of the shipped networks: nnU-Net's own training on painted CT, on processors.

Painted cases differ in anatomy, tissue and scanner already, so the costly transforms of intensity are left out. Left
and right may be exchanged, up and down may not: a patient lies as he lies.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from kits_cascade.training.augment import OnChannels
from kits_cascade.training.base import KitsTrainer, changes_intensity
from kits_cascade.training.devices import fast_bfloat16, for_processor
from kits_cascade.training.heads import EvenCases

_CHEAP: Final = (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform)
_SIDEWAYS: Final = 2  # the axis of a patch that runs from left to right


def _is_cheap(transform: Any) -> bool:
    inner = transform
    while isinstance(inner, (RandomTransform, OnChannels)):
        inner = inner.transform
    return isinstance(inner, _CHEAP)


class PaintedTrainer(KitsTrainer):
    """Dice and cross-entropy with AdamW, without deep supervision."""

    options: ClassVar[dict[str, Any]] = {
        "num_iterations_per_epoch": 50,
        "num_val_iterations_per_epoch": 6,
        "num_epochs": 60,
        "save_every": 1,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 1e-3,
        "deep_supervision": False,
        "mirror": False,
    }
    lesion_share: ClassVar[float | None] = None  # of patches that show a lesion; None: as nnU-Net draws them

    def initialize(self) -> None:
        """As nnU-Net does, then lay the network out for the processor."""
        super().initialize()
        if self.lesion_share is not None:
            self.oversample_foreground_percent = self.lesion_share
        if self.device.type == "cpu":
            self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            self.network.forward = for_processor(self.network.forward, fast_bfloat16(self.device), last=True)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's hook
        """As nnU-Net does; mirrored sideways only, and in training only."""
        rotation, dummy, size, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy, size, (_SIDEWAYS,)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own, without the costly ones of intensity."""
        whole = super().get_training_transforms(*args, **kwargs)
        return ComposeTransforms([t for t in whole.transforms if not changes_intensity(t) or _is_cheap(t)])


class PaintedMassesTrainer(PaintedTrainer):
    """A lesion in most patches, cysts as often as tumours."""

    lesion_share: ClassVar[float | None] = 0.8

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Cysts are the smaller part of the masses, and the first to be missed."""
        training, validation = super().get_tr_and_val_datasets()
        return EvenCases(training), EvenCases(validation)


__all__ = [name for name, kind in vars().items() if isinstance(kind, type) and name.startswith("Painted")]

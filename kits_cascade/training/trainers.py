"""The trainers that ``nnUNetv2_train -tr NAME`` finds. Their names live in checkpoints and folders: never rename one.

A new trainer is a class in this file, and nothing else: its name and its short forms are read from here. Options come
from the plans file's ``kits_cascade`` entry (:mod:`kits_cascade.training.trainer_options`), or from the class attribute
``options``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from kits_cascade.training.base import KitsTrainer

EPOCHS: Final = (5, 50, 100, 250)  # the short variants, named as nnU-Net names them


class SurfaceLossTrainer(KitsTrainer):
    """Dice and cross-entropy plus the overlap of the surfaces, whose weight rises from 0."""

    options: ClassVar[dict[str, Any]] = {"loss": "surface"}


class BoundaryLossTrainer(KitsTrainer):
    """Dice and cross-entropy plus probability times signed distance to the true surface (Kervadec et al.)."""

    options: ClassVar[dict[str, Any]] = {"loss": "boundary"}


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


def short_variants(trainer: type[KitsTrainer], module: dict[str, Any]) -> list[str]:
    """Put ``trainer``'s 5, 50, 100 and 250 epoch forms into a module's namespace; their names."""
    names = []
    for epochs in EPOCHS:
        name = f"{trainer.__name__}_{epochs}epochs"
        text = f"{trainer.__name__} for {epochs} epochs."
        module[name] = type(name, (trainer,), {"__module__": module["__name__"], "__doc__": text, "epochs": epochs})
        names.append(name)
    return names


TRAINERS: Final = [kind for kind in vars().values() if isinstance(kind, type) and issubclass(kind, KitsTrainer)]
# The names that nnU-Net can ask for.
__all__ = [name for kind in TRAINERS for name in (kind.__name__, *short_variants(kind, globals()))]

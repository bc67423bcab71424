"""Which systems there are: what is trained and compared, as rows of pure data.

A new system is a row here and a preset ``plans/NAME.json``; a network that no library has is a file in
``training/networks/``, whose class the preset names. It needs no trainer of its own: the plans name the network, and
the preset's ``training`` the options of the training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kits_cascade.errors import UsageError
from kits_cascade.stages import SOURCE_STAGE, STAGES, Stage


@dataclass(frozen=True)
class Knob:
    """One thing that `tune` searches: an option of the training, or an argument of the network."""

    name: str
    place: str = "training"  # or network
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[float | int | str, ...] = ()  # instead of a range


@dataclass(frozen=True)
class System:
    """One way from a CT to its labels."""

    name: str  # on the command line
    title: str
    source: str  # who described it
    stages: tuple[Stage, ...]  # the cascade's three, or one on the source dataset
    preset: str  # of the plans
    pretrained: str = ""  # starting weights, where there are any
    extra: str = ""  # the optional packages that it needs
    search: tuple[Knob, ...] = ()  # what `tune` searches

    @property
    def is_single(self) -> bool:
        """One network for the whole scan."""
        return len(self.stages) == 1


def single_stage(configuration: str = "3d_fullres", trainer: str = "KitsTrainer") -> tuple[Stage, ...]:
    """The stages of a system with one network on the source dataset."""
    return (replace(SOURCE_STAGE, configuration=configuration, trainer=trainer),)


CASCADE: Final = System(
    name="cascade",
    title="coarse to fine: kidneys on the whole scan, then kidneys and masses where they are",
    source="after the winner of KiTS21",
    stages=STAGES,
    preset="default",
)
_EXTRA: Final = "systems"
_RESNETS: Final = "KiTS23 with nnU-Net, ResNets and a plain 3D U-Net"
_MONAI: Final = "KiTS19 with MONAI's residual 3D U-Net and 2D UNETR"
_NNUNET: Final = "nnU-Net itself"
# What is worth a search for any network; what a network adds stands in its row.
_TRAINING: Final = (
    Knob("learning_rate", low=1e-5, high=1e-2, log=True),
    Knob("weight_decay", low=1e-7, high=1e-2, log=True),
    Knob("loss", choices=("dice_ce", "focal_tversky", "cross_entropy")),
)
_TRANSFORMER: Final = (
    Knob("feature_size", "network", choices=(8, 16, 32)),
    Knob("hidden_size", "network", choices=(384, 768)),
    Knob("dropout_rate", "network", low=0.0, high=0.3),
)
SYSTEMS: tuple[System, ...] = (
    CASCADE,
    System(
        "medicalnet-resnet10", "U-Net on MedicalNet's 3D ResNet-10, 2 mm", _RESNETS, single_stage(),
        "medicalnet-resnet10", "resnet_10_23dataset.pth", _EXTRA, _TRAINING,
    ),
    System(
        "medicalnet-resnet50", "U-Net on MedicalNet's 3D ResNet-50, 2 mm", _RESNETS, single_stage(),
        "medicalnet-resnet50", "resnet_50_23dataset.pth", _EXTRA, _TRAINING,
    ),
    System("unet3d", "plain 3D U-Net, 2 mm", _RESNETS, single_stage(), "unet3d", extra=_EXTRA, search=_TRAINING),
    System("nnunet-2mm", "nnU-Net's plain U-Net, 2 mm, 100 epochs", _RESNETS, single_stage(), "nnunet-2mm"),
    System(
        "resunet3d", "3D U-Net with residual units", _MONAI, single_stage(), "resunet3d",
        extra=_EXTRA, search=_TRAINING,
    ),
    System(
        "unetr2d", "UNETR on axial slices", _MONAI, single_stage("2d"), "unetr2d",
        extra=_EXTRA, search=_TRAINING + _TRANSFORMER,
    ),
    System(
        "unet2d", "2D U-Net on axial slices", "KiTS19 with a 2D U-Net", single_stage("2d"), "unet2d",
        extra=_EXTRA, search=_TRAINING,
    ),
    System(
        "resnet18-unet", "3D U-Net with a ResNet-18 encoder, focal Tversky loss",
        "KiTS23 with a ResNet-18 U-Net in Keras", single_stage(), "resnet18-unet", extra=_EXTRA, search=_TRAINING,
    ),
    System("nnunet", "nnU-Net's own 3d_fullres", _NNUNET, single_stage(), "nnunet"),
    System("nnunet-resenc-l", "nnU-Net's own 3d_fullres, ResEnc L", _NNUNET, single_stage(), "nnunet-resenc-l"),
)  # fmt: skip


def find_system(name: str) -> System:
    """The row of this name."""
    found = next((system for system in SYSTEMS if system.name == name), None)
    if found is None:
        raise UsageError(f"there is no system {name!r}; there are {', '.join(system.name for system in SYSTEMS)}")
    return found

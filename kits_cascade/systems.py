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
class System:
    """One way from a CT to its labels."""

    name: str  # on the command line
    title: str
    source: str  # who described it
    stages: tuple[Stage, ...]  # the cascade's three, or one on the source dataset
    preset: str  # of the plans
    pretrained: str = ""  # starting weights, where there are any
    extra: str = ""  # the optional packages that it needs

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
SYSTEMS: tuple[System, ...] = (CASCADE,)


def find_system(name: str) -> System:
    """The row of this name."""
    found = next((system for system in SYSTEMS if system.name == name), None)
    if found is None:
        raise UsageError(f"there is no system {name!r}; there are {', '.join(system.name for system in SYSTEMS)}")
    return found

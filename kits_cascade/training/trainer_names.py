"""The names of our trainers, for whoever must know them without loading any of them (a test holds the list complete).

All of them train the network that the plans name.
"""

from typing import Final

OUR_TRAINERS: Final = frozenset(
    {
        "BoundaryLossTrainer",
        "DemoMassesTrainer",
        "DemoQuickMassesTrainer",
        "DemoQuickSurfaceLossTrainer",
        "DemoQuickTrainer",
        "DemoSurfaceLossTrainer",
        "DemoTrainer",
        "KidneySurfaceLossTrainer",
        "KidneyTrainer",
        "KitsTrainer",
        "MassSurfaceLossTrainer",
        "MassTrainer",
        "PaintedMassesTrainer",
        "PaintedTrainer",
        "RegionSurfaceLossTrainer",
        "RegionTrainer",
        "SurfaceLossTrainer",
        "TumorSurfaceLossTrainer",
        "TumorTrainer",
    }
)

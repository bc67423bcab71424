"""The source dataset and the three stages. Pure data: ids and names are fixed, and may be re-mapped by options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from kits_cascade.labels import PAINT_ORDER, REGIONS

SOURCE_ID: Final = 220
SOURCE_NAME: Final = "KiTS"
ROI_MARGIN_MM: Final = 20.0
FINE_SPACING_MM: Final = 0.78125
PLANS_NAME: Final = "nnUNetPlans"
READER: Final = "NibabelIOWithReorient"

# The second channel of stage 223. nnU-Net picks the normalisation by the channel's name, and gives all names that it
# does not know a z-score; by this name the mask stays 0 and 1, and the trainers recognise it by this name too.
KIDNEY_CHANNEL: Final = "noNorm"

# Stage 223 has labels of its own, so that both of its regions are unions of small label values.
MASSES_CYST: Final = 1
MASSES_TUMOR: Final = 2


def dataset_name(dataset_id: int, name: str) -> str:
    """nnU-Net's folder name of a dataset."""
    return f"Dataset{dataset_id:03d}_{name}"


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade: a dataset, a configuration and a trainer."""

    key: str
    dataset_id: int
    name: str
    configuration: str
    trainer: str
    channels: dict[str, str]
    labels: dict[str, Any]  # in nnU-Net's form; the order is the order of the output channels
    regions_class_order: tuple[int, ...] | None = None
    title: str = ""
    cropped: bool = field(default=True)

    @property
    def dataset(self) -> str:
        """Folder name, such as Dataset222_KidneyFine."""
        return dataset_name(self.dataset_id, self.name)


SOURCE_LABELS: Final[dict[str, Any]] = {
    "background": 0,
    # nnU-Net: a region of a single label is written as that label, a one-element list is not a region.
    **{r.name: list(r.labels) if len(r.labels) > 1 else r.labels[0] for r in REGIONS},
}
SOURCE_CLASS_ORDER: Final = PAINT_ORDER

COARSE: Final = Stage(
    key="coarse",
    dataset_id=221,
    name="KidneyCoarse",
    configuration="3d_lowres",
    trainer="nnUNetTrainer",
    channels={"0": "CT"},
    labels={"background": 0, "kidney": 1},
    title="kidneys with their masses, low resolution, full field of view",
    cropped=False,
)
KIDNEY_STAGE: Final = Stage(
    key="kidney",
    dataset_id=222,
    name="KidneyFine",
    configuration="3d_fullres",
    trainer="SurfaceLossTrainer",
    channels={"0": "CT"},
    labels={"background": 0, "kidney": 1},
    title="kidneys with their masses, full resolution, in the ROI",
)
MASSES_STAGE: Final = Stage(
    key="masses",
    dataset_id=223,
    name="MassesTumor",
    configuration="3d_fullres",
    trainer="SurfaceLossTrainer",
    channels={"0": "CT", "1": KIDNEY_CHANNEL},
    labels={"background": 0, "masses": [MASSES_CYST, MASSES_TUMOR], "tumor": MASSES_TUMOR},
    regions_class_order=(MASSES_CYST, MASSES_TUMOR),
    title="masses and tumours, full resolution, in the ROI, with the kidney mask as second channel",
)
STAGES: Final = (COARSE, KIDNEY_STAGE, MASSES_STAGE)
# The source dataset itself, for systems of a single network that see the whole scan; nothing is derived for it.
SOURCE_STAGE: Final = Stage(
    key="source",
    dataset_id=SOURCE_ID,
    name=SOURCE_NAME,
    configuration="3d_fullres",
    trainer="KitsTrainer",
    channels={"0": "CT"},
    labels=SOURCE_LABELS,
    regions_class_order=SOURCE_CLASS_ORDER,
    title="kidneys, tumours and cysts, in the whole scan",
    cropped=False,
)
STAGE_BY_KEY: Final = {stage.key: stage for stage in STAGES}

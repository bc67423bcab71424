"""Networks and images for the prediction benchmarks.

Speed does not depend on what a network has learned, but on its size, and the cascade's also on where it finds kidneys.
So these networks have a real U-Net's cost, and answer by thresholds: the labelled voxels of the images are lifted above
all else.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.stages import COARSE, FINE_SPACING_MM, KIDNEY_STAGE, MASSES_STAGE, PLANS_NAME
from kits_cascade.synthetic.phantom import paint_ct
from kits_cascade.volumes.nifti import read_labels, write_volume
from kits_cascade.volumes.volume import volume_from_array
from tests.benchmarks.threshold_unet import CLIP, ThresholdUNet
from tests.inference import handmade

# Kidney and fat are told apart midway between them: else the surface would move by however much the resampling happens
# to blur there, and that depends on where a crop's grid begins. A cyst gets a thin shell of tumour.
KIDNEY_HU, TUMOR_HU, CYST_HU = 1700, 2100, 2500


@dataclass(frozen=True)
class Size:
    """Patches, spacings and features of the networks."""

    patch: tuple[int, int, int] = (96, 96, 96)
    coarse_patch: tuple[int, int, int] = (64, 80, 80)
    spacing: float = FINE_SPACING_MM
    coarse_spacing: float = 2.5
    features: tuple[int, ...] = (16, 32, 64)
    convolutions: int = 1  # in a stage


REAL = Size()
NNUNET = Size(features=(32, 64, 128, 256, 320), convolutions=2)  # as nnU-Net plans it for a GPU of 8 GB
DEMO = Size((40, 48, 56), (32, 48, 48), 2.5, 6.0, (16, 32, 64, 96))


def write_models(results: Path, size: Size = REAL):
    """Models of all stages."""
    torch.manual_seed(0)
    for stage in (COARSE, KIDNEY_STAGE, MASSES_STAGE):
        coarse = stage is COARSE
        spacing = [size.coarse_spacing if coarse else size.spacing] * 3
        patch = list(size.coarse_patch if coarse else size.patch)
        plans = handmade.plans(stage, patch, spacing, torch_resampling=coarse)
        channels = len(stage.channels)
        plans["foreground_intensity_properties_per_channel"] = {str(c): CLIP for c in range(channels)}
        plans["configurations"][stage.configuration]["architecture"] = {
            "network_class_name": "tests.benchmarks.threshold_unet.ThresholdUNet",
            "arch_kwargs": {"features": list(size.features), "convolutions": size.convolutions},
            "_kw_requires_import": [],
        }
        folder = results / stage.dataset / f"nnUNetTrainer__{PLANS_NAME}__{stage.configuration}"
        (folder / "fold_0").mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "network_weights": ThresholdUNet(channels, 2, size.features, size.convolutions).state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": stage.configuration, "fold": 0},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(handmade.dataset_json(stage)))
    return results


def write_image(mask: Path, image: Path, truth: Path, slices: int | None = None) -> tuple[int, ...]:
    """A painted CT around a published mask, stored as KiTS stores; ``slices`` lengthens or cuts the scan. Its shape."""
    labels = read_labels(mask)
    if slices is not None:
        missing = max(0, slices - labels.shape[0])
        array = np.pad(labels.array, ((0, missing), (0, 0), (0, 0)))[:slices]
        labels = volume_from_array(array, labels.affine)
    painted = paint_ct(labels, 0)
    for label, hu in ((KIDNEY, KIDNEY_HU), (CYST, CYST_HU), (TUMOR, TUMOR_HU)):
        painted.array[labels.array == label] = hu
    write_volume(image, painted)
    write_volume(truth, labels)
    return labels.shape

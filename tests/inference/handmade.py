"""A cascade whose networks are made by hand: they tell kidneys, masses and tumours apart by their HU.

Real nnU-Net model folders, so that nnU-Net's own commands take them too (run from the repository's root).
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kits_cascade.labels import CYST, KIDNEY, TUMOR
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE, PLANS_NAME
from kits_cascade.volumes.volume import volume_from_array

CLIP = {"mean": 50.0, "std": 100.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
FAT, PARENCHYMA, SOLID, WATER = -100, 150, 260, 5
PLAIN_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
PATCH = {"coarse": [16, 32, 32], "kidney": [32, 32, 32], "masses": [32, 32, 32]}


class ThresholdNet(nn.Module):
    """Smooths the CT, and turns distances from thresholds into logits. A second input is the kidney mask."""

    def __init__(self, input_channels, num_classes, gain=20.0, deep_supervision=False, only=None):
        super().__init__()
        self.heads = {None: slice(None), "masses": slice(0, 1), "tumor": slice(1, 2)}[only]
        self.gain = nn.Parameter(torch.tensor(gain))
        self.smooth = nn.AvgPool3d(3, 1, padding=1, count_include_pad=False)
        self.two = input_channels == 2

    def forward(self, x):
        hu = self.smooth(x[:, :1]) * CLIP["std"] + CLIP["mean"]
        if not self.two:
            kidney = (hu + 40) / 100 * self.gain
            return torch.cat([-kidney, kidney], dim=1)
        inside = (self.smooth(x[:, 1:]) - 0.9) * self.gain  # away from the surface, where kidney and fat mix
        tumor = (hu - 205) / 100 * self.gain
        masses = torch.minimum(torch.maximum((80 - hu) / 100 * self.gain, tumor), inside)
        tumor = torch.minimum(tumor, inside)
        return torch.cat([masses, tumor], dim=1)[:, self.heads]


def plans(stage, patch, spacing, torch_resampling=False):
    resampling = "resample_torch_fornnunet" if torch_resampling else "resample_data_or_seg_to_shape"
    common = {"force_separate_z": None} if torch_resampling else {"order_z": 0, "force_separate_z": None}
    order = (lambda n: {}) if torch_resampling else (lambda n: {"order": n})
    channels = len(stage.channels)
    configuration = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": [64, 64, 64],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization", "NoNormalization"][:channels],
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, **order(3), **common},
        "resampling_fn_seg_kwargs": {"is_seg": True, **order(1), **common},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **order(1), **common},
        "architecture": {
            "network_class_name": "tests.inference.handmade.ThresholdNet",
            "arch_kwargs": {"gain": 20.0},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": stage.dataset,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": [1, 1, 1],
        "original_median_shape_after_transp": [64, 64, 64],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {stage.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): CLIP for c in range(channels)},
    }


def unet_plan(features, strides=((1, 1, 1), (2, 2, 2)), network=PLAIN_UNET):
    """A plan's architecture: a small U-Net of known parts."""
    arguments = {
        "n_stages": 2,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    named = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return {"network_class_name": network, "arch_kwargs": arguments, "_kw_requires_import": named}


def dataset_json(stage):
    content = {"channel_names": stage.channels, "labels": stage.labels, "numTraining": 1, "file_ending": ".nii.gz"}
    return content | ({"regions_class_order": list(stage.regions_class_order)} if stage.regions_class_order else {})


def write_model(results: Path, stage, trainer="nnUNetTrainer", spacing=None, folds=(0,), **changes) -> Path:
    """A trained model of a stage in nnUNet_results' layout."""
    folder = results / stage.dataset / f"{trainer}__{PLANS_NAME}__{stage.configuration}"
    spacing = spacing or ([3.0, 2.5, 2.5] if stage is COARSE else [1.5, 1.5, 1.5])
    content = plans(stage, PATCH[stage.key], spacing, torch_resampling=stage is COARSE)
    content.update(changes)
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        net = ThresholdNet(len(stage.channels), 2)
        checkpoint = {
            "network_weights": net.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": stage.configuration, "fold": fold, "plans": content},
            "inference_allowed_mirroring_axes": (0,),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset_json(stage)))
    return folder


def write_models(results: Path, **options) -> Path:
    """All three stages."""
    for stage in (COARSE, KIDNEY_STAGE, MASSES_STAGE):
        write_model(results, stage, **options)
    return results


def ball(shape, spacing, centre, radius):
    """Ellipsoid in mm."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a * s - c) / r) ** 2 for a, s, c, r in zip(axes, spacing, centre, np.broadcast_to(radius, 3))) <= 1


def make_case(spacing=(3.0, 1.6, 1.4), size_mm=(150, 190, 240), seed=0, noise=6.0):
    """A volume of fat with two kidneys, a tumour and a cyst: CT and labels."""
    shape = tuple(round(length / s) for length, s in zip(size_mm, spacing))
    z, y, x = size_mm
    labels = np.zeros(shape, np.uint8)
    for side in (0.27, 0.73):
        labels[ball(shape, spacing, (z * 0.5, y * 0.5, x * side), (38, 20, 20))] = KIDNEY
    labels[ball(shape, spacing, (z * 0.5 + 18, y * 0.5 + 12, x * 0.27), 13)] = TUMOR
    labels[ball(shape, spacing, (z * 0.5 - 15, y * 0.5 - 10, x * 0.73), 10)] = CYST
    hu = np.array([FAT, PARENCHYMA, SOLID, WATER])[labels]
    hu = hu + np.random.default_rng(seed).normal(scale=noise, size=shape)
    image = volume_from_array(hu.round().astype(np.int16), spacing=spacing)
    return image, image.with_array(labels)


def dice(a, b):
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if total == 0 else 2 * np.count_nonzero(a & b) / total

"""Make the presets default-8gb, default-24gb, default-40gb and resenc-l from the geometry of KiTS23.

nnU-Net's own planner is run on a fingerprint that is put together from a table of KiTS23's 489 cases (columns case, n0,
n1, n2, s0_mm, s1_mm, s2_mm, lo0, hi0, ... in z, y, x: shape, spacing, and the box around kidneys and masses). What it
says about patch, batch and network goes into the preset, with the settings that are ours: see README.md beside.

    python plans/make_presets.py --geometry geometry.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.stages import FINE_SPACING_MM, READER, ROI_MARGIN_MM, STAGES, Stage
from kits_cascade.volumes.geometry import Box

TORCH = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
# Of a preprocessed CT of kidneys; they change nothing in what is taken over from the plans.
INTENSITIES = {"mean": 105.0, "median": 107.0, "std": 75.0, "min": -900.0, "max": 1500.0}
PRESETS = {
    "default-8gb": ("ExperimentPlanner", "nnUNetPlans", 8),
    "default-24gb": ("ExperimentPlanner", "nnUNetPlans", 24),
    "default-40gb": ("ExperimentPlanner", "nnUNetPlans", 40),
    "resenc-l": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans", 24),
}


def read_geometry(path: Path) -> list[tuple[tuple[int, ...], tuple[float, ...], Box]]:
    """Shape, spacing and box around kidneys and masses of each case; z, y, x."""
    with path.open(newline="") as stream:
        return [
            (
                tuple(int(row[f"n{axis}"]) for axis in range(3)),
                tuple(float(row[f"s{axis}_mm"]) for axis in range(3)),
                Box(
                    (int(row["lo0"]), int(row["lo1"]), int(row["lo2"])),
                    (int(row["hi0"]), int(row["hi1"]), int(row["hi2"])),
                ),
            )
            for row in csv.DictReader(stream)
        ]


def fingerprint(stage: Stage, geometry: list[tuple[Any, Any, Box]]) -> dict[str, Any]:
    """What nnU-Net's planner wants to know: whole scans for the coarse stage, the ROI for the others."""
    boxes = [box.grown(ROI_MARGIN_MM, spacing).clipped(shape).shape for shape, spacing, box in geometry]
    shapes = boxes if stage.cropped else [shape for shape, _, _ in geometry]
    intensities = {**INTENSITIES, "percentile_99_5": 291.0, "percentile_00_5": -74.0}
    return {
        "spacings": [spacing for _, spacing, _ in geometry],
        "shapes_after_crop": shapes,
        "foreground_intensity_properties_per_channel": {channel: intensities for channel in stage.channels},
        "median_relative_size_after_cropping": 1.0,
    }


def planned(stage: Stage, geometry: list[Any], planner_name: str, plans_name: str, memory: int) -> dict[str, Any]:
    """nnU-Net's plans for a stage."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    planner = getattr(residual_encoder_unet_planners, planner_name, ExperimentPlanner)
    with tempfile.TemporaryDirectory() as folder:
        raw, preprocessed = Path(folder) / "raw" / stage.dataset, Path(folder) / "preprocessed" / stage.dataset
        NnunetFolders(raw.parent, preprocessed.parent, Path(folder) / "results").export()
        raw.mkdir(parents=True)
        preprocessed.mkdir(parents=True)
        files = {"images": ["image.nii.gz"] * len(stage.channels), "label": "label.nii.gz"}  # named, never opened
        content = {
            "channel_names": stage.channels,
            "labels": stage.labels,
            "numTraining": len(geometry),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": READER,
            "dataset": {f"case_{number:05d}": files for number in range(len(geometry))},
        }
        if stage.regions_class_order is not None:
            content["regions_class_order"] = list(stage.regions_class_order)
        (raw / "dataset.json").write_text(json.dumps(content))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint(stage, geometry)))
        with contextlib.redirect_stdout(io.StringIO()):
            plans: dict[str, Any] = planner(
                stage.dataset,
                gpu_memory_target_in_gb=memory,
                plans_name=plans_name,
                overwrite_target_spacing=[FINE_SPACING_MM] * 3,
                suppress_transpose=True,
            ).plan_experiment()
    return plans


def overlay(stage: Stage, plans: dict[str, Any]) -> dict[str, Any]:
    """The part of the plans that the preset takes over, with our own settings."""
    configuration = plans["configurations"][stage.configuration]
    architecture = configuration["architecture"]
    result = {
        "spacing": [float(f"{size:.6g}") for size in configuration["spacing"]],
        "patch_size": [int(size) for size in configuration["patch_size"]],
        "batch_size": int(configuration["batch_size"]),
        "batch_dice": bool(configuration["batch_dice"]),
        "architecture": json.loads(json.dumps(architecture)),
    }
    if stage.cropped:
        for what, order, is_seg in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
            result[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
            result[f"resampling_fn_{what}_kwargs"] = {
                "is_seg": is_seg,
                "order": order,
                "order_z": 0,
                "force_separate_z": None,
            }
    else:
        for what in ("data", "seg", "probabilities"):
            result[f"resampling_fn_{what}"] = "resample_torch_fornnunet"
            result[f"resampling_fn_{what}_kwargs"] = {**TORCH, "is_seg": what == "seg"}
    return result


def main() -> None:
    """Write all presets beside this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", type=Path, required=True, help="table of KiTS23's cases (CSV)")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    arguments = parser.parse_args()
    geometry = read_geometry(arguments.geometry)
    for name in arguments.only:
        planner, plans_name, memory = PRESETS[name]
        stages = {
            stage.key: {stage.configuration: overlay(stage, planned(stage, geometry, planner, plans_name, memory))}
            for stage in STAGES
        }
        preset = {
            "title": f"{memory} GB of GPU memory, from nnU-Net's {planner} on the geometry of KiTS23",
            "made_by": "plans/make_presets.py",
            "planner": planner,
            "plans_name": plans_name,
            "gpu_memory_gb": memory,
            "stages": stages,
        }
        path = arguments.output / f"{name}.json"
        path.write_text(json.dumps(preset, indent=2) + "\n", encoding="utf-8")
        for key, configurations in stages.items():
            for configuration, values in configurations.items():
                size = f"spacing {values['spacing']}, patch {values['patch_size']}, batch {values['batch_size']}"
                print(f"{name}: {key} {configuration}: {size}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

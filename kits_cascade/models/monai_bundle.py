"""A network as a MONAI bundle: a folder that MONAI's own tools load and run, with nnU-Net's way of seeing a CT in it.

MONAI reads what is written here by names: classes and arguments stand in ``configs/inference.json``. No MONAI is
needed to write it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import atomic_path, read_json, write_json, write_text
from kits_cascade.models.card import About
from kits_cascade.models.checkpoint import check_plans, load_checkpoint, pack_weights
from kits_cascade.models.network import Models, StageModel
from kits_cascade.version import __version__

_SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_MONAI: Final = "1.4.0"  # the oldest that has all that is named here
_RAS: Final = [["L", "R"], ["P", "A"], ["I", "S"]]
_IMAGE, _KIDNEY, _PRED = "image", "kidney", "pred"
_GRID: Final = "grid"  # the image as it was loaded, on whose voxels the labels are written
_OVERLAP: Final = 0.5  # of neighbouring tiles, as nnU-Net has it
_KNOWN_NORMS: Final = ("CTNormalization", "NoNormalization")


def export_monai(
    models: Models, out: Path, *, half: bool = False, about: About | None = None, overwrite: bool = False
) -> list[Path]:
    """One bundle below ``out`` for each network of ``models`` (and each fold, where there are several)."""
    folders = [(model, fold, out / _folder_name(model, fold)) for model in models.all for fold in model.folds]
    there = [str(folder) for _, _, folder in folders if folder.exists()]
    if there and not overwrite:
        raise ModelError(f"{', '.join(there)} is there already; give --overwrite to replace it")
    written = []
    for model, fold, folder in folders:
        check_plans(model.folder / "plans.json")
        config = inference_config(model)  # what cannot be told is found out before anything is written
        shutil.rmtree(folder, ignore_errors=True)
        _write(model, model.folder / f"fold_{fold}" / model.checkpoint, folder, config, half, about or About())
        written.append(folder)
    return written


def _folder_name(model: StageModel, fold: int | str) -> str:
    return model.label if len(model.folds) == 1 else f"{model.label}_fold_{fold}"


def _write(model: StageModel, checkpoint: Path, folder: Path, config: dict[str, Any], half: bool, about: About) -> None:
    import torch

    weights = pack_weights(load_checkpoint(checkpoint)["network_weights"], half)
    with atomic_path(folder / "models" / "model.pt") as temporary, temporary.open("wb") as stream:
        torch.save(weights, stream)
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(model.folder / name, folder / "models" / name)
    write_json(folder / "configs" / "inference.json", config)
    write_json(folder / "configs" / "metadata.json", _metadata(model, about))
    write_text(folder / "docs" / "README.md", _readme(model, about))


def inference_config(model: StageModel) -> dict[str, Any]:
    """``configs/inference.json``: MONAI's transforms, tiles and evaluator around the network of the plans."""
    plan = _Plan(model)
    return {
        "imports": ["$import functools", "$import glob", "$import monai", "$import pydoc", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": plan.datalist(),
        "network_def": plan.network(),
        "network": "$@network_def.to(@device)",
        "preprocessing": _compose(plan.preprocessing()),
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False, "num_workers": 0,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": plan.patch, "sw_batch_size": 1, "overlap": _OVERLAP,
            "mode": "gaussian",
        },
        "postprocessing": _compose(plan.postprocessing()),
        "handlers": [
            {
                "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _compose(transforms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": transforms}


class _Plan:
    """What of nnU-Net's plan and data set a bundle tells, in MONAI's words and MONAI's order of axes (x, y, z)."""

    def __init__(self, model: StageModel) -> None:
        plans, self._dataset = (read_json(model.folder / name) for name in ("plans.json", "dataset.json"))
        self._place = model.folder
        self._settings = plans["configurations"][model.configuration]
        self._intensities = plans["foreground_intensity_properties_per_channel"]
        self.patch: list[int] = self._settings["patch_size"]
        if len(self.patch) != 3 or "previous_stage" in self._settings:
            raise self._refusal("looks at single slices, or at the result of another network")
        # MONAI's axes x, y, z are 1, 2, 3; nnU-Net's z, y, x, turned as the plan has it.
        self._forward = [int(axis) for axis in plans.get("transpose_forward", (0, 1, 2))]
        self.axes = [0, *(3 - axis for axis in self._forward)]
        norms = self._settings["normalization_schemes"]
        if norms[0] != _KNOWN_NORMS[0] or any(norm != _KNOWN_NORMS[1] for norm in norms[1:]) or len(norms) > 2:
            raise self._refusal(f"has inputs of the kinds {', '.join(norms)}")
        self.inputs = len(norms)

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"{self._place}: cannot be written as a MONAI bundle: it {why}; a CT and a mask are what a bundle tells of"
        )

    @property
    def keys(self) -> list[str]:
        """The inputs."""
        return [_IMAGE, _KIDNEY][: self.inputs]

    @property
    def regions(self) -> list[int] | None:
        """The label that each channel paints, where channels are regions."""
        order = self._dataset.get("regions_class_order")
        return None if order is None else [int(label) for label in order]

    @property
    def outputs(self) -> int:
        """Channels of the answer."""
        return len(self._dataset["labels"]) - (self.regions is not None)

    @property
    def spacing(self) -> list[float]:
        """Voxel size in mm, x, y, z."""
        turned = dict(zip(self._forward, self._settings["spacing"], strict=True))
        return [float(turned[axis]) for axis in (2, 1, 0)]

    def datalist(self) -> str:
        """The cases of a folder, named as nnU-Net names them."""
        files = ", ".join(f"'{key}': path[:-11] + '{number:04d}.nii.gz'" for number, key in enumerate(self.keys))
        return f"$[{{{files}}} for path in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"

    def network(self) -> dict[str, Any]:
        """The network's class and arguments; layers among them are looked up by their names."""
        architecture = self._settings["architecture"]
        name, arguments = architecture["network_class_name"], dict(architecture["arch_kwargs"])
        for key in architecture["_kw_requires_import"]:
            if arguments.get(key) is not None:
                arguments[key] = f"$pydoc.locate('{arguments[key]}')"
        if name.startswith("monai."):
            return {"_target_": name, "in_channels": self.inputs, "out_channels": self.outputs, **arguments}
        own = {"input_channels": self.inputs, "num_classes": self.outputs, "deep_supervision": False}
        return {"_target_": name, **own, **arguments}

    def preprocessing(self) -> list[dict[str, Any]]:
        """As nnU-Net prepares a CT: clipped, normalised, resampled, its axes turned."""
        ct = self._intensities["0"]
        low, high = ct["percentile_00_5"], ct["percentile_99_5"]
        steps: list[dict[str, Any]] = [
            {"_target_": "LoadImaged", "keys": self.keys, "ensure_channel_first": True},
            {"_target_": "CopyItemsd", "keys": _IMAGE, "names": _GRID},
            {"_target_": "Orientationd", "keys": self.keys, "axcodes": "RAS", "labels": _RAS},
            {
                "_target_": "ScaleIntensityRanged", "keys": _IMAGE, "a_min": low, "a_max": high, "b_min": low,
                "b_max": high, "clip": True,
            },
            {
                "_target_": "NormalizeIntensityd", "keys": _IMAGE, "subtrahend": ct["mean"],
                "divisor": max(float(ct["std"]), 1e-8),
            },
            {"_target_": "Lambdad", "keys": self.keys, "func": self._resize()},
        ]  # fmt: skip
        if self.inputs > 1:
            steps += [
                {"_target_": "Lambdad", "keys": _KIDNEY, "func": "$lambda mask: (mask > 0.5).float()"},
                {"_target_": "ConcatItemsd", "keys": self.keys, "name": _IMAGE},
            ]
        return [*steps, {"_target_": "Transposed", "keys": _IMAGE, "indices": self.axes}]

    def _resize(self) -> str:
        """MONAI's Spacing places its voxels otherwise: by size, from border to border, it is what nnU-Net does."""
        size = f"[round(n * a / b) for n, a, b in zip(x.shape[1:], map(float, x.pixdim), {self.spacing})]"
        return f"$lambda x: monai.transforms.Resize({size}, mode='trilinear', align_corners=False)(x)"

    def postprocessing(self) -> list[dict[str, Any]]:
        """Logits back to the voxels of the CT, labels of them, and a file of these."""
        back = [self.axes.index(axis) for axis in range(4)]
        return [
            {"_target_": "Transposed", "keys": _PRED, "indices": back},
            {
                "_target_": "ResampleToMatchd", "keys": _PRED, "key_dst": _GRID, "mode": "bilinear",
                "padding_mode": "border",
            },
            self._decision(),
            {
                "_target_": "SaveImaged", "keys": _PRED, "output_dir": "@output_dir", "output_postfix": "seg",
                "output_dtype": "$torch.uint8", "resample": False, "separate_folder": False, "print_log": False,
            },
        ]  # fmt: skip

    def _decision(self) -> dict[str, Any]:
        if self.regions is None:
            return {"_target_": "AsDiscreted", "keys": _PRED, "argmax": True}
        paint = "lambda labels, part: torch.where(part[0][None] > 0, torch.full_like(labels, part[1]), labels)"
        painted = f"functools.reduce({paint}, zip(logits, {self.regions}), torch.zeros_like(logits[:1]))"
        return {"_target_": "Lambdad", "keys": _PRED, "func": f"$lambda logits: {painted}"}

    def label_names(self) -> dict[str, str]:
        """Names by the numbers in the label map."""
        names = {"0": "background"}
        foreground = [name for name in self._dataset["labels"] if name != "background"]
        if self.regions is not None:
            return names | {str(label): name for label, name in zip(self.regions, foreground, strict=True)}
        return names | {str(self._dataset["labels"][name]): name for name in foreground}


def _metadata(model: StageModel, about: About) -> dict[str, Any]:
    plan = _Plan(model)
    labels = plan.label_names()
    channels = ["CT", "kidney mask"][: plan.inputs]
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: "exported"},
        "monai_version": _MONAI,
        "pytorch_version": "2.4.0",
        "numpy_version": "1.26.0",
        "required_packages_version": _packages(model),
        "name": f"kits-cascade {model.label}",
        "task": f"Segmentation of kidneys, renal tumors and cysts in CT: {model.label} stage",
        "description": "Made by kits-cascade. For research; not for diagnosis.",
        "authors": "the trainers of the network",
        "copyright": f"licence of the weights: {about.licence}",
        "data_source": about.trained_on,
        "data_type": "nifti",
        "image_classes": "CT in Hounsfield units",
        "label_classes": ", ".join(labels.values()),
        "pred_classes": ", ".join(labels.values()),
        "intended_use": "research; this is no medical device",
        "network_data_format": {
            "inputs": {_IMAGE: _format("image", "hounsfield", plan.inputs, plan.patch, channels)},
            "outputs": {_PRED: _format("segmentation", "labels", plan.outputs, plan.patch, list(labels.values()))},
        },
    }


def _packages(model: StageModel) -> dict[str, str]:
    packages = {"pytorch-ignite": "0.4.11", "nibabel": "5.2.0", "dynamic-network-architectures": "0.4"}
    name = str(_Plan(model).network()["_target_"])
    return packages | ({"kits-cascade": __version__} if name.startswith("kits_cascade.") else {})


def _format(kind: str, form: str, channels: int, patch: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": form if kind == "image" else kind,
        "modality": "CT" if kind == "image" else "n/a",
        "num_channels": channels,
        "spatial_shape": list(patch),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(number): name for number, name in enumerate(names)},
    }


def _readme(model: StageModel, about: About) -> str:
    plan = _Plan(model)
    second = ", and the kidney mask in the same voxels as `NAME_0001.nii.gz`" if plan.inputs > 1 else ""
    return f"""# kits-cascade, {model.label} stage, as a MONAI bundle

```
pip install 'monai[nibabel,ignite]' dynamic-network-architectures
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES --output_dir LABELS
```

A CT is `IMAGES/NAME_0000.nii.gz`{second}. Labels are written in its voxels. The networks of the fine stages have seen
the surroundings of kidneys alone: give them a part of the scan. What lies between the stages is not in a bundle:
`kits-cascade predict` does the whole.

Weights: {about.licence}. Trained on: {about.trained_on}. For research; not for diagnosis.
"""

"""Preprocessed phantom datasets in about a second: nnU-Net's own preprocessing, plans by hand, no worker processes."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from kits_cascade.files import write_json
from kits_cascade.nnunet_folders import NnunetFolders
from kits_cascade.stages import KIDNEY_CHANNEL, PLANS_NAME, READER
from kits_cascade.synthetic.phantom import make_case
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.roi_boxes import roi_box
from kits_cascade.volumes.volume import volume_from_array

REGIONS = {"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
# Kind: labels, regions_class_order, how the KiTS labels 0..3 are written, kidney mask as second channel
KINDS = {
    "labels": ({"kidney": 1, "tumor": 2, "cyst": 3}, None, (0, 1, 2, 3), False),
    "regions": (REGIONS, [1, 3, 2], (0, 1, 2, 3), False),
    "kidney": ({"kidney": 1}, None, (0, 1, 1, 1), False),
    "masses": ({"masses": [1, 2], "tumor": 2}, [1, 2], (0, 0, 2, 1), True),
    "masses-labels": ({"cyst": 1, "tumor": 2}, None, (0, 0, 2, 1), True),
}
_CT = {"mean": 100.0, "std": 70.0, "median": 110.0, "min": -150.0, "max": 400.0} | {
    "percentile_00_5": -80.0,
    "percentile_99_5": 300.0,
}


@dataclass(frozen=True)
class Tiny:
    """Where it is, and what nnUNetv2_train would hand to a trainer."""

    folders: NnunetFolders
    name: str
    plans: dict
    dataset_json: dict

    @property
    def preprocessed(self):
        return self.folders.preprocessed / self.name

    @property
    def images(self):
        return self.folders.raw / self.name / "imagesTr"


def architecture(dims, features=(16, 32, 32)):
    count = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": count,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * count,
            "strides": [[1] * dims] + [[2] * dims] * (count - 1),
            "n_conv_per_stage": [1] * count,
            "n_conv_per_stage_decoder": [1] * (count - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(dims, channels, spacing, patch, batch, features):
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    name = "2d" if dims == 2 else "3d_fullres"
    return {
        "data_identifier": f"{PLANS_NAME}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": [patch] * dims,
        "median_image_size_in_voxels": [float(patch)] * dims,
        "spacing": list(spacing[-dims:]),
        "normalization_schemes": ["CTNormalization", "NoNormalization"][:channels],
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resample,
        "resampling_fn_seg_kwargs": resample | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resample | {"order": 1},
        "architecture": architecture(dims, features),
        "batch_dice": dims == 2,
    }


def plans_for(name, spacing, *, channels=1, patch=32, features=(16, 32, 32), options=None):
    return {
        "dataset_name": name,
        "plans_name": PLANS_NAME,
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": [patch] * 3,
        "image_reader_writer": READER,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": configuration(2, channels, spacing, patch, 4, features),
            "3d_fullres": configuration(3, channels, spacing, patch, 2, features),
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): dict(_CT) for c in range(channels)},
        "kits_cascade": options or {},
    }


def folders_in(root):
    made = NnunetFolders(*(Path(root) / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir(parents=True, exist_ok=True)
    return made


def roi_case(seed, index, spacing):
    """CT and KiTS labels of a phantom's ROI, z, y, x."""
    case = make_case(seed, index, spacing[1], spacing[0])
    box = roi_box(case.labels.array > 0, case.labels.spacing, 12.0)
    return np.ascontiguousarray(box.crop(case.image.array)), np.ascontiguousarray(box.crop(case.labels.array))


def write_tiny(
    folders, dataset_id, kind, *, cases=4, seed=0, spacing=(4.0, 4.0, 4.0), ignore=False, configurations=None, **plan
):
    """Raw and preprocessed dataset; fold 0 validates on the last fourth of the cases."""
    labels, order, written, prior = KINDS[kind]
    name = f"Dataset{dataset_id:03d}_Tiny{kind.title().replace('-', '')}"
    table = np.array(written, np.uint8)
    raw = folders.raw / name
    names = [f"case_{index:05d}" for index in range(cases)]
    for index, case in enumerate(names):
        image, truth = roi_case(seed, index, spacing)
        target = table[truth]
        if ignore:
            target[:3] = table.max() + 1
        write_volume(raw / "imagesTr" / f"{case}_0000.nii.gz", volume_from_array(image, spacing=spacing))
        if prior:
            mask = (truth > 0).astype(np.uint8)
            write_volume(raw / "imagesTr" / f"{case}_0001.nii.gz", volume_from_array(mask, spacing=spacing))
        write_volume(raw / "labelsTr" / f"{case}.nii.gz", volume_from_array(target, spacing=spacing))
    dataset_json = {
        "channel_names": {"0": "CT", "1": KIDNEY_CHANNEL} if prior else {"0": "CT"},
        "labels": {"background": 0, **labels} | ({"ignore": int(table.max()) + 1} if ignore else {}),
        "numTraining": cases,
        "file_ending": ".nii.gz",
    } | ({"regions_class_order": order} if order else {})
    plans = plans_for(name, spacing, channels=1 + prior, **plan)
    write_json(raw / "dataset.json", dataset_json)
    tiny = Tiny(folders, name, plans, dataset_json)
    _preprocess(tiny, names, configurations or ("2d", "3d_fullres"))
    return tiny


def _preprocess(tiny, names, configurations):
    base = tiny.preprocessed
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True, exist_ok=True)
    write_json(base / "dataset.json", tiny.dataset_json)
    write_json(base / f"{PLANS_NAME}.json", tiny.plans)
    write_json(base / "dataset_fingerprint.json", {})
    held_out = names[-max(1, len(names) // 4) :]
    write_json(base / "splits_final.json", [{"train": [n for n in names if n not in held_out], "val": held_out}])
    shutil.copytree(tiny.folders.raw / tiny.name / "labelsTr", base / "gt_segmentations", dirs_exist_ok=True)
    manager = PlansManager(tiny.plans)
    for configuration_name in configurations:
        settings = manager.get_configuration(configuration_name)
        target = base / settings.data_identifier
        target.mkdir(exist_ok=True)
        for name in names:
            images = sorted(str(path) for path in tiny.images.glob(f"{name}_*.nii.gz"))
            truth = tiny.folders.raw / tiny.name / "labelsTr" / f"{name}.nii.gz"
            DefaultPreprocessor(verbose=False).run_case_save(
                str(target / name), images, str(truth), manager, settings, tiny.dataset_json
            )


@contextmanager
def inline_workers():
    """nnU-Net's worker processes as threads: the same functions on the same data, without importing torch anew.

    Its progress picture, half of the time of a tiny training, is left out.
    """
    context = SimpleNamespace(Pool=ThreadPool)
    picture = "nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png"
    with patch("multiprocessing.get_context", lambda *_: context), patch(picture, lambda *_: None):
        yield

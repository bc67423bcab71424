"""nnU-Net's fingerprint and preprocessing, case by case, in a fraction of its memory.

What is computed is nnU-Net's (its checks, cropping, normalisation, resampling, sampling and files are called); only the
way there differs: voxels stay in the type of their file until they must be floats, and no array is held longer than it
is needed. nnU-Net reads each file into 64-bit floats first, and holds up to eight float copies of a large scan.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.verify_dataset_integrity import check_cases, verify_labels
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from kits_cascade.errors import CaseError
from kits_cascade.volumes.nifti import read_volume
from kits_cascade.volumes.volume import Array, Volume

# nnU-Net draws 10^8 voxels over all cases, so with few cases far more of each than it has. From 100 cases on the same.
_SAMPLES_PER_CASE: Final = 1_000_000
_SAMPLES: Final = 100_000_000


class LeanReader:
    """Reads as nnU-Net's NibabelIOWithReorient does, in the type of the file, and keeps what it has read last."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], tuple[Array, dict[str, Any]]] = {}

    def read_images(self, names: Any) -> tuple[Array, dict[str, Any]]:
        """All channels as one array, and nnU-Net's properties."""
        key = tuple(map(str, names))
        if key not in self._kept:
            self._kept[key] = _read(key)
        return self._kept[key]

    def read_seg(self, name: str) -> tuple[Array, dict[str, Any]]:
        """Labels as int8, which has room for nnU-Net's -1 outside."""
        array, properties = self.read_images((name,))
        if array.dtype == np.uint8 and array.max() < 128:
            array = array.view(np.int8)
        return array, properties

    def forget(self) -> None:
        """Let go of the arrays."""
        self._kept.clear()


def _read(names: tuple[str, ...]) -> tuple[Array, dict[str, Any]]:
    volumes = [read_volume(Path(name)) for name in names]
    first = volumes[0]
    if len(volumes) == 1:
        array = np.ascontiguousarray(first.array)[None]
    else:
        kind = np.result_type(*(volume.array.dtype for volume in volumes))
        array = np.empty((len(volumes), *first.shape), dtype=kind)
        for channel, volume in enumerate(volumes):
            array[channel] = volume.array
    return array, _properties(first)


def _properties(volume: Volume) -> dict[str, Any]:
    return {
        "nibabel_stuff": {"original_affine": volume.stored.affine, "reoriented_affine": volume.affine},
        "spacing": list(volume.spacing),
    }


@dataclass(frozen=True)
class CaseFiles:
    """The raw files of a case."""

    name: str
    images: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class ExamineTask:
    """A case to look at: nnU-Net's integrity check, and its part of the fingerprint."""

    files: CaseFiles
    channels: int
    labels: tuple[int, ...]
    samples: int
    verify: bool


def samples_per_case(cases: int) -> int:
    """Voxels that the fingerprint draws from each case."""
    return min(_SAMPLES // cases, _SAMPLES_PER_CASE)


def examine_case(task: ExamineTask) -> tuple[Any, ...]:
    """nnU-Net's analysis of a case, after nnU-Net's checks of it; both from one reading of the files."""
    reader = LeanReader()
    files = task.files
    if task.verify:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            sound = verify_labels(files.label, lambda: reader, list(task.labels))
            sound &= check_cases(list(files.images), files.label, task.channels, lambda: reader)
        if not sound:
            raise CaseError(files.name, " ".join(said.getvalue().split()))
    analysis: tuple[Any, ...] = DatasetFingerprintExtractor.analyze_case(
        list(files.images), files.label, lambda: reader, task.samples
    )
    return analysis


def fingerprint(analyses: list[tuple[Any, ...]]) -> dict[str, Any]:
    """nnU-Net's dataset fingerprint from the analyses of all cases, as its extractor puts it together."""
    channels = range(len(analyses[0][2]))
    drawn = [np.concatenate([np.asarray(a[2][c], dtype=np.float32) for a in analyses]) for c in channels]
    return {
        "spacings": [a[1] for a in analyses],
        "shapes_after_crop": [a[0] for a in analyses],
        "foreground_intensity_properties_per_channel": {str(c): _intensities(drawn[c]) for c in channels},
        "median_relative_size_after_cropping": float(np.median([a[4] for a in analyses])),
    }


def _intensities(values: Array) -> dict[str, float]:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentile_99_5": float(high),
        "percentile_00_5": float(low),
    }


class LeanPreprocessor(DefaultPreprocessor):  # type: ignore[misc]
    """nnU-Net's preprocessing of a case with a lower peak of memory and the same result."""

    def run_case(
        self, image_files: Any, seg_file: Any, plans_manager: Any, configuration_manager: Any, dataset_json: Any
    ) -> tuple[Array, Array, dict[str, Any]]:
        """As in nnU-Net: read, transpose, crop, normalise, resample, sample foreground locations."""
        reader = LeanReader()
        data, properties = reader.read_images(image_files)
        seg, _ = reader.read_seg(seg_file)
        reader.forget()
        order = (0, *(axis + 1 for axis in plans_manager.transpose_forward))
        data, seg = data.transpose(order), seg.transpose(order)
        spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
        properties["shape_before_cropping"] = data.shape[1:]
        data, seg, properties["bbox_used_for_cropping"] = crop_to_nonzero(data, seg)
        properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
        target = list(configuration_manager.spacing)
        target = [*spacing[: len(spacing) - len(target)], *target]  # slices of a 2d configuration keep their distance
        shape = compute_new_shape(data.shape[1:], spacing, target)

        data = data.astype(np.float32)
        intensities = plans_manager.foreground_intensity_properties_per_channel
        data = self._normalize(data, seg, configuration_manager, intensities)
        data = configuration_manager.resampling_fn_data(data, shape, spacing, target)
        seg = _resampled_seg(seg, shape, spacing, target, configuration_manager)

        manager = plans_manager.get_label_manager(dataset_json)
        wanted = manager.foreground_regions if manager.has_regions else manager.foreground_labels
        properties["class_locations"] = self._sample_foreground_locations(seg, wanted, verbose=False)
        seg = self.modify_seg_fn(seg, plans_manager, dataset_json, configuration_manager)
        return data, seg.astype(np.int8), properties


def _resampled_seg(seg: Array, shape: Any, spacing: Any, target: Any, configuration_manager: Any) -> Array:
    settings = configuration_manager.configuration
    options = settings["resampling_fn_seg_kwargs"]
    plain = options.get("force_separate_z") is False and not options.get("memefficient_seg_resampling")
    if settings["resampling_fn_seg"] == "resample_torch_fornnunet" and plain:
        return resampled_labels(seg, shape)
    function = configuration_manager.resampling_fn_seg
    resampled: Array = function(np.ascontiguousarray(seg), shape, spacing, target)
    return resampled


def resampled_labels(seg: Array, shape: Any) -> Array:
    """What nnU-Net's resample_torch_fornnunet makes of labels, without the sort by which torch finds their values.

    That sort takes twelve times the size of the labels. The rest is as there: each value trilinear, the largest wins.
    """
    import torch
    from torch.nn.functional import interpolate

    size = [int(n) for n in shape]
    if size == list(seg.shape[1:]):
        return seg
    data = torch.from_numpy(np.ascontiguousarray(seg))[None]
    low, high = int(seg.min()), int(seg.max())
    values = [value for value in range(low, high + 1) if bool((data == value).any())]
    result = torch.zeros((1, *size), dtype=torch.int8)
    shares = torch.empty((len(values), 1, *size), dtype=torch.float16)
    decided = torch.zeros((1, *size), dtype=torch.bool)
    for number, value in enumerate(values):
        scaled = (data == value).float().mul_(1000)
        shares[number] = interpolate(scaled, size, mode="trilinear", antialias=False)[0]
        del scaled  # before the next one is made: each has four times the size of the labels
        mask = shares[number] > 700
        result[mask] = value
        decided |= mask
    if not bool(decided.all()):
        best = shares[:, ~decided].argmax(0)
        result[~decided] = torch.tensor(values, dtype=torch.int8)[best]
    return np.asarray(result.numpy())


@dataclass(frozen=True)
class PreprocessTask:
    """A case to preprocess."""

    files: CaseFiles
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    work: Path  # a folder of its own, on the same file system as the target
    target: Path


def preprocess_case(task: PreprocessTask) -> None:
    """Preprocess a case and move its files into place; the last one, the properties, makes it complete."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(task.plans)
    name = task.files.name
    task.work.mkdir(parents=True, exist_ok=True)
    # A place of its own for each case: names of cases may be the beginning of one another.
    folder = task.work / f"{zlib.crc32(name.encode()):08x}"
    folder.mkdir(exist_ok=True)
    for stray in folder.iterdir():
        stray.unlink()
    LeanPreprocessor(verbose=False).run_case_save(
        str(folder / name),
        list(task.files.images),
        task.files.label,
        manager,
        manager.get_configuration(task.configuration),
        task.dataset_json,
    )
    for file in case_outputs(folder, name):
        file.replace(task.target / file.name)
    folder.rmdir()


def case_outputs(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """What nnU-Net keeps of a preprocessed case."""
    return folder / f"{name}.b2nd", folder / f"{name}_seg.b2nd", folder / f"{name}.pkl"

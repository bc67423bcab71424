"""A small Dataset220 for tests: a few cases in different orientations, with answers that can be worked out by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np

from kits_cascade.files import write_json
from kits_cascade.nnunet_folders import NnunetFolders, open_folders
from kits_cascade.stages import READER, SOURCE_CLASS_ORDER, SOURCE_LABELS
from kits_cascade.volumes.nifti import write_volume
from kits_cascade.volumes.volume import volume_from_stored

ORIENTATIONS = ("LPS", "RAS", "SPL", "IAR", "PIR", "ASL")


def case_arrays(index: int, shape=(36, 44, 40)):
    """CT and labels in x, y, z order: two kidneys, one with a tumour, in odd cases a cyst in the other."""
    rng = np.random.default_rng(index)
    labels = np.zeros(shape, np.uint8)
    labels[4:12, 14:24, 12 + index % 3 : 24] = 1
    labels[26:33, 14:24, 12:22] = 1
    labels[5:9, 16:20, 15:19] = 2
    if index % 2:
        labels[28:31, 16:20, 14:17] = 3
    image = (rng.normal(20, 15, shape) + 60 * (labels > 0) + 20 * (labels == 2) - 40 * (labels == 3)).astype(np.int16)
    return image, labels


def affine_for(codes: str, spacing=(1.5, 1.5, 2.0)):
    """An affine for an array stored with these axis codes; spacing along x, y, z of the patient."""
    start = nib.orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    for axis, (target, flip) in enumerate(start):
        affine[int(target), axis] = flip * spacing[int(target)]
    affine[:3, 3] = (-30.0, 12.5, 100.25)
    affine[3, 3] = 1
    return affine


def stored(array, codes: str):
    """An x, y, z array in RAS+ as a volume that is stored with these axis codes."""
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    return volume_from_stored(nib.orientations.apply_orientation(array, transform), affine_for(codes))


def make_source(root: Path, count: int = 4, names=None, shape=(36, 44, 40)) -> NnunetFolders:
    """Dataset220_KiTS in the folders below ``root``."""
    folders = open_folders(root)
    folder = folders.raw / "Dataset220_KiTS"
    names = names or [f"case_{index:05d}" for index in range(count)]
    for index, name in enumerate(names):
        codes = ORIENTATIONS[index % len(ORIENTATIONS)]
        image, labels = case_arrays(index, shape)
        write_volume(folder / "imagesTr" / f"{name}_0000.nii.gz", stored(image, codes))
        write_volume(folder / "labelsTr" / f"{name}.nii.gz", stored(labels, codes))
    write_source_json(folder, len(names))
    return folders


def write_source_json(folder: Path, count: int) -> None:
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": SOURCE_LABELS,
            "regions_class_order": list(SOURCE_CLASS_ORDER),
            "numTraining": count,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": READER,
        },
    )


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

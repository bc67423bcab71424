"""derive-stages against the same work done plainly with nibabel in one process, in one run, on the same processors.

    python -m tests.benchmarks.derive_benchmark --masks MASKS --work WORK --cases 6

Paints CTs around real masks into WORK (kept for the next run), derives them both ways, checks that both give the same
voxels, and prints a table. The plain way reads integers (not nibabel's 64-bit floats) and copies the CT of 221 as a
file, so it is a plain way that knows what it does; with --floats it reads as get_fdata() does.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from kits_cascade.data.derive import derive_stages
from kits_cascade.files import read_json, write_json
from kits_cascade.nnunet_folders import open_folders
from kits_cascade.stages import READER, SOURCE_CLASS_ORDER, SOURCE_LABELS
from kits_cascade.synthetic.phantom import paint_ct
from kits_cascade.volumes.nifti import read_header, read_labels, write_volume


def paint(masks: list[Path], folder: Path) -> None:
    for mask in masks:
        image = folder / "imagesTr" / f"{mask.name}_0000.nii.gz"
        if not image.is_file():
            labels = read_labels(mask / "segmentation.nii.gz")
            write_volume(folder / "labelsTr" / f"{mask.name}.nii.gz", labels)
            write_volume(image, paint_ct(labels))
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": SOURCE_LABELS,
            "regions_class_order": list(SOURCE_CLASS_ORDER),
            "numTraining": len(masks),
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": READER,
        },
    )


def plain_box(mask, spacing, margin):
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        room = int(np.ceil(margin / spacing[axis]))
        box.append(slice(max(0, hit[0] - room), hit[-1] + 1 + room))
    return tuple(box)


def save(array, affine, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def plain(source: Path, out: Path, floats: bool) -> None:
    """What one writes in an afternoon."""
    for label_file in sorted((source / "labelsTr").glob("*.nii.gz")):
        image_file = source / "imagesTr" / label_file.name.replace(".nii.gz", "_0000.nii.gz")
        label_image, image = nib.load(label_file), nib.load(image_file)
        seg = label_image.get_fdata() if floats else np.asanyarray(label_image.dataobj)
        ct = image.get_fdata() if floats else np.asanyarray(image.dataobj)
        (out / "221" / "imagesTr").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image_file, out / "221" / "imagesTr" / image_file.name)
        save((seg > 0).astype(np.uint8), label_image.affine, out / "221" / "labelsTr" / label_file.name)
        box = plain_box(seg > 0, label_image.header.get_zooms(), 20)
        affine = label_image.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
        crop, kidney = ct[box].astype(np.int16), (seg[box] > 0).astype(np.uint8)
        masses = np.where(seg[box] == 2, 2, np.where(seg[box] == 3, 1, 0)).astype(np.uint8)
        for number, label in (("222", kidney), ("223", masses)):
            save(crop, affine, out / number / "imagesTr" / image_file.name)
            save(label, affine, out / number / "labelsTr" / label_file.name)
        save(kidney, affine, out / "223" / "imagesTr" / image_file.name.replace("_0000", "_0001"))


def same_voxels(raw: Path, out: Path) -> int:
    """Labelled voxels that both ways agree on, in world coordinates: boxes differ by the jitter, voxels must not."""
    total = 0
    for number, name in (("221", "KidneyCoarse"), ("222", "KidneyFine"), ("223", "MassesTumor")):
        for file in sorted((out / number / "labelsTr").iterdir()):
            worlds = []
            for path in (file, raw / f"Dataset{number}_{name}" / "labelsTr" / file.name):
                image = nib.load(path)
                array = np.asanyarray(image.dataobj)
                voxels = np.argwhere(array)
                world = np.rint((voxels @ image.affine[:3, :3].T + image.affine[:3, 3]) * 100).astype(np.int64)
                order = np.lexsort(world.T)
                worlds.append(np.column_stack([world[order], array[tuple(voxels[order].T)]]))
            assert np.abs(worlds[0] - worlds[1]).max() <= 2, file
            total += len(worlds[0])
    return total


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for: what another load on the machine does not change."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=Path, required=True, help="folder with case_XXXXX/segmentation.nii.gz")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--floats", action="store_true", help="the plain way reads with get_fdata()")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    arguments = parser.parse_args()

    masks = sorted(path for path in arguments.masks.iterdir() if path.is_dir())
    masks = masks[:: max(1, len(masks) // arguments.cases)][: arguments.cases]
    folders = open_folders(arguments.work)
    source = folders.raw / "Dataset220_KiTS"
    paint(masks, source)
    for old in (*folders.raw.glob("Dataset22[123]*"), arguments.work / "plain"):
        shutil.rmtree(old, ignore_errors=True)

    for file in source.rglob("*.nii.gz"):
        file.read_bytes()  # both ways find the files in the system's cache
    # Ours first: a process that is started inherits the peak of memory of the one that starts it.
    began, spent = time.perf_counter(), cpu_seconds()
    derive_stages(folders, jobs=arguments.jobs)
    ours, our_cpu = time.perf_counter() - began, cpu_seconds() - spent
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    began, spent = time.perf_counter(), cpu_seconds()
    plain(source, arguments.work / "plain", arguments.floats)
    plainly, plain_cpu = time.perf_counter() - began, cpu_seconds() - spent
    largest = max(2 * np.prod(read_header(path)[0]) for path in (source / "imagesTr").iterdir())
    voxels = same_voxels(folders.raw, arguments.work / "plain")

    shapes = [
        case["shape"] for case in read_json(folders.raw / "Dataset221_KidneyCoarse" / "roi.json")["cases"].values()
    ]
    lines = [
        f"{len(masks)} cases, {sum(np.prod(shape) for shape in shapes) / 1e6:.0f} million voxels, "
        f"{voxels / 1e6:.1f} million labelled voxels the same both ways",
        "",
        "| way | seconds | times as fast | processor seconds |",
        "|---|---|---|---|",
        f"| nibabel, one process{', get_fdata()' if arguments.floats else ''} | {plainly:.1f} | 1 | {plain_cpu:.1f} |",
        f"| derive-stages, {arguments.jobs} workers | {ours:.1f} | {plainly / ours:.1f} | {our_cpu:.1f} |",
        "",
        f"Peak memory of a worker {peak / 1e6:.0f} MB; the largest image as int16 has {largest / 1e6:.0f} MB "
        f"({peak / largest:.2f} times).",
    ]
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

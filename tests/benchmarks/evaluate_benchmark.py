"""Score the published masks against distorted copies: this project, and the challenge's way, on the same files.

The challenge's way is SimpleITK for reading and the surface-distance package for distances, as the package's README
shows it and the challenge's evaluation calls it, in as many processes. Run it by hand:

    python -m tests.benchmarks.evaluate_benchmark MASKS --jobs 2 [--cases 40] [--markdown table.md]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

from kits_cascade.evaluation.score import evaluate_folder, score_case
from kits_cascade.labels import CYST, REGIONS, TUMOR
from kits_cascade.volume import read_header, read_labels, write_volume


def distort(labels, rng):
    """A prediction with the errors of real ones: shifted, grown, shrunk, a lesion lost or called by the other name."""
    labels = np.roll(labels, [int(rng.integers(-1, 2)), *(int(s) for s in rng.integers(-3, 4, 2))], axis=(0, 1, 2))
    kind = rng.integers(4)
    if kind == 0:  # grown by a voxel in the plane
        labels = np.maximum(labels, np.roll(labels, 1, axis=1))
    elif kind == 1:  # shrunk
        labels = labels * (np.roll(labels, 1, axis=2) > 0) * (np.roll(labels, -1, axis=2) > 0)
    elif kind == 2:  # a cyst for a tumour
        labels = np.where(labels == TUMOR, CYST, labels)
    else:  # lesions lost
        labels = np.where(labels > 1, 1, labels)
    noise = ndimage.zoom(rng.random([max(2, n // 24) for n in labels.shape], dtype=np.float32), 2, order=1)
    holes = noise > 0.97  # and a few blocks missing
    index = np.ix_(*(np.arange(n) * m // n for n, m in zip(labels.shape, holes.shape)))
    return np.where(holes[index], 0, labels).astype(np.uint8)


def write_predictions(out, cases):
    """Predictions for the given cases, always the same."""
    for path in cases:
        if (out / f"{path.parent.name}.nii.gz").is_file():
            continue
        volume = read_labels(path)
        rng = np.random.default_rng(int(path.parent.name[-5:]))
        write_volume(out / f"{path.parent.name}.nii.gz", volume, distort(volume.array, rng))


def official_case(paths):
    """One case as the challenge's evaluation scores it."""
    warnings.simplefilter("ignore")
    import SimpleITK
    from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

    images = [SimpleITK.ReadImage(str(path)) for path in paths]
    spacing = images[0].GetSpacing()[::-1]
    prediction, truth = (SimpleITK.GetArrayFromImage(image) for image in images)
    dice, surface = [], []
    for region in REGIONS:
        a, b = (np.isin(array, region.labels) if len(region.labels) > 1 else array == region.labels[0]
                for array in (truth, prediction))  # fmt: skip
        if not a.any() or not b.any():
            same = float(a.any() == b.any())
            dice.append(same)
            surface.append(same)
            continue
        dice.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
        distances = compute_surface_distances(a, b, spacing)
        surface.append(compute_surface_dice_at_tolerance(distances, region.tolerance_mm))
    return paths[0].name[:10], (*dice, *surface)


def official(predictions, truths, jobs):
    """All cases; the processes are started before the clock is."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        return dict(pool.imap_unordered(official_case, list(zip(predictions, truths)), chunksize=1))


def timed(work):
    """Result, seconds by the wall clock, and seconds of processor time of the processes that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    result = work()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _peak_of(task):
    score_case(task)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB to GiB


def peak_memory(task):
    """GiB of a worker that scores one case."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (task,))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", type=Path, help="folder of case folders with segmentation.nii.gz")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cases", type=int, help="so many only, spread over the list")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--predictions", type=Path, help="folder that keeps the distorted masks for the next time")
    parser.add_argument("--skip-official", action="store_true")
    args = parser.parse_args()
    truths = sorted(args.masks.glob("case_*/segmentation.nii.gz"))
    if args.cases:
        truths = [truths[i] for i in np.linspace(0, len(truths) - 1, args.cases).astype(int)]
    if args.predictions:
        args.predictions.mkdir(parents=True, exist_ok=True)
        run(truths, args, args.predictions)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(truths, args, Path(folder))


def run(truths, args, folder):
    write_predictions(folder, truths)
    predictions = [folder / f"{path.parent.name}.nii.gz" for path in truths]
    table, wall, processor = timed(lambda: evaluate_folder(folder, args.masks, jobs=args.jobs))
    assert not table.errors, table.errors
    largest = max(range(len(truths)), key=lambda i: math.prod(read_header(truths[i])[0]))
    memory = peak_memory((truths[largest].parent.name, predictions[largest], truths[largest]))
    rows = [
        ("cases", len(truths)),
        ("processes", args.jobs),
        ("kits-cascade evaluate, all metrics and lesions", f"{wall:.1f} s (processor time {processor:.1f} s)"),
        ("peak memory of a worker, largest case", f"{memory:.2f} GiB"),
    ]
    show(rows, args.markdown)
    if not args.skip_official:
        theirs, seconds, theirs_processor = timed(lambda: official(predictions, truths, args.jobs))
        worst = max(np.abs(np.subtract(case.official, theirs[case.case])).max() for case in table.cases)
        rows += [
            ("SimpleITK + surface-distance", f"{seconds:.1f} s (processor time {theirs_processor:.1f} s)"),
            ("times faster", f"{seconds / wall:.1f} (processor time: {theirs_processor / processor:.1f})"),
            ("largest difference of a score", f"{worst:.1e}"),
        ]
        show(rows, args.markdown)


def show(rows, markdown):
    """Print the table as far as it is, and write it."""
    text = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    print(text, flush=True)
    if markdown:
        markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

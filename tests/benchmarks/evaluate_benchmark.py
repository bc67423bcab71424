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
from kits_cascade.volumes.nifti import read_header, read_labels, write_volume


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
    """One case as the challenge's evaluation scores it: name, six numbers, seconds of processor time."""
    warnings.simplefilter("ignore")
    started = time.process_time()
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
    return paths[0].name[:10], (*dice, *surface), time.process_time() - started


def official(pairs, jobs, limit):
    """Scores by case, seconds by the wall clock and of processor time; what is not done in time is left out."""
    scores, processor, start = {}, 0.0, time.perf_counter()
    wall = 0.0
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for name, values, seconds in pool.imap_unordered(official_case, pairs):
            scores[name] = values
            processor += seconds
            wall = time.perf_counter() - start
            print(f"{len(scores)}/{len(pairs)} {name}: {seconds:.1f} s", flush=True)
            if wall > limit:
                break
    return scores, wall, processor


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
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds for the challenge's way")
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
    """Theirs first, so that ours is asked for the same cases when the time was up."""
    write_predictions(folder, truths)
    # In an order of no meaning: what is done when the time is up is a fair sample.
    truths = [truths[i] for i in np.random.default_rng(0).permutation(len(truths))]
    pairs = [(folder / f"{path.parent.name}.nii.gz", path) for path in truths]
    theirs, their_wall, their_processor = official(pairs, args.jobs, args.limit)
    pairs = [pair for pair in pairs if pair[1].parent.name in theirs]
    with tempfile.TemporaryDirectory() as same:
        for prediction, _ in pairs:
            (Path(same) / prediction.name).symlink_to(prediction.resolve())
        table, wall, processor = timed(lambda: evaluate_folder(Path(same), args.masks, jobs=args.jobs))
    assert not table.errors, table.errors
    assert len(table.cases) == len(pairs)
    prediction, truth = max(pairs, key=lambda pair: math.prod(read_header(pair[1])[0]))
    worst = max(np.abs(np.subtract(case.official, theirs[case.case])).max() for case in table.cases)
    rows = [
        ("cases", f"{len(pairs)} of {len(truths)}"),
        ("processes", args.jobs),
        ("SimpleITK + surface-distance", f"{their_wall:.1f} s (processor time {their_processor:.1f} s)"),
        ("kits-cascade evaluate, all metrics and lesions", f"{wall:.1f} s (processor time {processor:.1f} s)"),
        ("times faster", f"{their_wall / wall:.1f} (by processor time {their_processor / processor:.1f})"),
        ("largest difference of a score", f"{worst:.1e}"),
        ("peak memory of a worker, largest case", f"{peak_memory((truth.parent.name, prediction, truth)):.2f} GiB"),
    ]
    show(rows, args.markdown)


def show(rows, markdown):
    """Print the table, and write it."""
    text = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    print(text, flush=True)
    if markdown:
        markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

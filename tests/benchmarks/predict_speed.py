"""The cascade against nnU-Net's own prediction of the full field of view: time, memory, Dice, and where the time goes.

    python -m tests.benchmarks.predict_speed --masks MASKS --case case_00011 [--slices 131] [--network nnunet]
        [--engine openvino torch] [--precision fp32] [--skip-baseline]

Both run as commands of their own on the same cores, one after the other. The fine network, its spacing (0.78125 mm),
tile step and TTA (none) are the same; nnU-Net runs it once over everything, the cascade the coarse and two fine ones.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from isal import igzip

from kits_cascade.stages import KIDNEY_STAGE
from kits_cascade.volumes.nifti import read_labels
from tests.benchmarks.bench_models import NNUNET as REAL_SIZE
from tests.benchmarks.bench_models import REAL, write_image, write_models
from tests.inference.handmade import dice

REPOSITORY = Path(__file__).parent.parent.parent
NNUNET = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as p; p()"
WARM = """import kits_cascade.runs.predict, kits_cascade.inference.nnunet.predictors
import nnunetv2.inference.predict_from_raw_data"""
SIZES = {"bench": REAL, "nnunet": REAL_SIZE}
OURS = "from kits_cascade.cli.app import main; main()"


def tree(pid):
    """A process and all that it has started."""
    found, open_ones = set(), [pid]
    while open_ones:
        current = open_ones.pop()
        found.add(current)
        for path in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                open_ones += [int(child) for child in path.read_text().split() if int(child) not in found]
            except OSError:
                continue
    return found


def proportional(pid):
    """Memory of a process in bytes, what it shares with others in equal parts (PSS); and its resident size."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return int(values.get("Pss", 0)) * 1024, int(values.get("Rss", 0)) * 1024


def measured(command, environment):
    """Seconds, processor seconds, the peak of memory over all processes, and the peak resident size of the largest."""
    start, used = time.perf_counter(), processor_seconds()
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    peaks = [0, 0]
    stop = threading.Event()

    def watch():
        while not stop.wait(0.5):  # often enough for a peak that lasts, and seldom enough not to slow what is watched
            memory = [proportional(pid) for pid in tree(process.pid)]
            peaks[0] = max(peaks[0], sum(pss for pss, _ in memory))
            peaks[1] = max(peaks[1], max((rss for _, rss in memory), default=0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    stop.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{command[3:]} ended with {code}")
    return time.perf_counter() - start, processor_seconds() - used, peaks[0] / 2**30, peaks[1] / 2**30


def processor_seconds():
    """Of all processes that have been started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def decompression(path):
    start = time.perf_counter()
    with igzip.open(path, "rb") as stream:
        while stream.read(1 << 24):
            pass
    return time.perf_counter() - start


def kidney_dice(path, truth):
    return dice(read_labels(path).array > 0, read_labels(truth).array > 0)


def row(name, figures, score):
    seconds, processor, memory, resident = figures
    return f"| {name} | {seconds:.1f} | {processor:.1f} | {memory:.2f} | {resident:.2f} | {score:.4f} |"


def cascade(engine, precision, out, image, truth, environment):
    """What it computed with, rows of where the time went, its figures, and its Dice."""
    case = truth.name.split(".")[0]
    call = ["predict", "-i", str(image.parent), "-o", str(out), "--device", "cpu", "--fast", "-q", "--overwrite"]
    call += ["--engine", engine, "--precision", precision]
    if engine != "torch":  # converted networks are in the cache, as they are from the second run on
        subprocess.run([sys.executable, "-c", OURS, *call], env=environment, cwd=REPOSITORY, check=True)
    shutil.rmtree(out, ignore_errors=True)
    figures = measured([sys.executable, "-c", OURS, *call], environment)
    record = json.loads((out / "run.json").read_text())["cases"][case]
    about = json.loads((out / ".kits-cascade" / "runs" / f"{record['run']}.json").read_text())["computed_with"]
    seconds, stages = figures[0], record["seconds"]
    unpack = decompression(image)
    floor = unpack + stages["network"]
    rest = sum(value for name, value in stages.items() if name != "network") - stages["network"]
    rows = [
        *(f"| {name} | {value:.1f} |" for name, value in stages.items()),
        f"| all but the networks (without start-up) | {rest:.1f} |",
        f"| start-up and loading the models | {seconds - rest - stages['network']:.1f} |",
        f"| **end to end** | **{seconds:.1f}** |",
        f"| floor: decompression {unpack:.1f} + the networks' tiles {stages['network']:.1f} | {floor:.1f} |",
        f"| end to end / floor | {seconds / floor:.2f} |",
    ]
    said = (
        f"{about['engine']} {about['version']} in {about['precision']}, {about['threads']} threads, {about['hardware']}"
    )
    return said, rows, figures, kidney_dice(out / f"{case}.nii.gz", truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--slices", type=int)
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-speed"))
    parser.add_argument("--network", choices=list(SIZES), default="bench")
    parser.add_argument("--engine", nargs="+", default=["auto"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--skip-baseline", action="store_true")
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    work = given.work / f"{given.case}_{given.slices or 'all'}"
    results, image = given.work / f"nnUNet_results_{given.network}", work / "in" / f"{given.case}_0000.nii.gz"
    truth = work / "truth" / f"{given.case}.nii.gz"
    if not (results / KIDNEY_STAGE.dataset).exists():
        write_models(results, SIZES[given.network])
    if not truth.exists():
        write_image(given.masks / given.case / "segmentation.nii.gz", image, truth, given.slices)
    shape = read_labels(truth).shape
    environment = os.environ | {"nnUNet_results": str(results), "nnUNet_compile": "f", "PYTHONPATH": str(REPOSITORY)}
    environment |= {name: str(given.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    # Neither pays for what is not on the disk yet, nor for what is not in its cache.
    os.sync()
    subprocess.run([sys.executable, "-c", WARM], env=environment, cwd=REPOSITORY, check=True)
    lines = [f"### {given.case}: {'x'.join(map(str, shape))}, {float(np.prod(shape)) / 1e6:.0f} million voxels", ""]
    rows, ours = [], {}
    for engine in given.engine:
        about, stages, ours[engine], score = cascade(engine, given.precision, work / "ours", image, truth, environment)
        lines += [f"{given.network} networks, {about}.", "", "| | seconds |", "|---|---|", *stages, ""]
        rows.append(row(f"kits-cascade predict, {engine}", ours[engine], score))
    lines += [
        "| | seconds | processor seconds | peak memory, all processes (PSS, GiB) | largest process (RSS, GiB) | Dice |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    if not given.skip_baseline:
        out = work / "nnunet"
        call = ["-i", str(image.parent), "-o", str(out), "-d", KIDNEY_STAGE.dataset, "-c", "3d_fullres", "-f", "0"]
        call += ["-device", "cpu", "-step_size", "0.75", "--disable_tta"]
        base = measured([sys.executable, "-c", NNUNET, *call], environment)
        lines.append(row("nnUNetv2_predict", base, kidney_dice(out / f"{given.case}.nii.gz", truth)))
        for engine, figures in ours.items():
            ratios = " | ".join(f"{one / other:.1f}" for one, other in zip(base, figures, strict=True))
            lines.append(f"| ratio, {engine} | {ratios} | |")
    text = "\n".join(lines) + "\n"
    print(text)
    if given.markdown:
        with given.markdown.open("a") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()

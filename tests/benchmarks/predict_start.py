"""From the command to the first case: kits-cascade predict against nnUNetv2_predict, the same model folders.

    python -m tests.benchmarks.predict_start [--repeat 3] [-m MODELS]

For nnU-Net the clock stops when it says that it predicts the first case; for the cascade at its first tile, and again
when the first case's result is there (the images are tiny). Converted networks are in the cache, as they are from the
second run on. Processor seconds do not depend on what else the machine does. With -m the cascade loads a bundle of
real networks, and nnU-Net still the small ones.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kits_cascade.processor import process_fields
from kits_cascade.stages import COARSE, KIDNEY_STAGE, MASSES_STAGE
from kits_cascade.training.trainer_options import TrainerOptions
from kits_cascade.volumes.nifti import write_volume
from tests.benchmarks.predict_speed import NNUNET, OURS, REPOSITORY, tree
from tests.inference.handmade import make_case, write_model

# Says so at the first tile, without loading anything earlier than the command does.
FIRST_TILE = """
import sys, threading, time
def watch():
    name = "kits_cascade.inference.nnunet.sliding_window"
    while not hasattr(sys.modules.get(name), "pad"):
        time.sleep(0.005)
    window = sys.modules[name].SlidingWindow
    predict = window.predict_tile
    def tell(self, tile):
        print("Predicting", flush=True)
        return predict(self, tile)
    window.predict_tile = tell
threading.Thread(target=watch, daemon=True).start()
"""
TICKS = os.sysconf("SC_CLK_TCK")


def used(pid):
    """Processor seconds of a process and all that it has started."""
    total = 0
    for one in tree(pid):
        total += sum(int(value) for value in process_fields(str(one))[11:15])
    return total / TICKS


def until(command, environment, reached):
    start = time.perf_counter()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": REPOSITORY}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        seconds = reached(process)
        result = (seconds or time.perf_counter()) - start, used(process.pid)
        process.wait()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("-m", "--models", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-start"))
    given = parser.parse_args()
    results, images = given.work / "nnUNet_results", given.work / "in"
    for stage in (COARSE, KIDNEY_STAGE, MASSES_STAGE):
        # With the entry that our trainers leave in the plans: without it, nnU-Net's trainers are searched.
        own = TrainerOptions(prior_channels=(1,) if stage is MASSES_STAGE else ()).to_plans()
        write_model(results, stage, stage.trainer, kits_cascade=own)
    image, _ = make_case()
    write_volume(images / "a_0000.nii.gz", image.cropped((slice(10, 40), slice(40, 80), slice(20, 70))))
    environment = os.environ | {"nnUNet_results": str(results), "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    environment |= {name: str(given.work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    out = given.work / "out"

    def says(process):
        for line in process.stdout:
            if line.startswith("Predicting"):
                return time.perf_counter()
        raise SystemExit("nothing was predicted")

    def finished(process):
        while process.poll() is None and not (out / "a.nii.gz").exists():
            time.sleep(0.01)
        return time.perf_counter()

    theirs = ["-i", images, "-o", out, "-d", KIDNEY_STAGE.dataset, "-c", "3d_fullres", "-tr", KIDNEY_STAGE.trainer]
    ours = ["predict", "-i", images, "-o", out, "--device", "cpu", "--fast", "-q"]
    ours += [] if given.models is None else ["-m", given.models.resolve()]
    commands = {
        "kits-cascade predict, first tile": ([FIRST_TILE + OURS, *ours], says),
        "kits-cascade predict, first result": ([OURS, *ours], finished),
        "nnUNetv2_predict": ([NNUNET, *theirs, "-f", "0", "-device", "cpu", "--disable_tta"], says),
    }
    print("| | seconds | processor seconds |\n|---|---|---|", flush=True)
    for name, (command, reached) in commands.items():
        measured = []
        if command[0] != NNUNET:
            shutil.rmtree(out, ignore_errors=True)
            warm = [sys.executable, "-c", *map(str, command)]
            subprocess.run(warm, env=environment, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        for _ in range(given.repeat):
            shutil.rmtree(out, ignore_errors=True)
            measured.append(until([sys.executable, "-c", *map(str, command)], environment, reached))
        wall, processor = (statistics.median(values) for values in zip(*measured, strict=True))
        print(f"| {name} | {wall:.1f} | {processor:.1f} |", flush=True)


if __name__ == "__main__":
    main()

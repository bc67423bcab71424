"""What the painter's parts are worth: short trainings of the coarse network with one of them left out, on real CT.

    python -m tests.benchmarks.painter_ablation --masks DIR --anatomy DIR --real DIR --work DIR [--steps N] [--cases N]
        [--seed N]

Each variant paints its own cases and trains from the same random weights for as many steps of two crops; then
nnU-Net's predictor runs that network alone on DIR/ct_3mm (its kidneys are the truth) and on painted cases of the body
that is held out. Each variant's row is kept in the work folder: run again, those that are left are made; with
--variants NUMBERS by several processes.
"""

import argparse
import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from kits_cascade.files import read_json, write_json
from kits_cascade.models.bundle import open_bundle, read_bundled_networks
from kits_cascade.models.choose import SHIPPED
from kits_cascade.recipes.weights import HELD_OUT, TRAINERS
from kits_cascade.stages import STAGES
from kits_cascade.synthetic.painted_cases import write_painted
from kits_cascade.synthetic.painter import PaintOptions, Sources, make_options
from kits_cascade.synthetic.subjects import find_anatomies
from kits_cascade.training.stream.loop import Course
from kits_cascade.training.stream.pool import Painting, Pool, paint_share
from kits_cascade.training.stream.stage_stream import StreamJob, make_training, write_fold
from kits_cascade.volumes.components import components
from kits_cascade.volumes.nifti import read_labels, read_volume
from tests.inference.handmade import dice

MM = 4.0
SPACING = (MM, MM, MM)
VARIANTS = {
    "all of it": (None, PaintOptions(SPACING)),
    "one body instead of all": (1, PaintOptions(SPACING)),
    "one phase (portal)": (None, PaintOptions(SPACING, phases=("portal",))),
    "no scanner": (None, PaintOptions(SPACING, scanner=False)),
    "the bodies' own kidneys": (None, PaintOptions(SPACING, own_kidneys=True)),
}


def train(given, name, folder):
    """The model's folder."""
    bodies, options = VARIANTS[name]
    known = [path.name.split(".")[0] for path in find_anatomies(given.anatomy)]
    names = tuple(body for body in known if body != HELD_OUT)[:bodies]
    sources = Sources.find(given.anatomy, given.masks, names)
    painting = Painting(folder / "pool", sources, 21 + given.seed, given.cases, options)
    painting.folder.mkdir(parents=True, exist_ok=True)
    paint_share(painting, 0, 1)
    model = read_bundled_networks(open_bundle(SHIPPED), None).all[0].checkpoints[0].parents[1]
    fold = folder / "model" / "fold_0"
    course = Course(1e9, 2, most_steps=given.steps)
    plans, dataset = read_json(model / "plans.json"), read_json(model / "dataset.json")
    job = StreamJob(STAGES[0], TRAINERS["coarse"], plans, dataset, fold, course, 3 + given.seed)
    fold.mkdir(parents=True, exist_ok=True)
    pool = Pool(painting.folder, torch.device("cpu"), given.cases)
    pool.take_in()
    training = make_training(job, MM, torch.device("cpu"))
    training.run(pool.cases, lambda line: print(f"    {line}", flush=True))
    write_fold(job, training.averaged())
    return fold.parent


def two_largest(mask):
    parts = components(mask)
    kept = 1 + np.argsort(parts.voxels)[::-1][:2]
    return np.isin(parts.labels, kept)


def judge(model, scans):
    """Dice of each scan, and of its two largest parts."""
    silent = {"use_mirroring": False, "perform_everything_on_device": False, "allow_tqdm": False}
    for image, truth in scans:
        values = image.array[None].astype(np.float32)
        with redirect_stdout(io.StringIO()):
            predictor = nnUNetPredictor(device=torch.device("cpu"), **silent)
            predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
            found = predictor.predict_single_npy_array(values, {"spacing": list(image.spacing)}, None, None, False) > 0
        yield dice(truth, found), dice(truth, two_largest(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("masks", "anatomy", "real", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--variants", default=",".join(map(str, range(len(VARIANTS)))), help="their numbers")
    parser.add_argument("--seed", type=int, default=0, help="another one tells how much is chance")
    given = parser.parse_args()
    sources = Sources.find(given.anatomy, given.masks, (HELD_OUT,))
    outcomes = write_painted(given.work / "judged", sources, 8, 5, options=make_options(3.0, view="abdomen"))
    folders = [given.real / "ct_3mm", *sorted(o.result for o in outcomes if o.result is not None)]
    scans = []
    for folder in folders:
        truth = next(path for path in (folder / "kidneys.nii.gz", folder / "segmentation.nii.gz") if path.is_file())
        scans.append((read_volume(folder / "imaging.nii.gz"), read_labels(truth).array > 0))
    print("| painter | real CT, Dice | its two largest parts | painted, Dice |\n|---|---|---|---|")
    for number in map(int, given.variants.split(",")):
        name = list(VARIANTS)[number]
        kept = given.work / (f"variant_{number}.json" if given.seed == 0 else f"variant_{number}_{given.seed}.json")
        if not kept.is_file():
            write_json(kept, [list(map(float, row)) for row in judge(train(given, name, kept.with_suffix("")), scans)])
        (real, largest), *painted = read_json(kept)
        print(f"| {name} | {real:.3f} | {largest:.3f} | {np.mean([row[0] for row in painted]):.3f} |", flush=True)


if __name__ == "__main__":
    main()

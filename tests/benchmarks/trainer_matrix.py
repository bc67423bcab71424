"""Every trainer, on label heads, region heads and the dataset with the kidney channel, in 2d and 3d.

    python -m tests.benchmarks.trainer_matrix --work DIR [--kinds labels regions masses] [--markdown out.md]

Each row trains two epochs, validates, and predicts through nnUNetv2_predict; a row says "yes" only after its files have
been read back and checked. Rows are kept in DIR/rows.json, so that the table can be made in several runs. nnU-Net's
worker processes run as threads, which saves importing torch some 200 times.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import traceback
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import numpy as np
import torch

from kits_cascade.files import read_json, write_json
from kits_cascade.volumes.nifti import read_labels
from tests.training.tiny import folders_in, inline_workers, write_tiny

KINDS = {"labels": 811, "regions": 812, "masses": 813}
OPTIONS = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 0}


def trainer_names():
    from kits_cascade.training.trainers import TRAINERS

    return [trainer.__name__ for trainer in TRAINERS]


def train(tiny, name, configuration):
    from nnunetv2.run.run_training import run_training

    run_training(tiny.name, configuration, 0, name, device=torch.device("cpu"))
    return tiny.folders.results / tiny.name / f"{name}__nnUNetPlans__{configuration}"


def predict(tiny, name, configuration, out):
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    arguments = ["nnUNetv2_predict", "-i", str(tiny.images), "-o", str(out), "-d", tiny.name, "-c", configuration]
    arguments += ["-tr", name, "-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_tta"]
    with patch.object(sys, "argv", arguments):
        predict_entry_point()


def check(tiny, model, out):
    """What a user would look for; returns the number of heads and the mean validation Dice."""
    dataset_json = read_json(model / "dataset.json")
    progress = read_json(model / "fold_0" / "training_progress.json")
    assert len(progress["epochs"]) == 2
    assert all(np.isfinite(entry["train_loss"]) for entry in progress["epochs"])
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    heads = {w.shape[0] for n, w in checkpoint["network_weights"].items() if "seg_layers" in n and n.endswith("weight")}
    labels = [v for n, v in dataset_json["labels"].items() if n != "background"]
    regions = "regions_class_order" in dataset_json
    assert heads == {len(labels) + (not regions)}
    allowed = {0, *(dataset_json["regions_class_order"] if regions else labels)}
    truths = sorted((tiny.preprocessed / "gt_segmentations").glob("*.nii.gz"))
    for truth in truths:
        found, expected = read_labels(out / truth.name), read_labels(truth)
        assert found.shape == expected.shape
        assert np.allclose(found.affine, expected.affine)
        assert set(np.unique(found.array)) <= allowed
    summary = read_json(model / "fold_0" / "validation" / "summary.json")
    return heads.pop(), summary["foreground_mean"]["Dice"]


def row(tiny, kind, name, configuration):
    start = perf_counter()
    log = io.StringIO()
    result = {"trainer": name, "kind": kind, "configuration": configuration}
    try:
        with contextlib.redirect_stdout(log), inline_workers():
            model = train(tiny, name, configuration)
            out = tiny.folders.results / f"predicted-{kind}-{name}-{configuration}"
            predict(tiny, name, configuration, out)
        heads, dice = check(tiny, model, out)
        result |= {"ok": True, "heads": heads, "dice": dice}
    except Exception as error:  # the table is to say so, and go on
        from kits_cascade.errors import KitsCascadeError

        refused = isinstance(error, KitsCascadeError)
        result |= {"ok": False, "refused": refused, "error": f"{type(error).__name__}: {error}"}
        if not refused:
            print(log.getvalue()[-2000:], traceback.format_exc())
    return result | {"seconds": perf_counter() - start}


def table(rows):
    def cell(name, kind, configuration):
        found = rows.get(f"{name} {kind} {configuration}")
        if found is None:
            return "-"
        if found["ok"]:
            return f"yes, {found['heads']}"
        return "refused" if found["refused"] else "**fails**"

    columns = [(kind, configuration) for kind in KINDS for configuration in ("2d", "3d_fullres")]
    titles = {"labels": "label heads", "regions": "region heads", "masses": "kidney channel"}
    lines = ["| trainer | " + " | ".join(f"{titles[k]}, {c[:2]}" for k, c in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(cell(name, *column) for column in columns) + " |" for name in trainer_names()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--trainers", nargs="*")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    folders = folders_in(options.work)
    folders.export()
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    torch.set_num_threads(1)
    kept = options.work / "rows.json"
    rows = read_json(kept) if kept.exists() else {}
    begin = perf_counter()
    for kind in options.kinds:
        tiny = None
        for name in options.trainers or trainer_names():
            for configuration in ("2d", "3d_fullres"):
                key = f"{name} {kind} {configuration}"
                if rows.get(key, {}).get("ok") or perf_counter() - begin > options.seconds:
                    continue
                tiny = tiny or write_tiny(
                    folders, KINDS[kind], kind, patch=32, features=(16, 16, 16), options=deepcopy(OPTIONS)
                )
                rows[key] = row(tiny, kind, name, configuration)
                print(json.dumps(rows[key]), flush=True)
                write_json(kept, rows)
    text = table(rows)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

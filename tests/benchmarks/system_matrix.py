"""Every system on tiny phantoms, made small, by the commands that a user types, in this process.

    python -m tests.benchmarks.system_matrix --work DIR [--systems LIST] [--markdown FILE]

Two epochs of a step each, validation, nnUNetv2_predict, kits-cascade predict, export, import, and prediction
from the bundle, which must give the same bytes. A cell says yes only after its files have been looked at. Rows are kept
in DIR/rows.json, so that the table can be made in several runs.
"""

import argparse
import io
import json
import math
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

from kits_cascade.data.presets import load_preset, preset_path
from kits_cascade.files import read_json, write_json
from kits_cascade.nnunet_folders import open_folders
from kits_cascade.recipes.steps import TWO_CORES
from kits_cascade.recipes.train import train
from kits_cascade.stages import SOURCE_STAGE
from kits_cascade.systems import SYSTEMS, find_system
from tests.training.tiny import inline_workers

CASES, EPOCHS = 6, 2
STEPS = {"num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
# What makes a network small without making it another one.
SMALLER = {
    "unetr2d": {"img_size": [32, 32], "hidden_size": 48, "mlp_dim": 96, "num_heads": 4, "feature_size": 4},
    "unet3d": {"features": [8, 8, 16, 32, 64, 8]},
    "unet2d": {"features": [8, 16, 32, 64, 128, 8]},
}
OWN_PATCH = ("nnunet", "nnunet-resenc-l")  # as nnU-Net plans them for such phantoms
COLUMNS = ("train", "validation", "nnUNetv2_predict", "predict", "export", "import", "from the bundle")


def small(system, work):
    """The row with a preset for a processor: small patches, coarse voxels, few steps."""
    sizes = {"2d": (32, 2, 8.0), "3d": (32, 2, 8.0)}
    return for_a_processor(system, work, sizes, SMALLER, {"num_epochs": EPOCHS, **STEPS})


def for_a_processor(system, work, sizes, smaller, training):
    """The row with another preset: patch, batch and voxels by ``sizes``, network by ``smaller``; the demo's cascade."""
    content = read_json(preset_path(system.preset if system.is_single else "demo"))
    if system.is_single and system.name not in OWN_PATCH:
        configuration = system.stages[0].configuration
        axes = 2 if configuration == "2d" else 3
        size, batch, mm = sizes[f"{axes}d"]
        values = content["stages"]["source"][configuration]
        values |= {"patch_size": [size] * axes, "batch_size": batch, "spacing": [mm] * axes}
        values["architecture"]["arch_kwargs"] |= smaller.get(system.name, {})
    content["training"] = {**content.get("training", {}), **training}
    path = work / "presets" / f"{system.name}.json"
    write_json(path, content)
    return replace(system, preset=str(path))


def run(*argv):
    """A command, in this process: starting each anew would import PyTorch some fifteen times a system."""
    call(list(map(str, argv)))


def call(argv, environment=None):
    argv = list(argv)  # processes that are started set its first entry
    os.environ |= environment or {}
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said), patch.object(sys, "argv", argv):
            ENTRIES[argv[0]](argv[1:])
    except SystemExit as end:
        if end.code:
            print(said.getvalue()[-3000:], flush=True)
            raise RuntimeError(f"{' '.join(argv[:3])} ended with exit code {end.code}") from end
    except Exception:
        print(said.getvalue()[-3000:], flush=True)
        raise
    return 0


def ours(arguments):
    from kits_cascade.cli.app import main

    if arguments[0] != "train":
        return main()
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    stage, _, name = given.get("--trainer", "").partition("=")
    return train(
        open_folders(None),
        folds=[given["--folds"]],
        trainers={stage: name} if stage else None,
        devices=[given["--device"]],
        preset=given["--preset"],
        system=find_system(given["--system"]),
        run=call,
    )


def nnunet_trains(_):
    from nnunetv2.run.run_training import run_training_entry

    with inline_workers(), patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):  # the planner would take 0 for threads
        run_training_entry()


def nnunet_predicts(_):
    from nnunetv2.inference.predict_from_raw_data import predict_entry_point

    with inline_workers():
        predict_entry_point()


ENTRIES = {"kits-cascade": ours, "nnUNetv2_train": nnunet_trains, "nnUNetv2_predict": nnunet_predicts}


def dataset(work):
    folders = open_folders(work / "nnunet")
    if not (folders.raw / SOURCE_STAGE.dataset / "dataset.json").is_file():
        run("kits-cascade", "phantom", "-n", CASES, "--in-plane-mm", 6, "--slice-mm", 8, "-o", work / "phantoms")
        run("kits-cascade", "convert", work / "phantoms", "--nnunet-dir", work / "nnunet")
    images = work / "images"
    images.mkdir(exist_ok=True)
    for path in sorted((folders.raw / SOURCE_STAGE.dataset / "imagesTr").glob("*.nii.gz"))[:2]:
        if not (images / path.name).exists():
            (images / path.name).symlink_to(path)
    return folders, images


def labels_in(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


class Row:
    """One system, step by step; what has been shown is in ``cells``."""

    def __init__(self, system, work, folders, images):
        self.system, self.work, self.folders, self.images = small(system, work), work, folders, images
        self.cells = dict.fromkeys(COLUMNS, "")
        self.out = work / "out" / system.name

    def model(self, stage):
        trainer = "KitsTrainer" if stage.trainer == "nnUNetTrainer" else stage.trainer
        return f"{trainer}__{load_preset(self.system.preset).plans_name}__{stage.configuration}"

    def train(self):
        argv = ["kits-cascade", "train", "--system", self.system.name, "--preset", self.system.preset, "--folds", 0]
        argv += [] if self.system.is_single else ["--trainer", "coarse=KitsTrainer"]
        run(*argv, "--device", "cpu")
        for stage in self.system.stages:
            fold = self.folders.results / stage.dataset / self.model(stage) / "fold_0"
            epochs = read_json(fold / "training_progress.json")["epochs"]
            assert len(epochs) == EPOCHS and all(math.isfinite(epoch["train_loss"]) for epoch in epochs)
            self.cells["train"] = "yes"
            assert read_json(fold / "validation" / "summary.json")["metric_per_case"]
        self.cells["validation"] = "yes"

    def nnunet(self):
        stage, out = self.system.stages[0], self.out / "nnunet"
        trainer, plans, configuration = self.model(stage).split("__")
        argv = ["nnUNetv2_predict", "-i", self.images, "-o", out, "-d", stage.dataset_id, "-c", configuration]
        run(*argv, "-tr", trainer, "-p", plans, "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_tta")
        assert len(labels_in(out)) == len(list(self.images.iterdir()))
        self.cells["nnUNetv2_predict"] = "yes"

    def chosen(self):
        own = [] if not self.system.is_single else ["--system", self.system.name]
        return [*own, "-f", 0, *(part for s in self.system.stages for part in ("--model", f"{s.key}={self.model(s)}"))]

    def predict(self, name, *chosen):
        argv = [
            "kits-cascade",
            "predict",
            "-i",
            self.images,
            "-o",
            self.out / name,
            "--device",
            "cpu",
            "--no-tta",
            "-q",
        ]
        run(*argv, "--overwrite", *chosen)
        found = labels_in(self.out / name)
        assert len(found) == len(list(self.images.iterdir()))
        return found

    def bundle(self):
        first = self.predict("predict", *self.chosen())
        self.cells["predict"] = "yes"
        bundle = self.out / "networks.zip"
        run("kits-cascade", "models", "export", bundle, "--overwrite", *self.chosen())
        self.cells["export"] = f"{bundle.stat().st_size / 1e6:.1f} MB"
        run("kits-cascade", "models", "import", bundle, "--to", self.out / "imported", "--overwrite")
        self.cells["import"] = "yes"
        assert self.predict("bundle", "-m", bundle) == first == self.predict("folder", "-m", self.out / "imported")
        self.cells["from the bundle"] = "same bytes"

    def all(self):
        begin = perf_counter()
        try:
            for step in (self.train, self.nnunet, self.bundle):
                step()
        except Exception as error:  # the table is to say so, and go on
            self.cells["failed"] = f"{type(error).__name__}: {error}"
        return {**self.cells, "seconds": round(perf_counter() - begin)}


def table(rows):
    lines = ["| system | " + " | ".join(COLUMNS) + " | s |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, row in rows.items():
        cells = " | ".join(row[column] or "**no**" for column in COLUMNS)
        lines.append(f"| `{name}` | {cells} | {row['seconds']} |")
    return "\n".join(lines) + "\n"


def matrix(given, systems):
    import torch

    torch.set_num_threads(1)
    os.environ |= {**TWO_CORES, "nnUNet_def_n_proc": "1"}
    folders, images = dataset(given.work)
    kept = given.work / "rows.json"
    rows = read_json(kept) if kept.exists() else {}
    for system in systems:
        if "failed" in rows.get(system.name, {"failed": ""}):
            rows[system.name] = Row(system, given.work, folders, images).all()
            print(system.name, json.dumps(rows[system.name]), flush=True)
            write_json(kept, rows)
    text = table({system.name: rows[system.name] for system in systems})
    print(text)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")
    return any("failed" in rows[system.name] for system in systems)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--systems", default=",".join(system.name for system in SYSTEMS))
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.work.mkdir(parents=True, exist_ok=True)
    chosen = [find_system(name) for name in given.systems.split(",")]
    sys.exit(matrix(given, chosen))


if __name__ == "__main__":
    main()

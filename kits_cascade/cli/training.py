"""Commands of the training room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.app import app


@app.command()
def train(
    folds: Annotated[str, typer.Option(help="Folds to train, with commas: 0 to 4, or all.")] = "0,1,2,3,4",
    stages: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Stages to train, with commas: ids (221), names (coarse, kidney, masses), or ids of your own "
            "(kidney=322, or three ids in the order coarse, kidney, masses).",
        ),
    ] = "221,222,223",
    trainer: Annotated[
        list[str] | None,
        typer.Option(
            "--trainer",
            metavar="STAGE=NAME",
            help="Trainer of a stage, such as coarse=nnUNetTrainer; several with commas: "
            "masses=MassTrainer,TumorTrainer.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="LIST", help="cuda, cpu, mps, or several GPUs, each with a fold: cuda:0,cuda:1.")
    ] = "cuda",
    preset: Annotated[str, typer.Option(help="Plan preset: default, resenc-l, demo, or a JSON file.")] = "default",
    gpu_memory: Annotated[
        int | None, typer.Option(metavar="GB", help="Size of the default preset: 8 (the default), 24 or 40.")
    ] = None,
    source_id: Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Source dataset.")] = 220,
    margin_mm: Annotated[float, typer.Option(min=0, help="Room around kidneys and masses in the ROI, in mm.")] = 20.0,
    oof: Annotated[
        str,
        typer.Option(
            help="ROI and kidney channel from out-of-fold predictions: auto (where all cases have one), require, "
            "or never (from the labels)."
        ),
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Derive anew what was derived with other options.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run none.")] = False,
    nnunet_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds nnU-Net's three folders, instead of the variables.")
    ] = None,
) -> None:
    """Train the whole cascade: 221, its out-of-fold predictions, 222 and 223 derived from them, and both of these.

    Runs nnU-Net's own commands. Stopped and started again, it goes on without repeating a finished fold.
    """
    from kits_cascade.environment import nnunet_folders
    from kits_cascade.errors import UsageError
    from kits_cascade.training import recipe

    chosen: dict[str, list[str]] = {}
    for text in trainer or []:
        key, sign, names = text.partition("=")
        if not sign:
            raise UsageError(f"--trainer takes STAGE=NAME, such as masses=TumorTrainer, not '{text}'")
        chosen[key] = names.split(",")
    if oof not in recipe.OOF_CHOICES:
        raise UsageError(f"--oof takes {', '.join(recipe.OOF_CHOICES)}, not '{oof}'")
    report = recipe.train(
        nnunet_folders(nnunet_dir),
        folds=folds.split(","),
        trainers=chosen,
        devices=device.split(","),
        preset=preset,
        gpu_memory_gb=gpu_memory,
        stages=stages.split(","),
        source_id=source_id,
        margin_mm=margin_mm,
        oof=oof,  # type: ignore[arg-type]
        overwrite=overwrite,
        dry_run=dry_run,
        progress=lambda done, total, what: None if dry_run else typer.echo(f"[{done + 1}/{total}] {what}"),
    )
    for step in report.steps if dry_run else []:
        typer.echo(step.shown())
    for title in report.finished_before:
        typer.echo(f"finished before: {title}", err=dry_run)
    for note in report.notes:
        typer.echo(f"note: {note}", err=dry_run)

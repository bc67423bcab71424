"""Commands of the recipes: train, demo, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.options import (
    Dask,
    Device,
    Devices,
    GpuMemory,
    MarginMm,
    NnunetDir,
    Preset,
    SourceId,
    Stages,
    SystemName,
    Workers,
    parse_fold_range,
    split_list,
)
from kits_cascade.cli.root import app
from kits_cascade.systems import find_system


@app.command()
def train(
    folds: Annotated[str, typer.Option(help="Folds to train, with commas: 0 to 4, or all.")] = "0,1,2,3,4",
    stages: Stages = None,
    trainer: Annotated[
        list[str] | None,
        typer.Option(
            "--trainer",
            metavar="STAGE=NAME",
            help="Trainer of a stage, such as coarse=nnUNetTrainer; several with commas: "
            "masses=MassTrainer,TumorTrainer.",
        ),
    ] = None,
    device: Devices = "auto",
    system: SystemName = "cascade",
    preset: Preset = None,
    gpu_memory: GpuMemory = None,
    source_id: SourceId = 220,
    margin_mm: MarginMm = 20.0,
    oof: Annotated[
        str,
        typer.Option(
            help="ROI and kidney channel from out-of-fold predictions: auto (where all cases have one), require, "
            "or never (from the labels)."
        ),
    ] = "auto",
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS|local:N", help="Train on the workers of a Dask cluster, each a fold at a time."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Derive anew what was derived with other options.")
    ] = False,
    pretrained: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from MedicalNet's weights, for the systems that take them."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run none.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Train the whole cascade: 221, its out-of-fold predictions, 222 and 223 derived from them, and both of these.

    Runs nnU-Net's own commands. Stopped and started again, it goes on without repeating a finished fold.
    """
    from kits_cascade.errors import UsageError
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.recipes import train
    from kits_cascade.runs.executors import open_dask

    chosen: dict[str, list[str]] = {}
    for text in trainer or []:
        key, sign, names = text.partition("=")
        if not sign:
            raise UsageError(f"--trainer takes STAGE=NAME, such as masses=TumorTrainer, not '{text}'")
        chosen[key] = names.split(",")
    if oof not in train.OOF_CHOICES:
        raise UsageError(f"--oof takes {', '.join(train.OOF_CHOICES)}, not '{oof}'")
    with open_dask(dask) as executor:
        report = train.train(
            open_folders(nnunet_dir),
            folds=folds.split(","),
            trainers=chosen,
            devices=device.split(","),
            preset=preset,
            gpu_memory_gb=gpu_memory,
            stages=split_list(stages) if stages else None,
            system=find_system(system),
            source_id=source_id,
            margin_mm=margin_mm,
            oof=oof,  # type: ignore[arg-type]
            overwrite=overwrite,
            pretrained=pretrained,
            dry_run=dry_run,
            executor=executor,
            progress=lambda done, total, what: None if dry_run else typer.echo(f"[{done + 1}/{total}] {what}"),
        )
    for step in report.steps if dry_run else []:
        typer.echo(step.shown())
    for title in report.finished_before:
        typer.echo(f"finished before: {title}", err=dry_run)
    for note in report.notes:
        typer.echo(f"note: {note}", err=dry_run)


@app.command()
def compare(
    systems: Annotated[str, typer.Option(metavar="LIST", help="Systems with commas: cascade,nnunet,unetr2d, ...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for predictions, scores, table and page.")],
    source_id: SourceId = 220,
    folds: Annotated[str, typer.Option(help="Folds with commas, or a range: 0-4.")] = "0-4",
    budget: Annotated[
        str,
        typer.Option(
            metavar="AMOUNT",
            help="Training of a fold, equal for all: 2h, 90min (on the clock), 2cpuh (of the processor), 50epochs, "
            "2000steps; or published.",
        ),
    ] = "published",
    device: Device = "auto",
    tta: Annotated[bool, typer.Option(help="Mirror tiles in prediction.")] = True,
    pictures: Annotated[bool, typer.Option(help="Draw each system's best, median and worst case.")] = True,
    workers: Workers = None,
    dask: Dask = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run none.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Train, run and score systems on the same folds: one table and one page, figures for each class.

    Stopped and started again, it goes on. A system that fails does not stop the others, and stands in the table as
    failed. With --workers or --dask each system goes to a worker (times of systems side by side on one machine are
    longer than alone). Exit code 1 when one did, 2 when all did.
    """
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.recipes.budget import parse_budget
    from kits_cascade.recipes.compare import compare as run
    from kits_cascade.recipes.compare_steps import Comparison
    from kits_cascade.runs.executors import open_executor

    rows = tuple(find_system(name) for name in split_list(systems))
    plan = Comparison(
        open_folders(nnunet_dir), out.resolve(), rows, parse_fold_range(folds), parse_budget(budget), source_id,
        device, tta, pictures,
    )  # fmt: skip
    elsewhere = (None, None) if dry_run else (workers, dask)
    with open_executor(*elsewhere, device) as (executor, _):
        report = run(plan, dry_run=dry_run, say=typer.echo, executor=executor)
    for step in report.steps if dry_run else []:
        typer.echo(step.shown())
    for name, reason in report.failed.items():
        typer.echo(f"failed: {name}: {reason}", err=True)
    if report.page is not None:
        typer.echo(str(report.page))
    raise typer.Exit(0 if not report.failed else 1 if len(report.failed) < len(rows) else 2)


@app.command()
def tune(
    system: SystemName,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the study, the best preset and the plots.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier runs included.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a trial.")] = 30,
    fold: Annotated[int, typer.Option(min=0, max=4, help="The fold that trials train.")] = 0,
    source_id: SourceId = 220,
    device: Device = "auto",
    nnunet_dir: NnunetDir = None,
) -> None:
    """Search for better options of a system, with Optuna; needs the extra: pip install 'kits-cascade[tune]'.

    Bad trials are ended early. Stopped and started again, it goes on with the same study. The best options become a
    preset, and the command that trains it is said.
    """
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.recipes.steps import check_devices
    from kits_cascade.recipes.tune import Tuning
    from kits_cascade.recipes.tune import tune as search

    (chosen,) = check_devices([device])
    plan = Tuning(open_folders(nnunet_dir), out, find_system(system), trials, epochs, fold, source_id, chosen)
    report = search(plan, say=typer.echo)
    for name, value in report.values.items():
        typer.echo(f"  {name}: {value}")
    typer.echo(f"pseudo Dice {report.value:.3f}: {report.best}\n  {report.command}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    ct: Annotated[Path | None, typer.Option(help="Your own CT (a file, a folder or a DICOM series).")] = None,
    train: Annotated[bool, typer.Option("--train", help="From nothing: train small networks on phantoms.")] = False,
    cases: Annotated[int, typer.Option(min=5, help="With --train: phantoms to learn from.")] = 40,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="Phantoms to be tested on; 3, with --train 12.", show_default=False)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="With --train: a few steps only, to show that all runs.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Show what the shipped networks do, on phantoms or on your own CT: labels, scores, a page, a picture.

    With --train the whole mission from nothing, training included: minutes, without a GPU. Run again, it goes on from
    where it was.
    """
    import time

    from kits_cascade.errors import UsageError
    from kits_cascade.recipes import demo as whole

    if train and ct is not None:
        raise UsageError("--train makes its own phantoms; leave --ct out")
    begin = time.monotonic()
    plan = (
        whole.TrainingDemo(out, held_out or 12, device, cases=cases, quick=quick)
        if train
        else whole.Demo(out, held_out or 3, device, ct)
    )
    scores = whole.run(plan, typer.echo)
    for line in ("", *whole.summary(plan, scores, time.monotonic() - begin)):
        typer.echo(line)


@app.command()
def weights(
    masks: Annotated[Path, typer.Option(help="Kidneys and lesions: a folder in KiTS layout.")],
    anatomy: Annotated[
        Path, typer.Option(help="Bodies: label maps beside a labels.json, or subjects of TotalSegmentator's data set.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything, and networks.zip.")] = Path(
        "weights"
    ),
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Anatomies to paint, with commas; by default all but t1.")
    ] = "",
    minutes: Annotated[float, typer.Option(min=0.1, help="Of training, over all three networks.")] = 360.0,
    count: Annotated[int, typer.Option("-n", "--count", min=5, help="The most cases to paint meanwhile.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of painter, crops and networks.")] = 11,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    batch: Annotated[int | None, typer.Option(min=1, help="Crops a step; 2 on cpu, 16 on cuda.")] = None,
    painters: Annotated[int | None, typer.Option(min=1, help="Processes that paint; most processors.")] = None,
    start: Annotated[Path | None, typer.Option(help="Train the networks of this bundle further.")] = None,
    stages: Annotated[
        str, typer.Option(metavar="NAMES", help="Train only these stages; the others are those of --start.")
    ] = "coarse,kidney,masses",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, and run none.")] = False,
) -> None:
    """Make the shipped networks: paint CT, train the three stages on it meanwhile, export them.

    Minutes on a GPU, hours on two cores. Stopped at any moment and run again, it goes on from where it was.
    """
    from kits_cascade.recipes import weights as recipe

    plan = recipe.Weights(
        out.resolve(),
        masks.resolve(),
        anatomy.resolve(),
        only,
        count,
        seed,
        device,
        start,
        minutes,
        batch,
        painters,
        stages=tuple(name for name in stages.split(",") if name),
    )
    if dry_run:
        for step in [*recipe.data_steps(plan), recipe.export_step(plan)]:
            typer.echo(step.shown())
        typer.echo(
            f"between plan and export: training of {', '.join(s.key for s in recipe.stages_left(plan)) or 'none'}"
        )
        return
    typer.echo(f"networks: {recipe.make_weights(plan, typer.echo)}")

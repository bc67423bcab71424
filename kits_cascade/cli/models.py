"""Commands for trained networks: what there is, and to and from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.networks import choose_networks
from kits_cascade.cli.options import (
    Checkpoint,
    Folds,
    Ids,
    Model,
    Models,
    MoreFolds,
    NnunetDir,
    Preset,
    SourceId,
    SystemName,
    parse_ids,
)
from kits_cascade.cli.root import app

models_app = typer.Typer(help="Trained networks: list, export to one zip, import from it.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models(
    models: Models = None,
    checkpoint: Checkpoint = None,
    ids: Ids = None,
    nnunet_dir: NnunetDir = None,
) -> None:
    """List the trained networks of each stage, and say whether they make a whole cascade."""
    from kits_cascade.errors import ModelError
    from kits_cascade.models.choose import list_networks, resolve_models
    from kits_cascade.nnunet_folders import open_folders

    numbers = parse_ids(ids)
    results = open_folders(nnunet_dir, needed=()).results if models is None else None
    if results is not None and results.is_dir():
        for line in list_networks(results, numbers, checkpoint):
            typer.echo(line)
    try:
        chosen = resolve_models(models, checkpoint=checkpoint, dataset_ids=numbers, results=results)
    except ModelError as error:
        if models is not None:
            raise
        typer.echo(f"no cascade by default: {error}")
        raise typer.Exit(1) from error
    typer.echo("the cascade:" if not chosen.notice else f"the cascade: {chosen.notice}")
    for line in chosen.summary():
        typer.echo(f"  {line}")


@models_app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The zip to write; with --monai a folder.")],
    folds: Folds = None,
    more_folds: MoreFolds = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    system: SystemName = "cascade",
    ids: Ids = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights.")] = "not stated",
    trained_on: Annotated[str, typer.Option(help="The training data, and their licence.")] = "not stated",
    card: Annotated[
        bool, typer.Option("--card", help="Also write README.md beside the zip: a model card, as a hub shows it.")
    ] = False,
    scores: Annotated[
        Path | None, typer.Option(help="An evaluation.json of these networks, for the model card.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Weights in half precision: half the size.")] = False,
    monai: Annotated[
        bool, typer.Option("--monai", help="Instead a MONAI bundle of each network, as a folder.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Write the networks of one system into a zip: checkpoints without optimizer, plans, checksums."""
    from kits_cascade.errors import UsageError
    from kits_cascade.models.bundle import bundle_path, export_models
    from kits_cascade.models.card import About, write_card
    from kits_cascade.models.monai_bundle import export_monai
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.systems import find_system

    if monai and card:
        raise UsageError("--card describes the zip; a MONAI bundle has a README of its own")
    target = bundle_path(out)
    for path in (target, target.with_name("README.md")) if card else (target,):
        if path.exists() and not overwrite and not monai:
            raise UsageError(f"{path} is there already; give --overwrite to replace it")
    if scores is not None and not card:
        raise UsageError("--scores go into the model card: give --card too")
    found = choose_networks(
        find_system(system),
        folds,
        more_folds,
        model,
        checkpoint,
        ids,
        results=open_folders(nnunet_dir, needed=("nnUNet_results",), make=False).results,
        shipped=False,
    )
    about = About(licence=licence, trained_on=trained_on, system=system)
    if monai:
        for folder in export_monai(found, out, half=half, about=about, overwrite=overwrite):
            typer.echo(str(folder))
        return
    export_models(found, target, half=half, about=about)
    if card:
        typer.echo(str(write_card(target, about, found.summary(), scores)))
    for line in found.summary():
        typer.echo(line)
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


@models_app.command("calibrate")
def calibrate(
    run: Annotated[Path, typer.Argument(help="Output folder of `kits-cascade predict` with these networks.")],
    truth: Annotated[
        Path, typer.Option("-g", "--truth", help="The truth of its cases: in KiTS layout, or a folder of label files.")
    ],
    models: Models = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the table: change no networks.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Learn what the certainty of a lesion is worth, from cases not trained on, and keep it with the networks.

    From then on `predict` gives each lesion a confidence: how often lesions like it are right.
    """
    from kits_cascade.models.bundle import store_calibration
    from kits_cascade.models.choose import resolve_models
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.recipes.calibrate import fit, rate_held_out, rate_lesions, tabulate

    if nnunet_dir is not None:
        open_folders(nnunet_dir)
    cases = rate_lesions(run, truth)
    found = fit(cases)
    raw = [row for case in cases for row in case]
    for title, rated in (
        ("certainty", raw),
        ("confidence, fitted on the other half of the cases", rate_held_out(cases)),
    ):
        table, error = tabulate(rated)
        typer.echo(f"\n| {title} | lesions | mean | right |\n|---|---|---|---|")
        for row in table:
            typer.echo(f"| {row.low:.1f} to {row.high:.1f} | {row.lesions} | {row.mean:.3f} | {row.right:.3f} |")
        typer.echo(f"expected calibration error {error:.3f}")
    typer.echo(f"{found.lesions} lesions of {found.cases} cases: slope {found.slope}, offset {found.offset}")
    if not dry_run:
        chosen = resolve_models(models, shipped=False)
        typer.echo(f"kept in {store_calibration(chosen, models, found)}")


@models_app.command("adapt")
def adapt(
    file: Annotated[Path, typer.Argument(help="Weights of an encoder, such as MedicalNet's resnet_10_23dataset.pth.")],
    system: SystemName,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; beside the plans by default.")] = None,
    preset: Preset = None,
    source_id: SourceId = 220,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Make of an encoder's published weights a file that nnUNetv2_train takes with -pretrained_weights.

    The dataset must be planned for the system. Names and shapes are checked; nothing in the file is run.
    """
    from kits_cascade.data.presets import load_preset
    from kits_cascade.errors import DatasetError, UsageError
    from kits_cascade.nnunet_folders import folders_with_id, open_folders
    from kits_cascade.systems import find_system
    from kits_cascade.training.pretrained import adapt_weights

    row = find_system(system)
    if not row.is_single:
        raise UsageError(f"the system {row.name} has several networks; weights are adapted for a system of one")
    plans_name = load_preset(preset or row.preset).plans_name
    folders = folders_with_id(open_folders(nnunet_dir).preprocessed, source_id)
    plans = next((path / f"{plans_name}.json" for path in folders if (path / f"{plans_name}.json").is_file()), None)
    if plans is None:
        raise DatasetError(
            f"dataset {source_id} is not planned for {row.name}: kits-cascade plan --system {row.name} does it"
        )
    target = out or plans.with_name(f"{plans_name}_pretrained.pth")
    typer.echo(adapt_weights(file, plans, row.stages[0].configuration, target))
    typer.echo(str(target))


@models_app.command("import")
def import_(
    bundle: Annotated[
        str, typer.Argument(help="A zip made by `models export`, or hf://OWNER/NAME[@REVISION] on Hugging Face.")
    ],
    to: Annotated[Path | None, typer.Option(help="Folder to unpack into; nnUNet_results by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace networks of the same name.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Check a bundle and unpack it: no code in it is run, nothing is written outside the folder."""
    from kits_cascade.models.bundle import about_bundle, import_models
    from kits_cascade.models.hub import fetch_bundle, is_hub_address
    from kits_cascade.nnunet_folders import open_folders

    target = to or open_folders(nnunet_dir, needed=("nnUNet_results",)).results
    source = fetch_bundle(bundle) if is_hub_address(bundle) else Path(bundle)
    for folder in import_models(source, target, overwrite=overwrite, manifest=to is not None):
        typer.echo(str(folder))
    for line in about_bundle(source).lines():
        typer.echo(line)

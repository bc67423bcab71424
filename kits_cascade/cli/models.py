"""Commands for trained networks: what there is, and to and from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.options import (
    Checkpoint,
    Folds,
    Ids,
    Model,
    Models,
    MoreFolds,
    NnunetDir,
    parse_choices,
    parse_folds,
    parse_ids,
)
from kits_cascade.cli.root import app

models_app = typer.Typer(help="Trained networks: list, export to one zip, import from it.", no_args_is_help=True)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models(
    models: Models = None,
    checkpoint: Checkpoint = None,
    ids: Ids = "221,222,223",
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
    out: Annotated[Path, typer.Argument(help="The zip to write.")],
    folds: Folds = None,
    more_folds: MoreFolds = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    ids: Ids = "221,222,223",
    half: Annotated[bool, typer.Option("--half", help="Weights in half precision: half the size.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Write the networks of one cascade into a zip: checkpoints without optimizer, plans, checksums."""
    from kits_cascade.errors import UsageError
    from kits_cascade.models.bundle import bundle_path, export_models
    from kits_cascade.models.choose import resolve_models
    from kits_cascade.nnunet_folders import open_folders

    target = bundle_path(out)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} is there already; give --overwrite to replace it")
    found = resolve_models(
        folds=parse_folds(folds, more_folds),
        choose=parse_choices(model),
        checkpoint=checkpoint,
        dataset_ids=parse_ids(ids),
        results=open_folders(nnunet_dir, needed=("nnUNet_results",)).results,
        shipped=False,
    )
    export_models(found, target, half=half)
    for line in found.summary():
        typer.echo(line)
    typer.echo(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


@models_app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(help="A zip made by `models export`.")],
    to: Annotated[Path | None, typer.Option(help="Folder to unpack into; nnUNet_results by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace networks of the same name.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Check a bundle and unpack it: no code in it is run, nothing is written outside the folder."""
    from kits_cascade.models.bundle import import_models
    from kits_cascade.nnunet_folders import open_folders

    target = to or open_folders(nnunet_dir, needed=("nnUNet_results",)).results
    for folder in import_models(bundle, target, overwrite=overwrite, manifest=to is not None):
        typer.echo(str(folder))

"""Commands of the service room: watch."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kits_cascade.cli.options import (
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
from kits_cascade.cli.runs import KINDS_HELP

if TYPE_CHECKING:
    from kits_cascade.runs.events import Event


@app.command()
def watch(
    source: Annotated[Path, typer.Option("--from", help="Folder that DICOM series come into, in any layout.")],
    out: Annotated[Path, typer.Option("--to", help="Folder for labels, SEG and SR, run.json and lesions.csv.")],
    models: Models = None,
    folds: Folds = None,
    more_folds: MoreFolds = None,
    model: Model = None,
    ids: Ids = "221,222,223",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, cpu or mps.")] = "auto",
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring, and fewer tiles.")] = False,
    dicom: Annotated[str, typer.Option(metavar="LIST", help=KINDS_HELP + ".")] = "seg,sr",
    quiet_seconds: Annotated[
        float, typer.Option(min=0, help="A series that nothing was added to for so long counts as complete.")
    ] = 60.0,
    poll: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks at the folder.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Stop when all that is there has been worked on.")] = False,
    listen: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Also take series by C-STORE on this port, into --from.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine's own only.")] = "127.0.0.1",
    aet: Annotated[str, typer.Option(help="DICOM name (AE title) to listen under.")] = "KITS",
    stow: Annotated[
        str | None, typer.Option(metavar="URL", help="Send SEG and SR to this DICOMweb server (STOW-RS).")
    ] = None,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Segment DICOM series as they arrive in a folder; SEG and SR are written, and sent back if asked.

    Killed and started again, it goes on where it was.
    """
    from dataclasses import asdict

    from kits_cascade.inference.cascade import Cascade, CascadeOptions, Speed
    from kits_cascade.models.choose import resolve_models
    from kits_cascade.models.network import describe_networks
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.runs.dicom_results import parse_kinds, with_dicom_sources
    from kits_cascade.runs.manifest import RunManifest
    from kits_cascade.runs.workers import interrupted_by_sigterm
    from kits_cascade.service.archive import receiver, send_stow
    from kits_cascade.service.arrivals import Arrivals
    from kits_cascade.service.watcher import Watcher, watch

    if nnunet_dir is not None:
        open_folders(nnunet_dir)
    options, speed = CascadeOptions(dicom=parse_kinds(dicom)), Speed().changed(fast=fast)
    with_dicom_sources([], options.dicom)
    chosen = resolve_models(
        models, folds=parse_folds(folds, more_folds), choose=parse_choices(model), dataset_ids=parse_ids(ids)
    )
    source.mkdir(parents=True, exist_ok=True)
    described = describe_networks(chosen)
    watcher = Watcher(
        Arrivals(source, quiet_seconds),
        out,
        RunManifest(out, device=device, models=described, options=asdict(options) | asdict(speed)),
        lambda: Cascade(chosen, device=device, options=options, speed=speed),
        send=None if stow is None else lambda files: send_stow(stow, files),
        listener=_tell,
        tell=typer.echo,
    )
    with ExitStack() as running:
        running.enter_context(interrupted_by_sigterm())
        if listen is not None:
            port = running.enter_context(receiver(source, listen, aet, host))
            typer.echo(f"listening as {aet} on {host}, port {port}")
        summary = watch(watcher, poll, once)
    raise typer.Exit(summary.exit_code)


def _tell(event: Event) -> None:
    if event.kind != "stage":
        typer.echo(f"{event.case}: {event.kind}{': ' if event.text else ''}{event.text}")

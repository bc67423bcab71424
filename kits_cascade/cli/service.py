"""Commands of the service room: grand-challenge, serve."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from kits_cascade.cli.options import Models
from kits_cascade.cli.root import app


@app.command("grand-challenge")
def grand_challenge(
    source: Annotated[Path, typer.Option("-i", "--input", help="Where the platform mounts the inputs.")] = Path(
        "/input"
    ),
    target: Annotated[Path, typer.Option("-o", "--output", help="Where it takes the results from.")] = Path("/output"),
    models: Models = None,
    layout: Annotated[
        Literal["auto", "sockets", "images"],
        typer.Option(help="sockets: inputs.json, and output.mha; images: the only image, and its name; auto looks."),
    ] = "auto",
    input_slug: Annotated[str | None, typer.Option(help="Slug of the CT, where there are several images.")] = None,
    output_slug: Annotated[str, typer.Option(help="Slug of the segmentation.")] = "kidney-tumor-and-cyst-segmentation",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N or cpu.")] = "auto",
    tta: Annotated[bool, typer.Option(help="Mirror every tile of the fine stages: slower, a little better.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring, and fewer tiles.")] = False,
) -> None:
    """Do what a challenge platform's container is started for: one CT below /input, its labels below /output."""
    from kits_cascade.inference.cascade import Cascade, Speed
    from kits_cascade.models.choose import resolve_models
    from kits_cascade.service.grand_challenge import find_job, model_source, run_job

    start = time.perf_counter()

    def say(text: str) -> None:
        typer.echo(f"[{time.perf_counter() - start:6.1f} s] {text}")

    job = find_job(source, target, layout=layout, input_slug=input_slug, output_slug=output_slug)
    say(f"case {job.case.name} of {job.slug}: {job.case.path}")
    chosen = resolve_models(model_source(models))
    for line in chosen.summary():
        say(line)
    # A challenge counts a refusal as nothing found: every case gets an answer.
    cascade = Cascade(chosen, device=device, speed=Speed().changed(tta, fast), accept_values=True)
    say("networks loaded")
    say(f"written: {run_job(job, cascade, say)}")


@app.command()
def serve(
    models: Models = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8222,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients must send; else KITS_CASCADE_TOKEN.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, help="Jobs that may wait, the one in work included.")] = 4,
    megabytes: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 2000,
    work: Annotated[Path | None, typer.Option(help="Folder for the jobs' files; the system's temporary one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, cpu or mps.")] = "auto",
    tta: Annotated[bool, typer.Option(help="Mirror every tile of the fine stages: slower, a little better.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring, and fewer tiles.")] = False,
) -> None:
    """Segment what clients send by HTTP: NIfTI or a zip of DICOM in, labels and a 3-D page out."""
    from kits_cascade.errors import MissingExtraError
    from kits_cascade.inference.cascade import Cascade, Speed
    from kits_cascade.models.choose import resolve_models

    try:
        from kits_cascade.service import server
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error
    token = server.read_token(host, token_file, os.environ.get("KITS_CASCADE_TOKEN"))
    chosen = resolve_models(models)
    for line in chosen.summary():
        typer.echo(line)
    cascade = Cascade(chosen, device=device, speed=Speed().changed(tta, fast))
    server.serve(
        cascade, host, port, token, work=work, waiting=waiting, upload_bytes=megabytes * 1_000_000, say=typer.echo
    )

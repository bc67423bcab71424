"""Commands around the work itself: doctor, phantom, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.app import app
from kits_cascade.cli.progress import progress_bar

_STYLE = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
    nnunet_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds nnU-Net's three folders, instead of the variables.")
    ] = None,
) -> None:
    """Say what is right and what is not: Python, torch, nnU-Net, folders, trainers, models, memory.

    Exit code 1 when something would stop you.
    """
    import contextlib
    import io

    from kits_cascade.cli import doctor as checks
    from kits_cascade.environment import nnunet_folders

    if nnunet_dir is not None:
        nnunet_folders(nnunet_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints while it is imported
        findings = checks.examine()
    if as_json:
        typer.echo(json.dumps(checks.as_json(findings), indent=2, ensure_ascii=False))
    else:
        _print(findings)
    raise typer.Exit(0 if checks.healthy(findings) else 1)


def _print(findings: list) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        mark, style = _STYLE[finding.status]
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="dim")
        table.add_row(Text(mark, style=style), Text(finding.topic, style="bold"), detail)
    Console(highlight=False).print(table)


@app.command()
def phantom(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the cases, in KiTS layout.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many cases.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    in_plane_mm: Annotated[
        float | None, typer.Option(min=0.5, help="Pixel size; drawn per case when not given.")
    ] = None,
    slice_mm: Annotated[float | None, typer.Option(min=0.5, help="Slice thickness; drawn when not given.")] = None,
    from_masks: Annotated[
        Path | None, typer.Option(help="Paint a CT around each */segmentation.nii.gz of this folder, at its true size.")
    ] = None,
) -> None:
    """Write CT-like cases without patients: kidneys, tumours and cysts among the organs that mislead a network."""
    from kits_cascade import phantom as phantoms

    with progress_bar("phantoms") as progress:
        if from_masks is not None:
            folders = phantoms.write_from_masks(out, from_masks, seed, progress=progress)
        else:
            folders = phantoms.write_cases(
                out, count, seed, in_plane_mm=in_plane_mm, slice_mm=slice_mm, progress=progress
            )
    typer.echo(f"{len(folders)} cases in {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    cases: Annotated[int, typer.Option(min=5, help="Phantoms to learn from.")] = 40,
    held_out: Annotated[int, typer.Option(min=1, help="Phantoms to be tested on.")] = 12,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few training steps only: shows that all runs; the scores mean nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, cpu or mps.")] = "auto",
) -> None:
    """Run the whole mission from nothing: phantoms, training, prediction, scores, a picture. Minutes, without a GPU.

    Run again, it goes on from where it was.
    """
    import time

    from kits_cascade.cli import demo as whole

    begin = time.monotonic()
    plan = whole.Demo(out, cases, held_out, quick, whole.best_device() if device == "auto" else device)
    scores = whole.run(plan, typer.echo)
    for line in ("", *whole.summary(plan, scores, time.monotonic() - begin)):
        typer.echo(line)

"""Commands of the report room: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.bars import progress_bar
from kits_cascade.cli.findings import print_findings
from kits_cascade.cli.options import Jobs
from kits_cascade.cli.root import app


@app.command()
def report(
    predictions: Annotated[Path, typer.Argument(help="Folder of predictions, such as kits-cascade predict leaves.")],
    truth: Annotated[
        Path | None, typer.Option("-g", "--truth", help="The truth: scores the predictions, and outlines both.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("-i", "--images", help="The images; where run.json says when not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the page; the predictions' when not given.")
    ] = None,
    panels: Annotated[int, typer.Option(min=0, help="PNG files of so many cases, the worst ones.")] = 6,
    jobs: Jobs = None,
) -> None:
    """Write report.html, one page with scores, distributions and pictures that needs no network, and PNG files."""
    from kits_cascade.cli.root import errors
    from kits_cascade.report.page import build_report

    with progress_bar("report") as progress:
        written = build_report(predictions, truth, images, out, panels=panels, jobs=jobs, progress=progress)
    for failure in written.failures:
        errors.print("not shown:", failure, style="bold red", markup=False)
    if written.scores is not None:
        print_findings(written.scores.findings)
    megabytes = written.page.stat().st_size / 1e6
    typer.echo(
        f"{written.page}: {megabytes:.1f} MB; {len(written.pictures)} PNG files in {written.page.parent / 'report'}"
    )
    if written.failures or (written.scores is not None and written.scores.errors):
        raise typer.Exit(1)

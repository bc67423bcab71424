"""Commands of the report room: report, view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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
    view: Annotated[bool, typer.Option("--view", help="Also a 3-D page for each case, with a button to it.")] = False,
    jobs: Jobs = None,
) -> None:
    """Write report.html, one page with scores, distributions and pictures that needs no network, and PNG files."""
    from kits_cascade.cli.root import errors
    from kits_cascade.report.page import VIEW_FOLDER, build_report

    if view:
        _write_views(predictions, images, (out or predictions) / VIEW_FOLDER, "8", None)
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


@app.command()
def view(
    case: Annotated[
        Path, typer.Argument(help="A case that predict has written, such as out/CASE; or the folder: all.")
    ],
    images: Annotated[
        Path | None, typer.Option("-i", "--images", help="The images; where run.json says when not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the pages; view/ beside the labels when not given.")
    ] = None,
    bits: Annotated[
        Literal["8", "16"], typer.Option(help="8: from -200 to 400 HU, small. 16: all CT numbers, twice as large.")
    ] = "8",
    megabytes: Annotated[
        float | None, typer.Option(min=0.1, help="Room for the CT in a page, 10 by default; resolution gives way.")
    ] = None,
) -> None:
    """Write a case as one HTML page to look into in 3-D: slices, labels, surfaces, lesions; needs no network."""
    if not _write_views(case, images, out, bits, megabytes):
        raise typer.Exit(1)


def _write_views(
    case: Path, images: Path | None, out: Path | None, bits: Literal["8", "16"], megabytes: float | None
) -> bool:
    """Whether all could be written; the ones that could not are named."""
    from kits_cascade.cli.root import errors
    from kits_cascade.errors import CaseError
    from kits_cascade.report.embedded import MEGABYTES, ViewOptions
    from kits_cascade.report.viewer import view_cases

    options = ViewOptions(int(bits), megabytes or MEGABYTES)
    failed = 0
    for task in view_cases(case, images, out):
        try:
            page = task.write(options)
        except CaseError as error:
            failed += 1
            errors.print("not shown:", error, style="bold red", markup=False)
        else:
            typer.echo(f"{page}: {page.stat().st_size / 1e6:.1f} MB")
    return not failed

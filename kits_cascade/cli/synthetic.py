"""Commands of the synthetic room: phantom, paint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.bars import progress_bar
from kits_cascade.cli.options import Jobs, split_list
from kits_cascade.cli.root import app


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
    sources: Annotated[
        bool, typer.Option("--sources", help="Write made-up bodies and masks instead, for kits-cascade paint.")
    ] = False,
) -> None:
    """Write CT-like cases without patients: kidneys, tumours and cysts among the organs that mislead a network."""
    from kits_cascade.synthetic import phantom as phantoms

    if sources:
        from kits_cascade.synthetic.phantom_sources import write_sources

        bodies, masks = write_sources(out, count, seed)
        typer.echo(f"sources: --anatomy {bodies} --masks {masks}")
        return
    with progress_bar("phantoms") as progress:
        if from_masks is not None:
            folders = phantoms.write_from_masks(out, from_masks, seed, progress=progress)
        else:
            folders = phantoms.write_cases(
                out, count, seed, in_plane_mm=in_plane_mm, slice_mm=slice_mm, progress=progress
            )
    typer.echo(f"{len(folders)} cases in {out}")


@app.command()
def paint(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the cases, in KiTS layout.")],
    masks: Annotated[Path, typer.Option(help="Kidneys and lesions: a folder in KiTS layout.")],
    anatomy: Annotated[
        Path, typer.Option(help="Bodies: label maps beside a labels.json, or subjects of TotalSegmentator's data set.")
    ],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many cases.")] = 12,
    first: Annotated[int, typer.Option(min=0, help="Number of the first case.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed, sources and number give the same bytes.")] = 0,
    only: Annotated[str, typer.Option(metavar="NAMES", help="Only these anatomies, with commas between them.")] = "",
    spacing: Annotated[float, typer.Option(min=0.5, help="Voxel size in mm.")] = 2.0,
    phase: Annotated[str, typer.Option(metavar="LIST", help="Only these phases: plain, arterial, portal, late.")] = "",
    view: Annotated[
        str | None, typer.Option(help="Only this field of view: abdomen, whole, cut, thorax, pelvis.")
    ] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Worse scanners, odder tissues.")] = False,
    own_kidneys: Annotated[
        bool, typer.Option("--own-kidneys", help="The anatomies' own kidneys instead of those of the masks.")
    ] = False,
    sheet: Annotated[bool, typer.Option(help="Also a picture of the first cases, sheet.png.")] = True,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Paint nothing: write the sources as they are read, half as large.")
    ] = False,
    jobs: Jobs = None,
) -> None:
    """Paint CT: real anatomy and real kidneys with made-up tissues, contrast phase and scanner.

    Run again, it keeps what is there and goes on.
    """
    from kits_cascade.synthetic import painted_cases
    from kits_cascade.synthetic.painter import Sources, make_options

    sources = Sources.find(anatomy, masks, split_list(only))
    if prepare:
        from kits_cascade.synthetic.subjects import prepare_sources

        prepare_sources(sources.anatomies, sources.masks, out)
        typer.echo(f"sources: --anatomy {out / 'anatomy'} --masks {out / 'masks'}")
        return
    options = make_options(spacing, hard=hard, phases=split_list(phase), view=view, own_kidneys=own_kidneys)
    with progress_bar("paint") as progress:
        outcomes = list(
            painted_cases.write_painted(
                out, sources, count, seed, first=first, options=options, jobs=jobs, progress=progress
            )
        )
    folders = sorted(o.result for o in outcomes if o.result is not None)
    typer.echo(f"{len(folders)} cases in {out}")
    if sheet:
        from kits_cascade.report.sheet import draw_sheet

        typer.echo(f"picture: {draw_sheet(folders, out / 'sheet.png')}")
    failed = [o for o in outcomes if o.failure]
    for outcome in failed:
        typer.echo(f"failed: {outcome.name}: {outcome.failure}", err=True)
    if failed:
        raise typer.Exit(1)

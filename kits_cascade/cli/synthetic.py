"""Commands of the synthetic room: phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.bars import progress_bar
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
) -> None:
    """Write CT-like cases without patients: kidneys, tumours and cysts among the organs that mislead a network."""
    from kits_cascade.synthetic import phantom as phantoms

    with progress_bar("phantoms") as progress:
        if from_masks is not None:
            folders = phantoms.write_from_masks(out, from_masks, seed, progress=progress)
        else:
            folders = phantoms.write_cases(
                out, count, seed, in_plane_mm=in_plane_mm, slice_mm=slice_mm, progress=progress
            )
    typer.echo(f"{len(folders)} cases in {out}")

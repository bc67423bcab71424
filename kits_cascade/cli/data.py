"""Commands of the data room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.app import app
from kits_cascade.cli.progress import progress_bar

# --- download, convert, stats ----------------------------------------------------------------------------------------

_NnunetDir = Annotated[
    Path | None, typer.Option(help="Folder that holds nnU-Net's three folders, instead of the variables.")
]
_Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Cases at a time; all processors by default.")]


def _list_reasons(title: str, reasons: dict[str, str], style: str) -> None:
    """Cases that need a look, each with the reason, on the error stream."""
    from kits_cascade.cli.app import errors

    if reasons:
        errors.print(f"{title} ({len(reasons)}):", style=style, markup=False)
        for name, reason in reasons.items():
            errors.print(f"  {name}: {reason}", markup=False)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with case_00000, ...: KiTS19, KiTS21 or KiTS23 layout.")
    ],
    dataset_id: Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Dataset number.")] = 220,
    cases: Annotated[str | None, typer.Option(help="Only these cases, such as 0-19,400.")] = None,
    drop_cyst: Annotated[bool, typer.Option("--drop-cyst", help="Count cysts as kidney, as KiTS19 does.")] = False,
    max_slices: Annotated[int | None, typer.Option(help="Leave out scans with more slices than this.")] = None,
    hu_range: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Leave out scans with values outside this range."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first cases only, this many.")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of linking them.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad case.")] = False,
    jobs: _Jobs = None,
    nnunet_dir: _NnunetDir = None,
) -> None:
    """Put KiTS cases into nnU-Net's raw folder as Dataset220_KiTS, each one checked.

    A second run takes up where the first stopped. Exit code 1 when a case had to be left out.
    """
    from kits_cascade.data.convert import convert_dataset
    from kits_cascade.data.layouts import chosen_names
    from kits_cascade.environment import nnunet_folders

    folders = nnunet_folders(nnunet_dir, needed=("nnUNet_raw",))
    with progress_bar("convert") as progress:
        report = convert_dataset(
            source,
            folders,
            dataset_id=dataset_id,
            cases=chosen_names(source, cases),
            drop_cyst=drop_cyst,
            max_slices=max_slices,
            hu_range=hu_range,
            limit=limit,
            copy=copy,
            strict=strict,
            jobs=jobs,
            progress=progress,
        )
    _list_reasons("not selected", report.unselected, "yellow")
    _list_reasons("left out", report.bad, "bold red")
    how = ", ".join(f"{count} by {way}" for way, count in sorted(report.links.items()))
    typer.echo(f"{report.folder}: {report.total} cases")
    typer.echo(f"  new: {len(report.converted)}{f' (images: {how})' if how else ''}, kept: {len(report.kept)}")
    for note in report.notes:
        typer.echo(f"  note: {note}")
    raise typer.Exit(report.exit_code)


# --- end of download, convert, stats ----------------------------------------------------------------------------------

# --- derive-stages, plan ---------------------------------------------------------------------------------------------

_Stages = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Stages to work on, with commas: ids (221), names (coarse, kidney, masses), or ids of your own "
        "(kidney=322, or three ids in the order coarse, kidney, masses).",
    ),
]


@app.command("derive-stages")
def derive_stages(
    source_id: Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Source dataset.")] = 220,
    stages: _Stages = "221,222,223",
    margin_mm: Annotated[float, typer.Option(min=0, help="Room around kidneys and masses in the ROI, in mm.")] = 20.0,
    coarse_predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="ROI from these predictions of stage 221 instead of the labels: a folder with one file for each case, "
            "or the folder of a trained model, whose out-of-fold predictions are taken.",
        ),
    ] = None,
    kidney_predictions: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Kidney channel of stage 223 from these predictions of stage 222; likewise."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the ROI's jitter and of the split.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Derive anew what was derived with other options.")
    ] = False,
    jobs: _Jobs = None,
    nnunet_dir: _NnunetDir = None,
) -> None:
    """Make the datasets of the three stages (221 whole scans, 222 the ROI, 223 the ROI with the kidney mask) from 220.

    Finished cases are kept: a second run takes up where the first stopped. Exit code 1 when a case had to be left out.
    """
    from kits_cascade.data.derive import derive_stages as derive
    from kits_cascade.environment import nnunet_folders

    with progress_bar("derive") as progress:
        report = derive(
            nnunet_folders(nnunet_dir, needed=("nnUNet_raw", "nnUNet_preprocessed")),
            source_id=source_id,
            stages=stages.split(","),
            margin_mm=margin_mm,
            coarse_predictions=coarse_predictions,
            kidney_predictions=kidney_predictions,
            jobs=jobs,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    _list_reasons("left out", report.failed, "bold red")
    for folder in report.folders.values():
        typer.echo(str(folder))
    typer.echo(
        f"  derived: {len(report.derived)}, there already: {len(report.unchanged)}, left out: {len(report.failed)}"
    )
    for note in report.notes:
        typer.echo(f"  note: {note}")
    raise typer.Exit(1 if report.failed else 0)


# --- end of derive-stages, plan --------------------------------------------------------------------------------------

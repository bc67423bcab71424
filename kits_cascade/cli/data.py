"""Commands of the data room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kits_cascade.cli.bars import progress_bar
from kits_cascade.cli.findings import print_reasons
from kits_cascade.cli.options import (
    GpuMemory,
    Jobs,
    MarginMm,
    NnunetDir,
    Preset,
    SourceId,
    Stages,
    SystemName,
    split_list,
)
from kits_cascade.cli.root import app


@app.command()
def download(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the cases; started again, it goes on there.")],
    dataset: Annotated[str, typer.Option(help="kits23 (489 cases) or kits19 (its cases 0-209).")] = "kits23",
    cases: Annotated[str | None, typer.Option(help="Only these cases, such as 0-19,400.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Files at a time.")] = 8,
    uncompressed: Annotated[
        bool, typer.Option("--uncompressed", help="Also unpack to .nii, which reads faster and takes more room.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files again, known or not.")] = False,
    revision: Annotated[str, typer.Option(help="Revision of the images' data set on Hugging Face.")] = "main",
    masks_url: Annotated[str | None, typer.Option(help="Where the masks' case folders are, for a mirror.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte before trying again.")] = 30.0,
    retries: Annotated[int, typer.Option(min=0, help="Attempts without progress before a file is given up.")] = 5,
) -> None:
    """Fetch KiTS: images from Hugging Face, masks from the challenge's repository, every file checked.

    Needs the extra: pip install 'kits-cascade[download]'. Exit code 1 when a file could not be had, 2 when none could.
    The variables of huggingface_hub count, such as HF_ENDPOINT and HF_TOKEN.
    """
    from kits_cascade.cli.bars import transfer_bar
    from kits_cascade.data.download import MASKS_URL, Source, download_dataset
    from kits_cascade.data.transfer import Patience

    with transfer_bar("download") as changed:
        report = download_dataset(
            out,
            dataset=dataset,
            cases=cases,
            workers=workers,
            uncompressed=uncompressed,
            verify=verify,
            source=Source(revision=revision, masks_url=masks_url or MASKS_URL),
            patience=Patience(stall_s=timeout, retries=retries),
            changed=changed,
        )
    print_reasons("not downloaded", report.failed, "bold red")
    typer.echo(
        f"{out}: {len(report.fetched)} files fetched ({report.bytes / 1e6:.1f} MB), "
        f"{len(report.kept)} were right already, {len(report.failed)} missing"
    )
    if report.failed:
        typer.echo("Run the same command again to fetch what is missing.")
    if dataset == "kits19":
        typer.echo("The masks are KiTS23's; with convert --drop-cyst, cysts count as kidney as in KiTS19.")
    typer.echo("Data licence: CC BY-NC-SA 4.0, Heller et al.; see https://kits-challenge.org")
    raise typer.Exit(report.exit_code)


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
    jobs: Jobs = None,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Put KiTS cases into nnU-Net's raw folder as Dataset220_KiTS, each one checked.

    A second run takes up where the first stopped. Exit code 1 when a case had to be left out.
    """
    from kits_cascade.data.convert import convert_dataset
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.volumes.kits import chosen_names

    folders = open_folders(nnunet_dir, needed=("nnUNet_raw",))
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
    print_reasons("not selected", report.unselected, "yellow")
    print_reasons("left out", report.bad, "bold red")
    how = ", ".join(f"{count} by {way}" for way, count in sorted(report.links.items()))
    typer.echo(f"{report.folder}: {report.total} cases")
    typer.echo(f"  new: {len(report.converted)}{f' (images: {how})' if how else ''}, kept: {len(report.kept)}")
    for note in report.notes:
        typer.echo(f"  note: {note}")
    raise typer.Exit(report.exit_code)


@app.command()
def stats(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="KiTS folder, or a dataset in nnU-Net's raw format.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the tables and pictures.")],
    jobs: Jobs = None,
) -> None:
    """Write what people look at first, as CSV and as pictures.

    Slice counts, spacings, HU histogram, class proportions per volume and per slice, lesion sizes. Exit code 1 when a
    case could not be read.
    """
    from kits_cascade.data.stats import collect_stats
    from kits_cascade.report.stats_figures import write_figures
    from kits_cascade.report.stats_tables import write_tables

    with progress_bar("stats") as progress:
        report = collect_stats(source, jobs=jobs, progress=progress)
    written = [*write_tables(report, out), *write_figures(report, out)]
    print_reasons("left out", report.bad, "bold red")
    typer.echo(f"{len(report.cases)} cases: {', '.join(path.name for path in written)} in {out}")
    if report.without_image:
        typer.echo(f"  note: {report.without_image} cases have no image; they count in all but the HU")
    raise typer.Exit(report.exit_code)


@app.command()
def slices(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="KiTS folder, raw dataset of nnU-Net, or images; with --assemble, a folder of predicted masks (PNG).",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for slices, or for the assembled label maps.")],
    assemble: Annotated[
        Path | None,
        typer.Option(metavar="EXPORT", help="The way back: build label maps of the slices exported to this folder."),
    ] = None,
    axis: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    window: Annotated[tuple[float, float], typer.Option(metavar="LOW HIGH", help="HU that become black and white.")] = (
        -79.0,
        304.0,
    ),
    gamma: Annotated[float, typer.Option(help="Power of the grey levels from 0 to 1; above 1 is darker.")] = 1.0,
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Resize to this many rows and columns; as they are by default.")
    ] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Crop each scan to what is not black in the window.")] = False,
    labelled: Annotated[bool, typer.Option("--labelled", help="Only slices with a label in their mask.")] = False,
    cases: Annotated[str | None, typer.Option(help="Only these cases, such as 0-19,400.")] = None,
    jobs: Jobs = None,
) -> None:
    """Scans as PNG slices with their masks and a manifest, for networks in 2D; and label maps from predicted slices.

    Finished cases are kept: a second run takes up where the first stopped. Exit code 1 when a case had to be left out.
    """
    from kits_cascade.volumes.kits import chosen_names
    from kits_cascade.volumes.png_assembly import assemble_slices
    from kits_cascade.volumes.png_export import MANIFEST_CSV, export_slices
    from kits_cascade.volumes.png_slices import SliceOptions

    with progress_bar("slices") as progress:
        if assemble is not None:
            report = assemble_slices(source, assemble, out, jobs=jobs, progress=progress)
        else:
            options = SliceOptions(axis, window, gamma, size, crop, labelled)
            names = chosen_names(source, cases)
            report = export_slices(source, out, options, cases=names, jobs=jobs, progress=progress)
    print_reasons("left out", report.bad, "bold red")
    what = "label maps" if assemble is not None else f"cases, listed in {MANIFEST_CSV}"
    typer.echo(f"{out}: {len(report.written)} {what} ({sum(report.written.values())} slices), {len(report.kept)} kept")
    raise typer.Exit(report.exit_code)


@app.command("derive-stages")
def derive_stages(
    source_id: SourceId = 220,
    stages: Stages = None,
    margin_mm: MarginMm = 20.0,
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
    jobs: Jobs = None,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Make the datasets of the three stages (221 whole scans, 222 the ROI, 223 the ROI with the kidney mask) from 220.

    Finished cases are kept: a second run takes up where the first stopped. Exit code 1 when a case had to be left out.
    """
    from kits_cascade.data.derive import derive_stages as derive
    from kits_cascade.nnunet_folders import open_folders

    with progress_bar("derive") as progress:
        report = derive(
            open_folders(nnunet_dir, needed=("nnUNet_raw", "nnUNet_preprocessed")),
            source_id=source_id,
            stages=split_list(stages) if stages else None,
            margin_mm=margin_mm,
            coarse_predictions=coarse_predictions,
            kidney_predictions=kidney_predictions,
            jobs=jobs,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    print_reasons("left out", report.failed, "bold red")
    for folder in report.folders.values():
        typer.echo(str(folder))
    typer.echo(
        f"  derived: {len(report.derived)}, there already: {len(report.unchanged)}, left out: {len(report.failed)}"
    )
    for note in report.notes:
        typer.echo(f"  note: {note}")
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def plan(
    system: SystemName = "cascade",
    preset: Preset = None,
    gpu_memory: GpuMemory = None,
    stages: Stages = None,
    verify: Annotated[bool, typer.Option(help="Run nnU-Net's integrity checks on every case.")] = True,
    preprocess: Annotated[bool, typer.Option(help="Preprocess the cases, too.")] = True,
    jobs: Jobs = None,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Fingerprint, plans and preprocessing of the stages by nnU-Net's own code, ready for nnUNetv2_train.

    What is there and unchanged is kept: a second run takes up where the first stopped.
    """
    from kits_cascade.data.plans import plan_stages
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.systems import find_system
    from kits_cascade.training.architecture import check_network

    row = find_system(system)
    with progress_bar("plan") as progress:
        report = plan_stages(
            open_folders(nnunet_dir),
            preset=preset or row.preset,
            gpu_memory_gb=gpu_memory,
            known=row.stages,
            stages=split_list(stages) if stages else None,
            jobs=jobs,
            verify=verify,
            preprocess=preprocess,
            progress=lambda what, done, total, case: progress(done, total, f"{what} {case}"),
            check=check_network,
        )
    for key, path in report.plans.items():
        made, kept = report.preprocessed.get(key, 0), report.unchanged.get(key, 0)
        typer.echo(f"{path}\n  preprocessed: {made}, there already: {kept}")
    for note in report.notes:
        typer.echo(f"  note: {note}")
    typer.echo("train with kits-cascade train, or with nnU-Net's own commands:")
    for command in report.commands:
        typer.echo(f"  {command}")

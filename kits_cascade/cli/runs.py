"""Commands of the runs: predict."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kits_cascade.cli.options import (
    Checkpoint,
    Folds,
    Ids,
    Model,
    Models,
    MoreFolds,
    NnunetDir,
    OnEmpty,
    parse_choices,
    parse_folds,
    parse_ids,
    parse_triple,
)
from kits_cascade.cli.root import app

if TYPE_CHECKING:
    from kits_cascade.inference.cascade import CascadeOptions
    from kits_cascade.models.network import CascadeModels
    from kits_cascade.runs.runner import Event, Listener, Summary


KINDS_HELP = "seg, sr (brings seg along), labelmap, fractional"


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Option("-i", "--input", help="A file, or a folder of NIfTI, .mha, .nrrd, KiTS cases or DICOM series."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for the label files, run.json and lesions.csv.")],
    models: Models = None,
    folds: Folds = None,
    more_folds: MoreFolds = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    ids: Ids = "221,222,223",
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, cpu or mps.")] = "auto",
    tta: Annotated[bool, typer.Option(help="Mirror every tile of the fine stages: slower, a little better.")] = True,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring, and fewer tiles.")] = False,
    on_empty: Annotated[
        OnEmpty,
        typer.Option(help="No coarse kidney: an empty result, or the fine stages on the full volume."),
    ] = "empty",
    margin_mm: Annotated[float, typer.Option(min=0, help="Margin around the coarse kidneys.")] = 20.0,
    postprocess: Annotated[bool, typer.Option(help="Postprocessing as a whole.")] = True,
    small_lesions: Annotated[
        bool, typer.Option("--remove-small-lesions/--keep-small-lesions", help="First: into the kidney around them.")
    ] = True,
    small_kidneys: Annotated[
        bool, typer.Option("--remove-small-kidneys/--keep-small-kidneys", help="Then: parts too small for one.")
    ] = True,
    detached_lesions: Annotated[
        bool, typer.Option("--remove-detached-lesions/--keep-detached-lesions", help="And lesions away from kidneys.")
    ] = True,
    kidney_mm3: Annotated[float | None, typer.Option(help="Smallest kidney with its masses.")] = None,
    tumor_mm3: Annotated[float | None, typer.Option(help="Smallest tumour.")] = None,
    cyst_mm3: Annotated[float | None, typer.Option(help="Smallest cyst.")] = None,
    min_voxels: Annotated[
        str | None, typer.Option(help="K,T,C: the published rule by voxels, instead of the volumes in mm3.")
    ] = None,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Also write probabilities/CASE.npz.")
    ] = False,
    keep_stages: Annotated[
        bool, typer.Option("--keep-stages", help="Also write each stage's result to stages/CASE/.")
    ] = False,
    dicom: Annotated[
        str | None,
        typer.Option(metavar="LIST", help=f"Also write dicom/CASE/*.dcm, for DICOM series: {KINDS_HELP}."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cases again.")] = False,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Processor threads; by default all.")] = None,
    part: Annotated[str | None, typer.Option(help="I/N: every N-th case, for several machines on one folder.")] = None,
    accept_values: Annotated[
        bool, typer.Option("--accept-values", help="Predict also what is surely no CT in Hounsfield units.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 also where a result is doubtful or implausible.")
    ] = False,
    nnunet_dir: NnunetDir = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Segment kidneys, tumours and cysts in CT scans: the whole cascade, any number of cases.

    Run again after an interruption, it goes on where it was.

    Exit code 0: all well; 1: some cases failed (with --strict: or are not plausible); 2: nothing could be done.
    """
    from dataclasses import replace

    from kits_cascade.inference.cascade import CascadeOptions, Speed
    from kits_cascade.inference.postprocess import PostprocessOptions
    from kits_cascade.models.choose import resolve_models
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.runs.dicom_results import parse_kinds
    from kits_cascade.runs.predict import predict_cases
    from kits_cascade.runs.runner import part_of
    from kits_cascade.volumes.find import find_inputs

    _use_threads(jobs)
    if nnunet_dir is not None:
        open_folders(nnunet_dir)
    cases = part_of(find_inputs(source), part)
    chosen = resolve_models(
        models,
        folds=parse_folds(folds, more_folds),
        choose=parse_choices(model),
        checkpoint=checkpoint,
        dataset_ids=parse_ids(ids),
    )
    if chosen.notice and not quiet:
        typer.echo(chosen.notice)
    steps = PostprocessOptions(small_kidneys, detached_lesions, small_lesions, min_voxels=parse_triple(min_voxels))
    limits: dict[str, Any] = {"kidney_mm3": kidney_mm3, "tumor_mm3": tumor_mm3, "cyst_mm3": cyst_mm3}
    steps = replace(steps, **{name: value for name, value in limits.items() if value is not None})
    options = CascadeOptions(
        margin_mm, on_empty, steps if postprocess else None, save_probabilities, keep_stages, parse_kinds(dicom)
    )
    with terminating_like_an_interrupt(), _listener(chosen, len(cases), quiet) as listener:
        summary = predict_cases(
            cases,
            out,
            chosen,
            device=device,
            options=options,
            speed=Speed.named(tta, fast),
            overwrite=overwrite,
            part=part,
            accept_values=accept_values,
            listener=listener,
        )
    _conclude(summary, out, options, quiet, strict)


@app.command("dicom")
def dicom_(
    results: Annotated[list[Path], typer.Argument(help="OUT/CASE of `predict`, or OUT for all of its cases.")],
    kinds: Annotated[str, typer.Option("--dicom", metavar="LIST", help=KINDS_HELP + ".")] = "seg,sr",
    series: Annotated[
        Path | None, typer.Option(help="Folder of the DICOM series, of one case; where the run found it by default.")
    ] = None,
) -> None:
    """Write DICOM SEG and SR of finished cases; labels that have been edited since are measured anew."""
    from kits_cascade.errors import UsageError
    from kits_cascade.runs.dicom_results import find_results, parse_kinds, write_dicom_afterwards

    found = [result for path in results for result in find_results(path)]
    if series is not None and len(found) != 1:
        raise UsageError(f"--series is for one case, and these are {len(found)}")
    wanted = parse_kinds(kinds)
    for result in found:
        for path in write_dicom_afterwards(result, wanted, series):
            typer.echo(str(path))


def _use_threads(jobs: int | None) -> None:
    """Before torch is loaded: it reads these once."""
    if jobs is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(jobs)


@contextmanager
def terminating_like_an_interrupt() -> Iterator[None]:
    """A scheduler's or container's SIGTERM ends the run as Ctrl-C does: tidily, with nothing lost."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _listener(models: CascadeModels, total: int, quiet: bool) -> Iterator[Listener]:
    """Shows the choice of models, a bar over the cases with the stage at work, and a line for each that failed."""
    from kits_cascade.cli.bars import progress_bar
    from kits_cascade.cli.root import errors

    if not quiet:
        for line in models.summary():
            errors.print(line, markup=False, style="dim")
    ended = 0
    with progress_bar("predict", quiet or not errors.is_terminal) as show:

        def listen(event: Event) -> None:
            nonlocal ended
            ended += event.kind != "stage"
            show(ended, total, f"{event.case}: {event.text}" if event.kind == "stage" else event.case)
            if event.kind == "failed":
                errors.print(f"{event.case}: failed: {event.text}", markup=False, style="red")
            elif not quiet and event.kind in ("done", "elsewhere") and (event.text or not errors.is_terminal):
                errors.print(f"{event.case}: {event.kind}{': ' if event.text else ''}{event.text}", markup=False)

        yield listen


def _conclude(summary: Summary, out: Path, options: CascadeOptions, quiet: bool, strict: bool) -> None:
    if not quiet:
        counts = {
            "done": len(summary.done),
            "finished before": len(summary.skipped),
            "failed": len(summary.failed),
            "in work elsewhere": len(summary.elsewhere),
        }
        typer.echo(f"{', '.join(f'{n} {what}' for what, n in counts.items() if n or what == 'done')}; results in {out}")
        if options.postprocess is None and summary.done:
            typer.echo("without postprocessing, as asked")
        for line in _verdicts(summary):
            typer.echo(line)
    raise typer.Exit(summary.exit_code or int(strict and bool(summary.not_plausible)))


def _verdicts(summary: Summary) -> Iterator[str]:
    """A line for each verdict that makes one look again."""
    total = len(summary.verdicts)
    for word, names in summary.not_plausible.items():
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield f"{len(names)} of {total} results {'is' if len(names) == 1 else 'are'} {word}: {some} (why: run.json)"

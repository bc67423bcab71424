"""Commands of the runs: predict."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kits_cascade.cli.networks import choose_networks
from kits_cascade.cli.options import (
    Checkpoint,
    Dask,
    Device,
    Engine,
    Fine,
    Folds,
    Ids,
    Model,
    Models,
    MoreFolds,
    NnunetDir,
    OnEmpty,
    Overwrite,
    Precision,
    Quiet,
    SystemName,
    Workers,
)
from kits_cascade.cli.root import app
from kits_cascade.imports import without

if TYPE_CHECKING:
    from kits_cascade.inference.cascade import CascadeOptions, Speed
    from kits_cascade.models.network import Models as AnyModels
    from kits_cascade.runs.events import Event, Listener, Summary
    from kits_cascade.volumes.find import InputCase


_SWITCH_SECONDS: Final = 0.0005
KINDS_HELP = "seg, sr (brings seg along), labelmap, fractional"


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Option("-i", "--input", help="A file, or a folder of NIfTI, .mha, .nrrd, KiTS cases or DICOM series."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the label files, run.json and lesions.csv.")],
    system: SystemName = "cascade",
    models: Models = None,
    fine: Fine = None,
    folds: Folds = None,
    more_folds: MoreFolds = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    ids: Ids = None,
    device: Device = "auto",
    engine: Engine = None,
    precision: Precision = None,
    options: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON with any option of the result, postprocessing too; or the run.json of another run.",
        ),
    ] = None,
    tta: Annotated[
        bool | None, typer.Option(help="Mirror every tile of the fine stages: slower, a little better.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring, and fewer tiles.")] = False,
    on_empty: Annotated[
        OnEmpty | None,
        typer.Option(help="No coarse kidney: an empty result (the default), or the fine stages on the full volume."),
    ] = None,
    margin_mm: Annotated[float | None, typer.Option(min=0, help="Margin around the coarse kidneys; 20 mm.")] = None,
    postprocess: Annotated[
        bool | None, typer.Option(help="Postprocessing, as a whole; steps are in --options.")
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
    overwrite: Overwrite = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; by default all.")] = None,
    part: Annotated[
        str | None,
        typer.Option(help="I/N: every N-th case; auto or auto/N: which ones, a job array's variables say."),
    ] = None,
    workers: Workers = None,
    dask: Dask = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="End when what others are at work on is finished too, and help if they die."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is finished: by default its size and time are enough.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again the cases that were set aside because workers died of them.")
    ] = False,
    accept_values: Annotated[
        bool, typer.Option("--accept-values", help="Predict also what is surely no CT in Hounsfield units.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 also where a result is doubtful or implausible.")
    ] = False,
    nnunet_dir: NnunetDir = None,
    quiet: Quiet = False,
) -> None:
    """Segment kidneys, tumours and cysts in CT scans: the whole cascade, any number of cases.

    Run again after an interruption, it goes on where it was.

    Exit code 0: all well (others may still be at work: it says so, and --wait waits); 1: some cases failed (with
    --strict: or are not plausible); 2: nothing could be done.
    """
    from kits_cascade.nnunet_folders import open_folders
    from kits_cascade.processor import threads_here

    # Reading goes on in a thread while modules are imported, and gives way to that for every piece of a file.
    sys.setswitchinterval(_SWITCH_SECONDS)
    if part is not None:
        part = _own_part(part)
    if workers is None:
        _use_threads(threads)
    threads = threads or threads_here()  # before a cluster starts: Dask changes the environment of whoever starts one
    if nnunet_dir is not None:
        open_folders(nnunet_dir)
    found, cases = _found_cases(source, part)
    if workers is None and dask is None:
        _read_ahead(cases, out)

    # What follows takes a second to import: the first case is being read.
    from kits_cascade.runs.dicom_results import parse_kinds
    from kits_cascade.runs.executors import open_executor
    from kits_cascade.runs.predict import predict_cases
    from kits_cascade.runs.workers import interrupted_by_sigterm
    from kits_cascade.systems import find_system

    result, speed = _chosen_options(
        options, margin_mm, on_empty, postprocess, save_probabilities, keep_stages, parse_kinds(dicom)
    )
    chosen = choose_networks(find_system(system), folds, more_folds, model, checkpoint, ids, source=models, fine=fine)
    if chosen.notice and not quiet:
        typer.echo(chosen.notice)
    with (
        interrupted_by_sigterm(),
        open_executor(workers, dask, device, threads) as (executor, count),
        _listener(chosen, len(cases), quiet) as listener,
    ):
        summary = predict_cases(
            cases,
            out,
            chosen,
            device=device,
            options=result,
            speed=speed.changed(tta, fast, engine, precision),
            overwrite=overwrite,
            about={"part": part, "total": found},
            accept_values=accept_values,
            wait=wait,
            verify=verify,
            retry=retry,
            executor=executor,
            workers=count,
            threads=threads,
            listener=listener,
        )
    _conclude(summary, out, result, quiet, strict)


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


def _chosen_options(
    file: Path | None,
    margin_mm: float | None,
    on_empty: OnEmpty | None,
    postprocess: bool | None,
    save_probabilities: bool,
    keep_stages: bool,
    dicom: tuple[str, ...] = (),
) -> tuple[CascadeOptions, Speed]:
    """Those of the file, and what the command line says above them."""
    from dataclasses import replace

    from kits_cascade.inference.cascade import CascadeOptions, Speed
    from kits_cascade.inference.options_file import read_options
    from kits_cascade.inference.postprocess import PostprocessOptions

    options, speed = (CascadeOptions(), Speed()) if file is None else read_options(file)
    given: dict[str, Any] = {"margin_mm": margin_mm, "on_empty": on_empty, "dicom": dicom or None}
    given |= {"save_probabilities": save_probabilities or None, "keep_stages": keep_stages or None}
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    if postprocess is not None:
        options = replace(options, postprocess=(options.postprocess or PostprocessOptions()) if postprocess else None)
    return options, speed


def _use_threads(count: int | None) -> None:
    """Before numpy or torch is loaded: they read these once."""
    if count is not None:
        from kits_cascade.runs.executors import THREAD_VARIABLES

        for name in THREAD_VARIABLES:
            os.environ[name] = str(count)


def _found_cases(source: Path, part: str | None) -> tuple[int, list[InputCase]]:
    """How many cases there are, and those of our part."""
    with without(
        "pydicom"
    ):  # nibabel would load it, for what is not needed of it: a tenth of the way to the first tile
        from kits_cascade.volumes.find import find_inputs
    from kits_cascade.runs.parts import part_of

    found = find_inputs(source)
    return len(found), part_of(found, part)


def _read_ahead(cases: list[InputCase], out: Path) -> None:
    """Begin to read the first case of a new run. In a folder that has one, it may be finished, or somebody else's."""
    from kits_cascade.runs.records import STATE
    from kits_cascade.volumes.cases import begin_loading

    if cases and not (out / STATE).exists() and not (out / cases[0].result_name).exists():
        begin_loading(cases[0])


def _own_part(part: str) -> str:
    """The part that is ours; in a job array, after a while, so that not all tasks begin at once."""
    from kits_cascade.runs.parts import resolve_part, stagger_seconds

    own = resolve_part(part, os.environ)
    if part != own:
        time.sleep(stagger_seconds(own))
    return own


@contextmanager
def _listener(models: AnyModels, total: int, quiet: bool) -> Iterator[Listener]:
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
        if summary.elsewhere:
            typer.echo(f"others are still at work: see kits-cascade status {shlex.quote(str(out))}, or give --wait")
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


@app.command()
def status(
    out: Annotated[Path, typer.Argument(help="Output folder of `kits-cascade predict`.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    assemble: Annotated[
        bool, typer.Option("--assemble", help="Also write run.json and lesions.csv anew, as of now.")
    ] = False,
) -> None:
    """Say how far a run is: done, failed, who works on what and since when, how fast, how long still."""
    import json

    from kits_cascade.runs.status import read_status

    now = read_status(out)
    if assemble:
        from kits_cascade.runs.manifest import RunManifest

        RunManifest(out).assemble()
    typer.echo(json.dumps(now.to_json(), indent=2, ensure_ascii=False) if as_json else "\n".join(now.lines()))

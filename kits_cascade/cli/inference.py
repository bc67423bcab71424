"""Commands of the inference room."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kits_cascade.cli import models as _models  # noqa: F401  (adds its commands)
from kits_cascade.cli.app import app

if TYPE_CHECKING:
    from kits_cascade.inference.cascade import CascadeOptions
    from kits_cascade.inference.models import CascadeModels
    from kits_cascade.inference.runner import Event, Listener, Summary

OnEmpty = Literal["empty", "full"]


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Option("-i", "--input", help="A file, or a folder of NIfTI, .mha, .nrrd, KiTS cases or DICOM series."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder for the label files, run.json and lesions.csv.")],
    models: Annotated[
        Path | None,
        typer.Option("-m", "--models", help="Folder or zip of `models export`; by default those in nnUNet_results."),
    ] = None,
    folds: Annotated[
        list[str] | None,
        typer.Option("-f", "--folds", help="Folds to average: -f 0 1 2; by default all trained."),
    ] = None,
    more_folds: Annotated[list[str] | None, typer.Argument(hidden=True, help="More folds: -f 0 1 2.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Which network where several are trained: STAGE=PATTERN over trainer__plans__configuration."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="File name of the checkpoints; checkpoint_final.pth by default.")
    ] = None,
    ids: Annotated[str, typer.Option(help="Dataset ids of the three stages.")] = "221,222,223",
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do finished cases again.")] = False,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Processor threads; by default all.")] = None,
    part: Annotated[str | None, typer.Option(help="I/N: every N-th case, for several machines on one folder.")] = None,
    nnunet_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds nnU-Net's three folders, instead of the variables.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Segment kidneys, tumours and cysts in CT scans: the whole cascade, any number of cases.

    Run again after an interruption, it goes on where it was.

    Exit code 0: all well; 1: some cases failed; 2: nothing could be done.
    """
    from dataclasses import replace

    from kits_cascade.environment import nnunet_folders
    from kits_cascade.inference.cascade import CascadeOptions, Speed
    from kits_cascade.inference.inputs import find_cases
    from kits_cascade.inference.models import resolve_models
    from kits_cascade.inference.postprocess import PostprocessOptions
    from kits_cascade.inference.predict import predict_cases
    from kits_cascade.inference.runner import part_of

    _use_threads(jobs)
    if nnunet_dir is not None:
        nnunet_folders(nnunet_dir)
    cases = part_of(find_cases(source), part)
    chosen = resolve_models(
        models,
        folds=parse_folds(folds, more_folds),
        choose=parse_choices(model),
        checkpoint=checkpoint,
        dataset_ids=parse_ids(ids),
    )
    steps = PostprocessOptions(small_kidneys, detached_lesions, small_lesions, min_voxels=_triple(min_voxels))
    limits: dict[str, Any] = {"kidney_mm3": kidney_mm3, "tumor_mm3": tumor_mm3, "cyst_mm3": cyst_mm3}
    steps = replace(steps, **{name: value for name, value in limits.items() if value is not None})
    options = CascadeOptions(margin_mm, on_empty, steps if postprocess else None, save_probabilities, keep_stages)
    with _terminating_like_an_interrupt(), _listener(chosen, len(cases), quiet) as listener:
        summary = predict_cases(
            cases,
            out,
            chosen,
            device=device,
            options=options,
            speed=Speed.named(tta, fast),
            overwrite=overwrite,
            part=part,
            listener=listener,
        )
    _conclude(summary, out, options, quiet)


def _use_threads(jobs: int | None) -> None:
    """Before torch is loaded: it reads these once."""
    if jobs is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(jobs)


def parse_folds(first: list[str] | None, more: list[str] | None) -> list[int | str] | None:
    """``-f 0 1 2``, ``-f 0 -f 1`` and ``-f 0,1`` alike."""
    from kits_cascade.errors import UsageError

    if more and not first:
        raise UsageError(f"unexpected argument {more[0]!r}; inputs are given with -i, outputs with -o")
    given = [part for entry in [*(first or []), *(more or [])] for part in entry.split(",") if part]
    wrong = [part for part in given if not part.isdigit() and part != "all"]
    if wrong:
        raise UsageError(f"-f takes fold numbers or all, not {wrong[0]!r}")
    return [int(part) if part.isdigit() else part for part in given] or None


def parse_choices(model: list[str] | None) -> dict[str, str]:
    """The networks chosen by stage."""
    from kits_cascade.errors import UsageError
    from kits_cascade.stages import STAGE_BY_KEY

    choices = {}
    for entry in model or []:
        stage, separator, pattern = entry.partition("=")
        if not separator or stage not in STAGE_BY_KEY:
            raise UsageError(f"--model {entry}: give STAGE=PATTERN, with STAGE one of {', '.join(STAGE_BY_KEY)}")
        choices[stage] = pattern
    return choices


def _triple(text: str | None, option: str = "--min-voxels") -> tuple[int, int, int] | None:
    from kits_cascade.errors import UsageError

    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"{option} {text}: give three whole numbers with commas between them")
    first, second, third = (int(part) for part in parts)
    return first, second, third


def parse_ids(text: str) -> dict[str, int]:
    """Dataset ids by stage."""
    from kits_cascade.stages import STAGES

    numbers = _triple(text, "--ids") or ()
    return {stage.key: number for stage, number in zip(STAGES, numbers, strict=True)}


@contextmanager
def _terminating_like_an_interrupt() -> Iterator[None]:
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
    from kits_cascade.cli.app import errors
    from kits_cascade.cli.progress import progress_bar

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


def _conclude(summary: Summary, out: Path, options: CascadeOptions, quiet: bool) -> None:
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
    raise typer.Exit(summary.exit_code)

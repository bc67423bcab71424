"""Options that several commands share, and what turns their text into values; each is declared here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kits_cascade.stages import STAGES, Stage

NnunetDir = Annotated[
    Path | None, typer.Option(help="Folder that holds nnU-Net's three folders, instead of the variables.")
]
# One meaning each in every command: -o is a place to write to, -j cases at a time, --device what computes.
Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Cases at a time; all processors by default.")]
SystemName = Annotated[str, typer.Option("--system", metavar="NAME", help="A row of systems.py: cascade, ...")]
Stages = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Stages to work on, all by default; with commas: ids (221), names (coarse, kidney, masses), or ids of "
        "your own (kidney=322, or three ids in the order coarse, kidney, masses).",
    ),
]
Device = Annotated[str, typer.Option(help="What computes: auto (the best there is), cuda, cuda:N, cpu or mps.")]
Devices = Annotated[
    str,
    typer.Option(
        "--device", metavar="LIST", help="auto, cuda, cpu, mps, or several GPUs, each with a fold: cuda:0,cuda:1."
    ),
]
Engine = Annotated[
    Literal["auto", "torch", "openvino"] | None,
    typer.Option(help="What runs the networks: auto is OpenVINO on processors where it is installed, else PyTorch."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"] | None,
    typer.Option(help="Of the networks; auto: bf16 where the processor multiplies in it."),
]
Workers = Annotated[
    str | None, typer.Option(metavar="N|auto", help="Processes on this machine; auto: one for each visible GPU.")
]
Dask = Annotated[
    str | None, typer.Option(metavar="ADDRESS|local:N", help="Workers of a Dask cluster: its scheduler's address.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
SourceId = Annotated[int, typer.Option("-d", "--dataset-id", min=1, max=999, help="Source dataset.")]
MarginMm = Annotated[float, typer.Option(min=0, help="Room around kidneys and masses in the ROI, in mm.")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Plan preset: default, resenc-l, demo, or the path of a JSON overlay of your own; the system's by default."
    ),
]
GpuMemory = Annotated[
    int | None, typer.Option(metavar="GB", help="Size of the default preset: 8 (the default), 24 or 40.")
]
Models = Annotated[
    Path | None,
    typer.Option("-m", "--models", help="Folder or zip of `models export`; by default those in nnUNet_results."),
]
Fine = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER_OR_ZIP",
        help="A network of KiTS in nnU-Net's layout (labels or regions) instead of the kidney and masses stages.",
    ),
]
Model = Annotated[
    list[str] | None,
    typer.Option(help="Which network where several are trained: STAGE=PATTERN over trainer__plans__configuration."),
]
Folds = Annotated[
    list[str] | None, typer.Option("-f", "--folds", help="Folds to average: -f 0 1 2; by default all trained.")
]
MoreFolds = Annotated[list[str] | None, typer.Argument(hidden=True, help="More folds: -f 0 1 2.")]
Checkpoint = Annotated[str | None, typer.Option(help="File name of the checkpoints; checkpoint_final.pth by default.")]
Ids = Annotated[
    str | None,
    typer.Option(help="Dataset ids of the three stages, 221,222,223; of another system's network one, 220."),
]
OnEmpty = Literal["empty", "full"]


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


def parse_fold_range(text: str) -> tuple[int, ...]:
    """``0-4`` and ``0,1,2`` as fold numbers."""
    from kits_cascade.errors import UsageError

    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise UsageError(f"--folds {text}: give folds such as 0-4 or 0,1,2")
        found += range(int(first), int(last or first) + 1)
    if not found or max(found) > 4:
        raise UsageError(f"--folds {text}: folds are 0 to 4")
    return tuple(dict.fromkeys(found))


def parse_choices(model: list[str] | None, stages: tuple[Stage, ...] = STAGES) -> dict[str, str]:
    """The networks chosen by stage."""
    from kits_cascade.errors import UsageError

    keys, choices = [stage.key for stage in stages], {}
    for entry in model or []:
        stage, separator, pattern = entry.partition("=")
        if not separator or stage not in keys:
            raise UsageError(f"--model {entry}: give STAGE=PATTERN, with STAGE one of {', '.join(keys)}")
        choices[stage] = pattern
    return choices


def parse_triple(text: str, option: str) -> tuple[int, int, int]:
    """Three whole numbers."""
    from kits_cascade.errors import UsageError

    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"{option} {text}: give three whole numbers with commas between them")
    first, second, third = (int(part) for part in parts)
    return first, second, third


def parse_ids(text: str | None, stages: tuple[Stage, ...] = STAGES) -> dict[str, int]:
    """Dataset ids by stage."""
    from kits_cascade.errors import UsageError

    if text is None:
        return {stage.key: stage.dataset_id for stage in stages}
    if len(stages) == 1:
        if not text.strip().isdigit():
            raise UsageError(f"--ids {text}: give the number of the source dataset")
        return {stages[0].key: int(text)}
    numbers = parse_triple(text, "--ids")
    return {stage.key: number for stage, number in zip(stages, numbers, strict=True)}


def split_list(text: str) -> tuple[str, ...]:
    """The parts of a list with commas; none of an empty text."""
    return tuple(part.strip() for part in text.split(",") if part.strip())

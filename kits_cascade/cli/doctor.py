"""What is right and what is not on this machine: each check is one function that returns findings."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from kits_cascade.cli.options import NnunetDir
from kits_cascade.cli.root import app
from kits_cascade.nnunet_folders import VARIABLES, folders_with_id, open_folders, trained_folds
from kits_cascade.processor import memory_bytes
from kits_cascade.stages import STAGES, Stage

Status = Literal["ok", "warn", "fail"]

# Measured: see docs/benchmarks.md. The largest KiTS case has 1059 slices of 512 x 512.
LARGEST_CASE_GIB: Final = 4.0
NNUNET_EXPORT_GIB: Final = 14.0
TRAINING_FREE_GIB: Final = 250.0
OPENVINO_GAIN: Final = "the networks take half of PyTorch's time or less"
_GIB: Final = float(1 << 30)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which a user would mend them."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a doctor that dies of what it examines helps nobody
            findings.append(Finding(check.__name__.lstrip("_"), "fail", f"{type(error).__name__}: {error}"))
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing would stop the user."""
    return all(finding.status != "fail" for finding in findings)


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """For machines."""
    return {"ok": healthy(findings), "findings": [asdict(finding) for finding in findings]}


def _python() -> Iterable[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    good = sys.version_info >= (3, 10)
    yield Finding(
        "Python", "ok" if good else "fail", version, "" if good else "kits-cascade takes Python 3.10 or newer"
    )


def _torch() -> Iterable[Finding]:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("torch", "ok", f"{torch.__version__}, {name}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free")
    elif torch.backends.mps.is_available():
        yield Finding("torch", "ok", f"{torch.__version__}, Apple GPU (mps)")
    else:
        remedy = "prediction works, at minutes a case; training on real data wants a CUDA GPU"
        yield Finding("torch", "warn", f"{torch.__version__}, CPU only ({os.cpu_count()} cores)", remedy)


def _engine() -> Iterable[Finding]:
    from kits_cascade.inference.nnunet.engines import CPU, OPENVINO, TORCH, choose_computing, hardware

    chosen = choose_computing("auto", "auto", "auto")
    detail = f"prediction computes with {chosen.engine} in {chosen.precision} on {hardware(chosen.device)}"
    lacking = chosen.engine == TORCH and chosen.kind == CPU
    remedy = f"pip install 'kits-cascade[fast]' brings {OPENVINO}: {OPENVINO_GAIN}" if lacking else ""
    yield Finding("engine", "ok", detail, remedy)


def _torchvision() -> Iterable[Finding]:
    version = metadata.version("torchvision")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a mismatch shows as RuntimeError, ImportError or OSError
        remedy = (
            "torchvision does not match torch, and nnU-Net's trainer search imports it: install both from the same "
            "source, for example: pip install --force-reinstall torch torchvision"
        )
        yield Finding("torchvision", "fail", f"{version}: {str(error).splitlines()[0]}", remedy)
    else:
        yield Finding("torchvision", "ok", f"{version}, matches torch")


def nnunet_range() -> str:
    """The versions of nnunetv2 that our own metadata asks for."""
    for requirement in metadata.requires("kits-cascade") or []:
        if requirement.startswith("nnunetv2"):
            return requirement.removeprefix("nnunetv2")
    return ""


def _nnunet() -> Iterable[Finding]:
    from packaging.specifiers import SpecifierSet

    version, wanted = metadata.version("nnunetv2"), nnunet_range()
    good = SpecifierSet(wanted).contains(version, prereleases=True)
    remedy = "" if good else f"pip install 'nnunetv2{wanted}'"
    yield Finding("nnunetv2", "ok" if good else "fail", f"{version} (tested range {wanted})", remedy)


def _folders() -> Iterable[Finding]:
    for variable in VARIABLES:
        value = os.environ.get(variable)
        if not value:
            remedy = f"export {variable}=/some/folder, or give --nnunet-dir DIR to our commands"
            yield Finding(variable, "fail", "not set", remedy)
        else:
            yield _folder(variable, Path(value))


def _folder(variable: str, folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding(variable, "fail", f"{folder} does not exist", f"mkdir -p '{folder}'")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(variable, "fail", f"{folder} is not writable ({error.strerror})", "choose another folder")
    free = shutil.disk_usage(folder).free / _GIB
    if free < 5:
        return Finding(variable, "fail", f"{folder}, {free:.1f} GiB free", "free some disk, or choose another folder")
    if variable == "nnUNet_preprocessed" and free < TRAINING_FREE_GIB:
        remedy = f"training on all of KiTS23 wants about {TRAINING_FREE_GIB:.0f} GiB here; prediction does not"
        return Finding(variable, "warn", f"{folder}, {free:.0f} GiB free", remedy)
    return Finding(variable, "ok", f"{folder}, {free:.0f} GiB free")


def _trainers() -> Iterable[Finding]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from kits_cascade.training import trainers

    missing, reason = [], ""
    for name in trainers.__all__:
        try:
            if recursive_find_trainer_class_by_name(name) is None:
                missing.append(name)
        except Exception as error:  # whatever stops the search is what the user needs to see
            missing.append(name)
            reason = f": {type(error).__name__}: {str(error).splitlines()[0]}"
    found = len(trainers.__all__) - len(missing)
    if missing:
        remedy = "install kits-cascade again in this environment; nnUNet_extTrainer must name its nnunet_plugin folder"
        yield Finding("trainers", "fail", f"nnU-Net does not find {', '.join(missing)}{reason}", remedy)
    else:
        yield Finding("trainers", "ok", f"nnU-Net finds all {found} of ours")


def _models() -> Iterable[Finding]:
    results = os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's own spelling
    if not results or not Path(results).is_dir():
        return
    for stage in STAGES:
        yield _stage_models(stage, Path(results))


def _stage_models(stage: Stage, results: Path) -> Finding:
    models = []
    for folder in (path for dataset in folders_with_id(results, stage.dataset_id) for path in dataset.glob("*__*__*")):
        folds = trained_folds(folder)
        if folds:
            models.append(f"{folder.name} (folds {', '.join(map(str, folds))})")
    topic = f"model {stage.dataset_id} {stage.key}"
    if not models:
        remedy = "train it (kits-cascade train) or bring one (kits-cascade models import); until then no prediction"
        return Finding(topic, "warn", "none trained", remedy)
    return Finding(topic, "ok", "; ".join(sorted(models)))


def _memory() -> Iterable[Finding]:
    total = memory_bytes() / _GIB
    if total < LARGEST_CASE_GIB:
        remedy = f"the largest KiTS case (1059 x 512 x 512) takes {LARGEST_CASE_GIB:.0f} GiB; smaller scans may do"
        yield Finding("memory", "fail" if total < LARGEST_CASE_GIB / 2 else "warn", f"{total:.1f} GiB", remedy)
    elif total < NNUNET_EXPORT_GIB + 2:
        remedy = f"our prediction fits; nnU-Net's own preprocessing and export can take {NNUNET_EXPORT_GIB:.0f} GiB"
        yield Finding("memory", "warn", f"{total:.1f} GiB", remedy)
    else:
        yield Finding("memory", "ok", f"{total:.1f} GiB; the largest KiTS case takes {LARGEST_CASE_GIB:.0f}")


_CHECKS: Final[tuple[Callable[[], Iterable[Finding]], ...]] = (
    _python,
    _torch,
    _engine,
    _torchvision,
    _nnunet,
    _folders,
    _trainers,
    _models,
    _memory,
)


_STYLE = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
    nnunet_dir: NnunetDir = None,
) -> None:
    """Say what is right and what is not: Python, torch, nnU-Net, folders, trainers, models, memory.

    Exit code 1 when something would stop you.
    """
    if nnunet_dir is not None:
        open_folders(nnunet_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints while it is imported
        findings = examine()
    if as_json:
        typer.echo(json.dumps(to_json(findings), indent=2, ensure_ascii=False))
    else:
        _print(findings)
    raise typer.Exit(0 if healthy(findings) else 1)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        mark, style = _STYLE[finding.status]
        detail = Text(finding.detail)
        if finding.remedy:
            detail.append(f"\n→ {finding.remedy}", style="dim")
        table.add_row(Text(mark, style=style), Text(finding.topic, style="bold"), detail)
    Console(highlight=False).print(table)

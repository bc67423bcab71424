"""The cascade's networks, each trained on a pool: what it looks at, for how long, and the checkpoint that comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from kits_cascade.errors import UsageError
from kits_cascade.files import atomic_path, read_json, write_json
from kits_cascade.labels import REGIONS
from kits_cascade.models.checkpoint import load_checkpoint, widened
from kits_cascade.nnunet_folders import CHECKPOINT, STREAM_LOG
from kits_cascade.processor import memory_bytes
from kits_cascade.stages import KIDNEY_STAGE, MASSES_STAGE, Stage
from kits_cascade.training.architecture import build_network
from kits_cascade.training.stream.crops import Cropper, CropPlan
from kits_cascade.training.stream.loop import Course, Training
from kits_cascade.training.stream.pool import Painting, Pool, start_painters
from kits_cascade.training.stream.spoilt_prior import Prior

Say = Callable[[str], None]
STATE_FILE: Final = "stream_state.pth"
_FOUND_SHARE: Final = 0.6  # of the masks that the mass network sees, those that the kidney network found
_FIRST_CASES: Final = 24
_CASE_BYTES: Final = 30 << 20
_MEMORY_SHARE: Final = 0.4


@dataclass(frozen=True)
class Diet:
    """What a network is shown, and what it is to find."""

    focus: tuple[tuple[str, float], ...]
    region: float  # how often only the region of the kidneys, as at prediction
    finds: tuple[str, ...]  # regions, one plane of the truth each
    share: float  # of the time


DIETS: Final[Mapping[str, Diet]] = {
    "coarse": Diet((("kidney", 0.4), ("tumor", 0.3), ("", 0.3)), 0.0, ("kidney",), 0.2),
    "kidney": Diet((("kidney", 0.32), ("tumor", 0.32), ("cyst", 0.08), ("", 0.28)), 0.5, ("kidney",), 0.4),
    "masses": Diet((("tumor", 0.42), ("cyst", 0.28), ("kidney", 0.25), ("", 0.05)), 0.55, ("masses", "tumor"), 0.4),
}


@dataclass(frozen=True)
class StreamJob:
    """Training of one stage: nnU-Net's plans and dataset.json, where the model goes, and how long it takes."""

    stage: Stage
    trainer: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    fold: Path
    course: Course
    seed: int
    start: Path | None = None  # a checkpoint whose weights are trained further
    kidney: Path | None = None  # the kidney network's checkpoint, whose masks the mass network sees

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Of the plans."""
        found: Mapping[str, Any] = self.plans["configurations"][self.stage.configuration]
        return found


def default_batch(device: str) -> int:
    """Crops a step on a kind of device."""
    return 2 if device == "cpu" else 16


def pool_size(device: torch.device, most: int) -> int:
    """How many cases fit."""
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
    return max(_FIRST_CASES, min(most, int(memory * _MEMORY_SHARE / _CASE_BYTES)))


def stream_stage(job: StreamJob, painting: Painting, device: torch.device, painters: int, say: Say) -> Path:
    """Train a stage while cases are painted; the checkpoint. Stopped and called again, it goes on."""
    job.fold.mkdir(parents=True, exist_ok=True)
    processes = start_painters(painting, painters)
    pool = Pool(painting.folder, device, pool_size(device, painting.most))
    try:
        pool.start(min(_FIRST_CASES, painting.most))
        training = make_training(job, painting.options.spacing[0], device)
        training.run(pool.cases, partial(_note, job.fold / STREAM_LOG, say))
        return write_fold(job, training.averaged())
    finally:
        pool.stop()
        for process in processes:
            process.terminate()


def _note(log: Path, say: Say, line: str) -> None:
    with log.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    say(line)


def make_training(job: StreamJob, case_mm: float, device: torch.device) -> Training:
    """A network in training, from where it was."""
    diet, labels = DIETS[job.stage.key], {region.name: region.labels for region in REGIONS}
    prior = None
    if job.stage == MASSES_STAGE:
        prior = Prior(_kidney_network(job.kidney, device) if job.kidney else None, _FOUND_SHARE, job.seed, device)
    network = _network(job.configuration, job.seed, job.start).to(device)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    cropper = Cropper(_crop_plan(job, diet, case_mm), job.seed, device)
    regions = tuple(labels[name] for name in diet.finds)
    return Training(network, regions, cropper, job.course, job.fold / STATE_FILE, prior)


def _crop_plan(job: StreamJob, diet: Diet, case_mm: float) -> CropPlan:
    spacing = {float(step) for step in job.configuration["spacing"]}
    if len(spacing) != 1:
        raise UsageError(
            f"stage {job.stage.key} is planned with voxels of {sorted(spacing)} mm; painted ones are cubes"
        )
    values = job.plans["foreground_intensity_properties_per_channel"]["0"]
    first, second, third = (int(size) for size in job.configuration["patch_size"])
    return CropPlan(
        (first, second, third),
        spacing.pop() / case_mm,
        diet.focus,
        diet.region,
        window=(values["percentile_00_5"], values["percentile_99_5"]),
        mean=values["mean"],
        std=values["std"],
    )


def _network(configuration: Mapping[str, Any], seed: int, weights: Path | None) -> torch.nn.Module:
    """With nnU-Net's starting weights, or those of a checkpoint; a channel that is missing there begins at zero."""
    torch.manual_seed(seed)
    channels = len(configuration["normalization_schemes"])
    network = build_network(configuration["architecture"], channels, 2, deep_supervision=False)
    if weights is not None:
        network.load_state_dict(widened(load_checkpoint(weights)["network_weights"], channels))
    return network


def _kidney_network(checkpoint: Path, device: torch.device) -> torch.nn.Module:
    plans = read_json(checkpoint.parents[1] / "plans.json")
    configuration = plans["configurations"][KIDNEY_STAGE.configuration]
    return _network(configuration, 0, checkpoint).to(device)


def write_fold(job: StreamJob, network: torch.nn.Module) -> Path:
    """The trained model as nnU-Net writes one."""
    write_json(job.fold.parent / "plans.json", dict(job.plans))
    write_json(job.fold.parent / "dataset.json", dict(job.dataset))
    content = {
        "network_weights": network.cpu().state_dict(),
        "trainer_name": job.trainer,
        "init_args": {"configuration": job.stage.configuration, "fold": 0},
        "inference_allowed_mirroring_axes": None,
        "current_epoch": 1,
    }
    with atomic_path(job.fold / CHECKPOINT) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)
    return job.fold / CHECKPOINT

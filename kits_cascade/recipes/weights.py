"""From label maps to the shipped networks: painted CT, training on it meanwhile, one bundle; all resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kits_cascade.errors import UsageError
from kits_cascade.files import link_or_copy, read_json
from kits_cascade.models.bundle import open_bundle, read_bundled_networks
from kits_cascade.nnunet_folders import CHECKPOINT, STREAM_LOG, VARIABLES
from kits_cascade.recipes.steps import TWO_CORES, Run, Step, run_command, run_step
from kits_cascade.report.training_curves import draw_curves
from kits_cascade.stages import KIDNEY_STAGE, MASSES_STAGE, PLANS_NAME, STAGES, Stage

if TYPE_CHECKING:
    from kits_cascade.training.stream.stage_stream import StreamJob

TrainStage = Callable[["Weights", Stage, Callable[[str], None]], None]
TRAINERS: Final[Mapping[str, str]] = {
    "coarse": "PaintedTrainer",
    "kidney": "PaintedTrainer",
    "masses": "PaintedMassesTrainer",
}
PRESET: Final = "shipped"
MARGIN_MM: Final = 25
PLANNED_ON: Final = 10  # painted cases that the data sets are made of: plans and names, no training
HELD_OUT: Final = "t1"  # an anatomy that no network may see
Say = Callable[[str], None]


@dataclass(frozen=True)
class Weights:
    """What the networks are made of, and where everything lies."""

    root: Path
    masks: Path
    anatomy: Path
    only: str = ""  # anatomies to paint, with commas; all but the one held out where empty
    count: int = 1500  # cases that are painted, if there is time
    seed: int = 11
    device: str = "cpu"
    start: Path | None = None  # a bundle whose networks are trained further, with its plans
    minutes: float = 360.0  # of training, over all three networks
    batch: int | None = None
    painters: int | None = None
    stages: tuple[str, ...] = tuple(stage.key for stage in STAGES)  # that are trained; the others are the bundle's

    def __post_init__(self) -> None:
        known = [stage.key for stage in STAGES]
        wrong = [name for name in self.stages if name not in known]
        if wrong or not self.stages:
            raise UsageError(f"there is no stage {', '.join(wrong) or 'to train'}; there are {', '.join(known)}")
        if self.start is None and len(self.stages) < len(known):
            raise UsageError("to train some stages only, name the bundle that holds the others: --start BUNDLE")

    @property
    def bundle(self) -> Path:
        """What comes out."""
        return self.root / "networks.zip"

    @cached_property
    def bundled(self) -> dict[str, Path]:
        """Checkpoints of the bundle to start from, by stage."""
        folder = open_bundle(self.start) if self.start is not None else None
        if folder is None:
            raise UsageError(f"{self.start}: not a bundle of networks; give one made by kits-cascade models export")
        return {model.key: model.checkpoints[0] for model in read_bundled_networks(folder, None).all}

    @property
    def anatomies(self) -> tuple[str, ...]:
        """Names of those that are painted."""
        from kits_cascade.synthetic.subjects import find_anatomies

        names = [path.name.split(".")[0] for path in find_anatomies(self.anatomy)]
        wanted = self.only.split(",") if self.only else [name for name in names if name != HELD_OUT]
        return tuple(wanted)

    @property
    def folders(self) -> Mapping[str, Path]:
        """nnU-Net's three."""
        return {variable: self.root / "nnunet" / variable for variable in VARIABLES}

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's folders, and the limits for two cores."""
        folders = {variable: str(folder) for variable, folder in self.folders.items()}
        return {**TWO_CORES, "OMP_WAIT_POLICY": "PASSIVE", **folders}

    def fold(self, stage: Stage) -> Path:
        """nnU-Net's folder of a stage's only fold."""
        name = f"{TRAINERS[stage.key]}__{PLANS_NAME}__{stage.configuration}"
        return self.folders["nnUNet_results"] / stage.dataset / name / "fold_0"

    def is_planned(self) -> bool:
        """Whether all stages have their plans."""
        planned = self.folders["nnUNet_preprocessed"]
        return all((planned / stage.dataset / f"{PLANS_NAME}.json").is_file() for stage in STAGES)


def data_steps(plan: Weights) -> list[Step]:
    """Commands that make the stages' data sets and plans, of a few painted cases; a bundle has its own plans."""
    if plan.start is not None or plan.is_planned():
        return []
    painted = str(plan.root / "painted")
    sources = ("--masks", str(plan.masks), "--anatomy", str(plan.anatomy))
    drawn = ("-n", str(PLANNED_ON), "--seed", str(plan.seed), "--view", "abdomen", "--only", ",".join(plan.anatomies))
    return [
        Step("A few painted CT", ("kits-cascade", "paint", "-o", painted, *sources, *drawn)),
        Step("KiTS folders to Dataset220", ("kits-cascade", "convert", painted)),
        Step("Datasets 221, 222 and 223", ("kits-cascade", "derive-stages", "--margin-mm", str(MARGIN_MM))),
        Step("Plans", ("kits-cascade", "plan", "--preset", PRESET, "--no-verify")),
    ]


def stages_left(plan: Weights) -> list[Stage]:
    """Those that are not trained yet."""
    return [s for s in STAGES if s.key in plan.stages and not (plan.fold(s) / CHECKPOINT).is_file()]


def export_step(plan: Weights) -> Step:
    """The command that makes the bundle."""
    return Step("The bundle", ("kits-cascade", "models", "export", str(plan.bundle), "--half", "--overwrite"))


def make_weights(plan: Weights, say: Say, run: Run = run_command, train: TrainStage | None = None) -> Path:
    """Run the steps that are left; the bundle."""
    begin = time.monotonic()

    def tell(title: str) -> None:
        say(f"{title}  ({(time.monotonic() - begin) / 60:.0f} min)")

    for step in data_steps(plan):
        _run_step(plan, step, tell, say, run)
    _take_over(plan)
    for stage in stages_left(plan):
        tell(f"The {stage.key} network")
        (train or train_stage)(plan, stage, say)
    _run_step(plan, export_step(plan), tell, say, run)
    logs = {stage.key: plan.fold(stage) / STREAM_LOG for stage in STAGES if (plan.fold(stage) / STREAM_LOG).is_file()}
    if logs:
        say(f"curves: {draw_curves(logs, plan.root / 'curves.png')}")
    return plan.bundle


def _run_step(plan: Weights, step: Step, tell: Say, say: Say, run: Run) -> None:
    tell(step.title)
    say(f"    $ {step.shown()}")
    # A painted scan that shows no kidney is left out by convert, which says so with exit code 1.
    run_step(step, plan.environment, run, (0, 1) if step.argv[1] == "convert" else (0,))


def train_stage(plan: Weights, stage: Stage, say: Say) -> None:
    """Train one network on cases that are painted meanwhile."""
    from kits_cascade.parallel import default_jobs
    from kits_cascade.synthetic.painter import Sources
    from kits_cascade.training.devices import choose_device
    from kits_cascade.training.stream.pool import Painting
    from kits_cascade.training.stream.stage_stream import stream_stage

    device = choose_device(plan.device)
    painting = Painting(
        plan.root / "pool", Sources.find(plan.anatomy, plan.masks, plan.anatomies), plan.seed, plan.count
    )
    painters = plan.painters or max(1, default_jobs() - (1 if device.type == "cpu" else 2))
    stream_stage(_job(plan, stage, device.type), painting, device, painters, lambda line: say(f"    {line}"))


def _job(plan: Weights, stage: Stage, device: str) -> StreamJob:
    from kits_cascade.training.stream.loop import Course
    from kits_cascade.training.stream.stage_stream import DIETS, StreamJob, default_batch

    seconds = 60 * plan.minutes * DIETS[stage.key].share / sum(DIETS[key].share for key in plan.stages)
    plans, dataset = _plans(plan, stage)
    kidney = plan.fold(KIDNEY_STAGE) / CHECKPOINT if stage == MASSES_STAGE else None
    return StreamJob(
        stage,
        TRAINERS[stage.key],
        read_json(plans),
        read_json(dataset),
        plan.fold(stage),
        Course(seconds, plan.batch or default_batch(device)),
        plan.seed,
        start=plan.bundled[stage.key] if plan.start else kidney,
        kidney=kidney,
    )


def _plans(plan: Weights, stage: Stage) -> tuple[Path, Path]:
    """nnU-Net's two files: of the planning, or of the bundle, whose weights know no other normalisation."""
    if plan.start is not None:
        model = plan.bundled[stage.key].parents[1]
        return model / "plans.json", model / "dataset.json"
    planned = plan.folders["nnUNet_preprocessed"] / stage.dataset
    return planned / f"{PLANS_NAME}.json", planned / "dataset.json"


def _take_over(plan: Weights) -> None:
    """The bundle's networks of the stages that are not trained."""
    for stage in STAGES:
        fold = plan.fold(stage)
        if stage.key in plan.stages or (fold / CHECKPOINT).is_file():
            continue
        for source in _plans(plan, stage):
            link_or_copy(source, fold.parent / source.name, copy=True)
        link_or_copy(plan.bundled[stage.key], fold / CHECKPOINT, copy=True)

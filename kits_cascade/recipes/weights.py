"""From label maps to the shipped networks: painted CT, nnU-Net's own training, one bundle; each step resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from kits_cascade.errors import KitsCascadeError
from kits_cascade.models.bundle import open_bundle, read_bundled_networks
from kits_cascade.models.checkpoint import widen_checkpoint
from kits_cascade.nnunet_folders import CHECKPOINT, VARIABLES
from kits_cascade.recipes.steps import TWO_CORES, Run, Step, continuation, is_finished, run_command
from kits_cascade.stages import STAGES, Stage

TRAINERS: Final[Mapping[str, str]] = {
    "coarse": "PaintedTrainer",
    "kidney": "PaintedTrainer",
    "masses": "PaintedMassesTrainer",
}
PRESET: Final = "shipped"
MARGIN_MM: Final = 25
HELD_OUT: Final = "t1"  # an anatomy that no network may see
Say = Callable[[str], None]


class WeightsError(KitsCascadeError):
    """A step failed; the step's own words are above."""

    exit_code = 1


@dataclass(frozen=True)
class Weights:
    """What the networks are made of, and where everything lies."""

    root: Path
    masks: Path
    anatomy: Path
    only: str = ""  # anatomies to paint, with commas; all but the one held out where empty
    count: int = 240
    seed: int = 11
    device: str = "cpu"
    start: Path | None = None  # a bundle whose networks are trained further

    @property
    def bundle(self) -> Path:
        """What comes out."""
        return self.root / "networks.zip"

    @property
    def environment(self) -> dict[str, str]:
        """nnU-Net's folders, and the limits for two cores."""
        folders = {variable: str(self.root / "nnunet" / variable) for variable in VARIABLES}
        return {**TWO_CORES, "OMP_WAIT_POLICY": "PASSIVE", **folders}

    def fold(self, stage: Stage) -> Path:
        """nnU-Net's folder of a stage's only fold."""
        name = f"{TRAINERS[stage.key]}__nnUNetPlans__{stage.configuration}"
        return self.root / "nnunet" / "nnUNet_results" / stage.dataset / name / "fold_0"

    def start_file(self, stage: Stage) -> Path:
        """Weights of the stage before, fit for this one's channels."""
        return self.root / f"start_{stage.key}.pth"


def weight_steps(plan: Weights) -> list[Step]:
    """Title and command of each step that is left."""
    return [*_data_steps(plan), *_training_steps(plan), _export_step(plan)]


def _data_steps(plan: Weights) -> list[Step]:
    painted = str(plan.root / "painted")
    sources = ("--masks", str(plan.masks), "--anatomy", str(plan.anatomy))
    drawn = ("-n", str(plan.count), "--seed", str(plan.seed), "--only", plan.only or _all_but_held_out(plan.anatomy))
    return [
        Step("Painted CT", ("kits-cascade", "paint", "-o", painted, *sources, *drawn)),
        Step("KiTS folders to Dataset220", ("kits-cascade", "convert", painted)),
        Step("Datasets 221, 222 and 223", ("kits-cascade", "derive-stages", "--margin-mm", str(MARGIN_MM))),
        Step("Plans and preprocessing", ("kits-cascade", "plan", "--preset", PRESET, "--no-verify")),
    ]


def _all_but_held_out(anatomy: Path) -> str:
    from kits_cascade.synthetic.subjects import find_anatomies

    names = [path.name.split(".")[0] for path in find_anatomies(anatomy)]
    return ",".join(name for name in names if name != HELD_OUT)


def _training_steps(plan: Weights) -> list[Step]:
    """Each stage starts from the network before it, which knows kidneys already: half of the steps are saved."""
    first = _weights_to_start_from(plan) or {stage.key: plan.start_file(stage) for stage in STAGES[1:]}
    steps = []
    for stage in STAGES:
        fold = plan.fold(stage)
        if is_finished(fold):
            continue
        how = continuation(fold) or (("-pretrained_weights", str(first[stage.key])) if stage.key in first else ())
        train = ("nnUNetv2_train", str(stage.dataset_id), stage.configuration, "0", "-tr", TRAINERS[stage.key])
        steps.append(Step(f"The {stage.key} network", (*train, "-device", plan.device, *how)))
    return steps


def _weights_to_start_from(plan: Weights) -> dict[str, Path]:
    if plan.start is None:
        return {}
    folder = open_bundle(plan.start)
    if folder is None:
        raise WeightsError(f"{plan.start}: not a bundle of networks; give one made by kits-cascade models export")
    return {model.key: model.checkpoints[0] for model in read_bundled_networks(folder, None).all}


def _export_step(plan: Weights) -> Step:
    return Step("The bundle", ("kits-cascade", "models", "export", str(plan.bundle), "--half", "--overwrite"))


def _write_start(plan: Weights, step: Step) -> None:
    """The weights that a training starts from, where it is one that starts, and the network before is trained."""
    for before, stage in pairwise(STAGES):
        target, source = plan.start_file(stage), plan.fold(before) / CHECKPOINT
        if str(target) in step.argv and not target.is_file() and source.is_file():
            widen_checkpoint(source, target, channels=2 if stage.key == "masses" else 1)


def make_weights(plan: Weights, say: Say, run: Run = run_command) -> Path:
    """Run the steps that are left; the bundle."""
    begin = time.monotonic()
    steps = weight_steps(plan)
    for number, step in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {step.title}  ({(time.monotonic() - begin) / 60:.0f} min)")
        say(f"    $ {step.shown()}")
        _write_start(plan, step)
        code = run(step.argv, plan.environment)
        # Painted chests and pelvises hold no kidney: convert leaves them out, and says so with exit code 1.
        if code != 0 and not (code == 1 and step.argv[1] == "convert"):
            raise WeightsError(
                f"{step.argv[0]} ended with exit code {code}; what is done is kept: run it again to go on"
            )
    return plan.bundle

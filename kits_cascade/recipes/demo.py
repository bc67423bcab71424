"""The demonstrations: what the shipped networks do, and the whole mission on phantoms from nothing.

Both are made of the commands that a user would type, each of which can be resumed.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import UsageError
from kits_cascade.files import read_json
from kits_cascade.labels import REGION_NAMES
from kits_cascade.models.choose import SHIPPED
from kits_cascade.recipes.steps import TWO_CORES, Step, run_step

_TRAINERS: Final = {"coarse": "DemoTrainer", "kidney": "DemoSurfaceLossTrainer", "masses": "DemoMassesTrainer"}
# A few hundred steps on a few phantoms: the fine networks must have seen what a wrong coarse box can hold.
_MARGIN_MM: Final = 70
Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """The shipped networks on painted CT of made-up bodies, which they have never seen, or on the user's own CT."""

    root: Path
    held_out: int = 3
    device: str = "auto"
    ct: Path | None = None

    @property
    def kind(self) -> str:
        """What its cases are called."""
        return "Painted"

    @property
    def truth(self) -> Path:
        """Cases that no network has seen."""
        return self.root / "held-out"

    @property
    def predictions(self) -> Path:
        """What the cascade says of them."""
        return self.root / "predictions"

    @property
    def scores(self) -> Path:
        """The tables."""
        return self.root / "scores"

    @property
    def picture(self) -> Path:
        """Prediction beside truth."""
        return self.root / "picture.png"

    @property
    def source(self) -> Path:
        """What the cascade reads."""
        return self.ct or self.truth

    def steps(self) -> list[tuple[str, list[str]]]:
        """Title and command of each step."""
        p, t, device = str(self.predictions), str(self.truth), ["--device", self.device]
        predict = ["predict", "-i", str(self.source), "-o", p, "-m", str(SHIPPED), "--no-tta", *device]
        if self.ct is not None:
            return [("The cascade on your CT", predict), ("Report", ["report", p, "-i", str(self.ct)])]
        sources = str(self.root / "sources")
        drawn = ["--masks", f"{sources}/masks", "--anatomy", f"{sources}/bodies", "-n", str(self.held_out)]
        return [
            ("Made-up bodies", ["phantom", "--sources", "-o", sources, "-n", str(self.held_out), "--seed", "1"]),
            ("Painted CT that no network has seen", ["paint", *drawn, "-o", t, "--view", "abdomen", "--no-sheet"]),
            ("The cascade with the shipped networks", predict),
            *self._scoring(),
        ]

    def _scoring(self) -> list[tuple[str, list[str]]]:
        p, t = str(self.predictions), str(self.truth)
        return [
            ("Scores", ["evaluate", "-p", p, "-g", t, "-o", str(self.scores)]),
            ("Report", ["report", p, "-g", t, "-i", t]),
        ]


@dataclass(frozen=True)
class TrainingDemo(Demo):
    """The whole mission from nothing: phantoms, training of small networks, prediction."""

    held_out: int = 12
    cases: int = 40
    quick: bool = False  # a few training steps only

    @property
    def kind(self) -> str:
        """What its cases are called."""
        return "Phantom"

    def steps(self) -> list[tuple[str, list[str]]]:
        """Title and command of each step."""
        train, nnunet = self.root / "phantoms", ["--nnunet-dir", str(self.root / "nnunet")]
        kind = "DemoQuick" if self.quick else "Demo"
        trainers = [w for s, name in _TRAINERS.items() for w in ("--trainer", f"{s}={name.replace('Demo', kind)}")]
        device, margin = ["--device", self.device], ["--margin-mm", str(_MARGIN_MM)]
        p, t = str(self.predictions), str(self.truth)
        return [
            ("Phantoms to learn from", ["phantom", "-o", str(train), "-n", str(self.cases), "--seed", "0"]),
            ("Phantoms to be tested on", ["phantom", "-o", t, "-n", str(self.held_out), "--seed", "1"]),
            ("KiTS folders to Dataset220", ["convert", str(train), *nnunet]),
            ("Datasets 221, 222 and 223", ["derive-stages", *margin, *nnunet]),
            ("Plans and preprocessing", ["plan", "--preset", "demo", *nnunet]),
            (
                "Three small networks, trained by nnU-Net",
                ["train", "--preset", "demo", "--folds", "0", "--oof", "never", *margin, *device, *trainers, *nnunet],
            ),
            ("The cascade on the held-out phantoms", ["predict", "-i", t, "-o", p, "--no-tta", *device, *nnunet]),
            *self._scoring(),
        ]


def run(demo: Demo, say: Say) -> dict[str, float]:
    """Run all steps; the mean scores on the held-out phantoms (none on a CT without truth)."""
    begin = time.monotonic()
    if not isinstance(demo, TrainingDemo) and not SHIPPED.is_file():
        raise UsageError("this installation comes with no networks; kits-cascade demo --train makes some, on phantoms")
    steps = demo.steps()
    limits = {name: value for name, value in TWO_CORES.items() if name not in os.environ}
    for number, (title, command) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {title}  ({_clock(time.monotonic() - begin)})")
        say(f"    $ kits-cascade {shlex.join(command)}")
        run_step(Step(title, ("kits-cascade", *command)), limits)
    if demo.ct is not None:
        draw_ct(demo)
        return {}
    draw_picture(demo)
    return mean_scores(demo.scores)


def mean_scores(folder: Path) -> dict[str, float]:
    """Mean of each of the challenge's columns."""
    return dict(read_json(folder / "evaluation.json")["average"])


def draw_picture(demo: Demo) -> None:
    """Prediction beside truth in three planes, of the case with the median tumour Dice."""
    from kits_cascade.report.figures import case_panel
    from kits_cascade.volumes.nifti import read_labels, read_volume

    content: dict[str, Any] = read_json(demo.scores / "evaluation.json")
    case = _typical(content)
    case_panel(
        read_volume(demo.truth / case / "imaging.nii.gz"),
        read_labels(demo.truth / case / "segmentation.nii.gz"),
        read_labels(demo.predictions / f"{case}.nii.gz"),
        demo.picture,
        f"{demo.kind} {case}",
    )


def draw_ct(demo: Demo) -> None:
    """What was found in the user's CT, in three planes (of the first case, where there are several)."""
    from kits_cascade.report.figures import case_panel
    from kits_cascade.volumes.cases import load_case, result_path
    from kits_cascade.volumes.find import find_inputs
    from kits_cascade.volumes.nifti import is_nifti, read_labels

    for case in find_inputs(demo.source):
        labels = result_path(case, demo.predictions)
        if labels.is_file() and is_nifti(labels):
            case_panel(load_case(case).volume, None, read_labels(labels), demo.picture, case.name)
            return


def _typical(content: dict[str, Any]) -> str:
    ranked = sorted((case["scores"]["tumor"]["dice"], case["case"]) for case in content["cases"])
    return str(ranked[len(ranked) // 2][1])


def summary(demo: Demo, scores: dict[str, float], seconds: float) -> list[str]:
    """What the demo ends with."""
    lines = []
    if scores:
        lines = [f"{'':16}{'Dice':>8}{'surface':>10}"]
        lines += [f"{name:16}{scores[f'Dice_{name}']:8.3f}{scores[f'SD_{name}']:10.3f}" for name in REGION_NAMES]
    places = {
        "picture": demo.picture,
        "report": demo.predictions / "report.html",
        "scores": demo.scores,
        "predictions": demo.predictions,
        "models": demo.root / "nnunet" / "nnUNet_results",
    }
    lines += ["", *(f"{name:16}{path}" for name, path in places.items() if path.exists())]
    what = f"{demo.held_out} held-out cases" if demo.ct is None else f"{demo.ct}"
    return [*lines, "", f"{what}; {_clock(seconds)} in all"]


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"

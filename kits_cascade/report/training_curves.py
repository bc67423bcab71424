"""The course of trainings on a stream of cases, drawn from their logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kits_cascade.files import atomic_path

_LINE: Final = re.compile(r"step\s+(\d+).*loss\s+([\d.]+)\s+dice\s+([\d. ]+)")


def read_log(path: Path) -> list[tuple[int, float, tuple[float, ...]]]:
    """Step, loss, and the Dice of each output, line by line."""
    found = map(_LINE.search, path.read_text(encoding="utf-8").splitlines())
    return [(int(m[1]), float(m[2]), tuple(map(float, m[3].split()))) for m in found if m]


def draw_curves(logs: Mapping[str, Path], out: Path) -> Path:
    """One picture of all stages: loss, and Dice of the crops just trained on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(logs), 3.4), layout="constrained")
    for axes, (stage, path) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        course = read_log(path)
        steps = [step for step, _, _ in course]
        axes.plot(steps, [loss for _, loss, _ in course], color="0.6", label="loss")
        for number, values in enumerate(zip(*(dice for _, _, dice in course), strict=True)):
            axes.plot(steps, values, label=f"Dice {number + 1}" if number else "Dice")
        axes.set(title=stage, xlabel="step", ylim=(0, 1.5))
        axes.legend(frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return out

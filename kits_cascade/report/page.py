"""A folder of predictions as one self-contained page, with PNG files for a paper beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from kits_cascade.errors import DatasetError
from kits_cascade.evaluation.metrics import METRICS, TARGETS
from kits_cascade.evaluation.pairs import nifti_files, truth_files
from kits_cascade.evaluation.score import FULL_JSON, CaseScore, ScoreTable, check_writable, evaluate_folder
from kits_cascade.files import write_text
from kits_cascade.inference.certainty import LIKELY, UNSURE
from kits_cascade.inference.plausibility_finding import DOUBTFUL, IMPLAUSIBLE
from kits_cascade.labels import LABEL_NAMES, REGIONS
from kits_cascade.parallel import Progress, run_cases
from kits_cascade.report import figures
from kits_cascade.report.pictures import CasePicture, PictureTask, draw_case
from kits_cascade.report.run_info import Judgement, RunInfo
from kits_cascade.version import __version__
from kits_cascade.volumes.find import find_inputs
from kits_cascade.volumes.itk import is_itk
from kits_cascade.volumes.nifti import case_name

REPORT_HTML: Final = "report.html"
FIGURES_FOLDER: Final = "report"
VIEW_FOLDER: Final = "view"  # of the 3-D pages, where there are any
_STRIP_METRICS: Final = (("dice", "Dice"), ("surface_dice", "Surface Dice"))


@dataclass(frozen=True)
class Report:
    """What was written."""

    page: Path
    pictures: tuple[Path, ...]
    scores: ScoreTable | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Strip:
    """Values of all cases on one axis, as a box plot with a dot per case."""

    title: str
    unit: str
    low: float
    high: float
    values: tuple[tuple[str, float], ...]  # case, value
    quartiles: tuple[float, float, float]
    whiskers: tuple[float, float]

    @staticmethod
    def of(title: str, values: Mapping[str, float], unit: str = "", high: float | None = None) -> Strip:
        """Tukey's box: whiskers reach the last value within 1.5 box lengths."""
        known = {case: value for case, value in values.items() if np.isfinite(value)}
        array = np.array(list(known.values()) or [0.0])
        q1, q2, q3 = (float(q) for q in np.percentile(array, (25, 50, 75)))
        reach = 1.5 * (q3 - q1)
        inside = array[(array >= q1 - reach) & (array <= q3 + reach)]
        top = high if high is not None else max(float(array.max()) * 1.05, 1e-3)
        ends = float(inside.min()), float(inside.max())
        return Strip(title, unit, 0.0, top, tuple(known.items()), (q1, q2, q3), ends)

    def place(self, value: float) -> float:
        """Per cent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def build_report(
    predictions: Path,
    truth: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    *,
    panels: int = 6,
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> Report:
    """Write report.html, and PNG files into report/, for a folder of predictions; into that folder by default.

    With ``truth`` the predictions are scored first; without it, an evaluation.json beside them gives the scores.
    """
    files = prediction_files(predictions)
    out = out or predictions
    check_writable(out)
    run = RunInfo.read(predictions)
    scores = _scores(predictions, truth, out, jobs, progress)
    order = _order(files, scores, run)
    truths = {case: paths[0] for case, paths in truth_files(truth).items()} if truth else {}
    image_paths = {case.name: case.path for case in find_inputs(images)} if images else run.inputs
    shown = {case: out / FIGURES_FOLDER / f"{case}.png" for case in order[:panels]}
    tasks = [PictureTask(c, files[c], truths.get(c), image_paths.get(c), shown.get(c), run.look_at(c)) for c in order]
    drawn, failures = _draw(tasks, jobs, progress)
    title = predictions.resolve().name
    views, judged = view_links(out, order), {case: run.judgement(case, files[case]) for case in order}
    write_text(out / REPORT_HTML, _render(title, order, drawn, scores, run, failures, views, judged))
    pictures = [path for case, path in shown.items() if case in drawn] + _figures(out / FIGURES_FOLDER, scores)
    return Report(out / REPORT_HTML, tuple(pictures), scores, tuple(failures))


def prediction_files(out: Path) -> dict[str, Path]:
    """The label files of a folder by case; where two claim a case, the first is shown."""
    found = {case: paths[0] for case, paths in nifti_files(out).items()}
    for path in sorted(out.iterdir()):
        if is_itk(path) and path.is_file() and not path.name.startswith("."):
            found.setdefault(case_name(path), path)
    if not found:
        raise DatasetError(f"{out}: no predictions (*.nii.gz, *.nii) in this folder")
    return found


def view_links(out: Path, cases: Sequence[str]) -> dict[str, str]:
    """Addresses of the 3-D pages that lie beside the report."""
    pages = {case: out / VIEW_FOLDER / f"{case}.html" for case in cases}
    return {case: quote(page.relative_to(out).as_posix()) for case, page in pages.items() if page.is_file()}


def _scores(
    predictions: Path, truth: Path | None, out: Path, jobs: int | None, progress: Progress | None
) -> ScoreTable | None:
    if truth is not None:
        return evaluate_folder(predictions, truth, out, jobs=jobs, progress=progress)
    known = predictions / FULL_JSON
    return ScoreTable.read(known) if known.is_file() else None


def _order(predictions: Mapping[str, Path], scores: ScoreTable | None, run: RunInfo) -> list[str]:
    """Worst first; cases without a score after them, first those whose result is not to be believed."""
    scored = [case.case for case in scores.worst_first if case.case in predictions] if scores else []
    rank: dict[str, int] = {IMPLAUSIBLE: 0, DOUBTFUL: 1}
    return scored + sorted(predictions.keys() - set(scored), key=lambda case: (rank.get(run.verdict(case), 2), case))


def _draw(
    tasks: Sequence[PictureTask], jobs: int | None, progress: Progress | None
) -> tuple[dict[str, CasePicture], list[str]]:
    drawn, failures = {}, []
    for outcome in run_cases(draw_case, [(task.case, task) for task in tasks], jobs=jobs, progress=progress):
        if outcome.result is None:
            failures.append(f"{outcome.name}: {outcome.failure}")
        else:
            drawn[outcome.name] = outcome.result
    return drawn, sorted(failures)


def _figures(folder: Path, scores: ScoreTable | None) -> list[Path]:
    if scores is None or not scores.cases:
        return []
    figures.distributions(scores, folder / "distributions.png")
    figures.detection(scores, folder / "lesions.png")
    return [folder / "distributions.png", folder / "lesions.png"]


def _render(
    title: str,
    order: Sequence[str],
    drawn: Mapping[str, CasePicture],
    scores: ScoreTable | None,
    run: RunInfo,
    failures: Sequence[str],
    views: Mapping[str, str],
    judged: Mapping[str, Judgement],
) -> str:
    by_case: dict[str, CaseScore] = {case.case: case for case in scores.cases} if scores else {}
    return render(
        "report.html",
        title=title,
        run=run.about,
        failed=run.failed,
        scores=scores if by_case else None,
        summary=scores.summary() if scores and by_case else None,
        findings=scores.findings if scores else (),
        failures=failures,
        cases=[
            {
                "name": name,
                "score": by_case.get(name),
                "picture": drawn.get(name),
                "judged": judged[name],
                "view": views.get(name),
            }
            for name in order
        ],
        strips=_strips(order, drawn, by_case),
        regions=REGIONS,
        targets=TARGETS,
        metrics=METRICS,
        unsure=UNSURE,
        likely=LIKELY,
        has_truth=any(plane.truth for picture in drawn.values() for plane in picture.planes),
    )


def render(template: str, **content: Any) -> str:
    """One of the templates, filled in."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kits_cascade.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=_number, interval=_interval, percent=_percent)
    return environment.get_template(template).render(version=__version__, **content)


def _strips(
    order: Sequence[str], drawn: Mapping[str, CasePicture], by_case: Mapping[str, CaseScore]
) -> list[tuple[str, list[Strip]]]:
    """Scores per region where there are any; predicted volumes otherwise."""
    if by_case:
        return [
            (title, [
                Strip.of(r.title, {c: s.scores[r.name][metric] for c, s in by_case.items()}, high=1.0) for r in REGIONS
            ])
            for metric, title in _STRIP_METRICS
        ]  # fmt: skip
    volumes = {name: {c: drawn[c].volumes_ml[name] for c in order if c in drawn} for name in LABEL_NAMES.values()}
    return [("Predicted volume", [Strip.of(name.capitalize(), v, " mL") for name, v in volumes.items()])]


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _interval(row: Mapping[str, Any], digits: int = 3) -> str:
    if row["low"] is None:
        return ""
    return f"{row['low']:.{digits}f} – {row['high']:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"

"""The challenge's ranking of systems, and paired tests between them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.evaluation.score import OFFICIAL_COLUMNS, OFFICIAL_CSV
from kits_cascade.evaluation.statistics import SEED, bootstrap_means, holm, wilcoxon_p
from kits_cascade.files import write_json, write_text
from kits_cascade.volumes.volume import Array
from kits_cascade.words import some

_RESAMPLES: Final = 1000
_TUMOR_DICE: Final = OFFICIAL_COLUMNS.index("Dice_tumor")
# What the systems are tested on, as columns of the challenge's table.
MEASURES: Final = {"mean Dice": slice(0, 3), "mean surface Dice": slice(3, 6), "tumor Dice": slice(2, 3)}


@dataclass(frozen=True)
class System:
    """One folder's scores as the challenge's table holds them."""

    name: str
    cases: tuple[str, ...]
    scores: Array  # (cases, 6), of the columns OFFICIAL_COLUMNS
    average: Array  # (6,)

    def restricted(self, cases: Sequence[str]) -> System:
        """Only the given cases, with their own average."""
        scores = self.scores[[self.cases.index(case) for case in cases]]
        return System(self.name, tuple(cases), scores, scores.mean(axis=0))

    def measure(self, name: str) -> Array:
        """A measure per case."""
        return cast("Array", self.scores[:, MEASURES[name]].mean(axis=1))


@dataclass(frozen=True)
class Place:
    """A system's place in the ranking."""

    name: str
    rank: int
    mean_rank: float
    mean_dice: float
    mean_surface_dice: float
    tumor_dice: float
    first_share: float  # of bootstrap resamples of the cases in which it comes first


@dataclass(frozen=True)
class Comparison:
    """A paired test between two systems on one measure."""

    first: str
    second: str
    measure: str
    difference: float  # mean of first minus second
    low: float
    high: float
    better_cases: int
    worse_cases: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Ranking:
    """Places, best first, and all paired tests."""

    cases: tuple[str, ...]
    places: tuple[Place, ...]
    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...] = ()

    def csv(self) -> str:
        """In the form of the challenge's own ranking file."""
        rows = ["team_name,final_rank,mean_rank,mean_dice,mean_sd,tumor_dice"]
        rows += [
            f"{p.name},{p.rank:d},{p.mean_rank:.4f},{p.mean_dice:.8f},{p.mean_surface_dice:.8f},{p.tumor_dice:.8f}"
            for p in self.places
        ]
        return "\n".join(rows) + "\n"

    def to_json(self) -> dict[str, Any]:
        """With the tests."""
        return {
            "cases": list(self.cases),
            "left_out": list(self.left_out),
            "ranking": [vars(place) for place in self.places],
            "tests": [vars(comparison) for comparison in self.comparisons],
        }

    def write(self, folder: Path) -> None:
        """ranking.csv and ranking.json."""
        write_text(folder / "ranking.csv", self.csv())
        write_json(folder / "ranking.json", self.to_json())


def read_system(path: Path, name: str | None = None) -> System:
    """From a folder with evaluation.csv (ours or the challenge's own), or that file itself."""
    table = path / OFFICIAL_CSV if path.is_dir() else path
    if not table.is_file():
        raise DatasetError(f"{path}: has no {OFFICIAL_CSV}; run kits-cascade evaluate -p {path} -g TRUTH first")
    values, problem = _read_table(table)
    if problem:
        raise DatasetError(f"{table}: not the challenge's table ({problem}); run kits-cascade evaluate again")
    average = values.pop("average", None)
    if not values:
        raise DatasetError(f"{table}: has no cases")
    scores = np.stack(list(values.values()))
    average = scores.mean(axis=0) if average is None else average
    return System(name or table.parent.resolve().name, tuple(values), scores, average)


def _read_table(path: Path) -> tuple[dict[str, Array], str | None]:
    """Rows by case, and what is wrong with the file."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header, *rows = [row for row in csv.reader(stream) if row] or [[]]
    if tuple(header) != ("caseID", *OFFICIAL_COLUMNS):
        return {}, f"its columns are {', '.join(header)}"
    try:
        values = {row[0]: np.array([float(value) for value in row[1:]]) for row in rows}
    except ValueError as error:
        return {}, str(error)
    if len(values) != len(rows):
        return {}, "a case stands there twice"
    if any(value.shape != (6,) or not np.isfinite(value).all() for value in values.values()):
        return {}, "a row does not have six numbers"
    return values, None


def read_systems(paths: Sequence[Path]) -> list[System]:
    """Systems by folder name; folders of one name are told apart by what is above them."""
    resolved = [(path if path.is_dir() else path.parent).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UsageError("the same folder is given twice; each system needs a folder of its own")
    return [read_system(path, name) for path, name in zip(paths, _short_names(resolved), strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    longest = max(len(folder.parts) for folder in folders)
    for depth in range(1, longest + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def rank_then_aggregate(values: Array) -> tuple[Array, Array]:
    """Rank the systems (rows) on each measure (columns; higher is better), average the ranks, and rank that."""
    from scipy.stats import rankdata

    aggregated = rankdata(-values, method="min", axis=0).mean(axis=1)
    return rankdata(aggregated, method="min").astype(int), aggregated


def final_ranks(averages: Array) -> tuple[Array, Array]:
    """The challenge's ranks from the systems' averages (systems, 6): equal ranks are ordered by tumour Dice."""
    measures = np.stack([averages[:, :3].mean(axis=1), averages[:, 3:].mean(axis=1)], axis=1)
    ranks, aggregated = rank_then_aggregate(measures)
    for rank in np.unique(ranks):
        tied = ranks == rank
        ranks[tied] = rank - 1 + rank_then_aggregate(averages[tied][:, _TUMOR_DICE, None])[0]
    return ranks, aggregated


def rank_systems(systems: Sequence[System], common: bool = False) -> Ranking:
    """Rank systems that were scored on the same cases (``common``: on the cases that all of them have)."""
    if len(systems) < 2:
        raise UsageError("a ranking needs at least two folders")
    systems, left_out = _on_same_cases(systems, common)
    averages = np.stack([system.average for system in systems])
    ranks, mean_ranks = final_ranks(averages)
    first = _first_shares(systems)
    order = sorted(range(len(systems)), key=lambda i: (ranks[i], systems[i].name))
    places = tuple(
        Place(
            systems[i].name,
            int(ranks[i]),
            float(mean_ranks[i]),
            float(averages[i, :3].mean()),
            float(averages[i, 3:].mean()),
            float(averages[i, _TUMOR_DICE]),
            float(first[i]),
        )
        for i in order
    )
    return Ranking(systems[0].cases, places, tuple(_comparisons([systems[i] for i in order])), left_out)


def _on_same_cases(systems: Sequence[System], common: bool) -> tuple[list[System], tuple[str, ...]]:
    sets = [set(system.cases) for system in systems]
    shared, every = set.intersection(*sets), set.union(*sets)
    if shared == every:
        return [s if s.cases == systems[0].cases else s.restricted(systems[0].cases) for s in systems], ()
    differing = sorted(every - shared)
    if not shared:
        raise UsageError("the systems have no case in common")
    if not common:
        raise UsageError(
            f"the systems were not scored on the same cases: not in all of them: "
            f"{some(differing)}. A ranking on "
            f"different cases means nothing; --common ranks on the {len(shared)} cases that all of them have"
        )
    return [system.restricted(sorted(shared)) for system in systems], tuple(differing)


def _first_shares(systems: Sequence[System]) -> Array:
    """How often each system comes first when the cases are drawn anew: how much the ranking hangs on single cases."""
    rng = np.random.default_rng(SEED)
    scores = np.stack([system.scores for system in systems])
    cases = scores.shape[1]
    wins = np.zeros(len(systems))
    for _ in range(_RESAMPLES):
        ranks = final_ranks(scores[:, rng.integers(cases, size=cases)].mean(axis=1))[0]
        wins += (ranks == 1) / (ranks == 1).sum()
    return cast("Array", wins / _RESAMPLES)


def _comparisons(systems: Sequence[System]) -> list[Comparison]:
    found: list[Comparison] = []
    for measure in MEASURES:
        pairs = list(itertools.combinations(systems, 2))
        p_values = [wilcoxon_p(a.measure(measure), b.measure(measure)) for a, b in pairs]
        for (a, b), p, adjusted in zip(pairs, p_values, holm(p_values), strict=True):
            found.append(_comparison(a, b, measure, p, adjusted))
    return found


def _comparison(a: System, b: System, measure: str, p: float, adjusted: float) -> Comparison:
    difference = a.measure(measure) - b.measure(measure)
    low, high = np.percentile(bootstrap_means(difference), (2.5, 97.5))
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(
        a.name, b.name, measure, float(difference.mean()), float(low), float(high), better, worse, p, adjusted
    )

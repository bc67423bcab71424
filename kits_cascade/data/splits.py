"""One cross-validation split for all stages: a case that one stage trains on is never another stage's validation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kits_cascade.data.datasets import CONVERSION_FILE, ROI_FILE, SPLITS_FILE, RawDataset
from kits_cascade.errors import DatasetError
from kits_cascade.files import read_json, sweep_temporary, write_json
from kits_cascade.labels import CYST, TUMOR
from kits_cascade.nnunet_folders import NnunetFolders, folders_with_id
from kits_cascade.stages import STAGES, Stage
from kits_cascade.volumes.kits import contrast_phase

FOLDS: Final = 5

Splits = list[dict[str, list[str]]]


@dataclass(frozen=True)
class CaseTraits:
    """What the split is balanced by."""

    phase: str
    lesion_mm3: float


def make_splits(traits: Mapping[str, CaseTraits], *, folds: int = FOLDS, seed: int = 0) -> Splits:
    """Folds of equal size with the same mix of phases and lesion loads.

    Within a phase, cases are sorted by load and dealt in rounds: each round gives one case of about the same load to
    each fold, in random order. The deal goes on from one phase to the next, so that sizes differ by one case at most.
    With fewer cases than folds, folds repeat: nnU-Net can then still train any of the five.
    """
    if not traits:
        raise DatasetError("there are no cases to split")
    order = sorted(traits, key=lambda case: (traits[case].phase, traits[case].lesion_mm3, case))
    used = min(folds, len(order))
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for begin in range(0, len(order), used):
        for case, fold in zip(order[begin : begin + used], rng.permutation(used), strict=False):
            fold_of[case] = int(fold)
    return [_fold(fold_of, number % used) for number in range(folds)]


def _fold(fold_of: Mapping[str, int], number: int) -> dict[str, list[str]]:
    validation = sorted(case for case, fold in fold_of.items() if fold == number)
    training = sorted(case for case, fold in fold_of.items() if fold != number)
    # A single case is its own validation: nnU-Net takes no empty list.
    return {"train": training or validation, "val": validation}


def read_splits(path: Path) -> Splits | None:
    """A split file, None when there is none."""
    if not path.is_file():
        return None
    try:
        return [
            {"train": list(map(str, fold["train"])), "val": list(map(str, fold["val"]))} for fold in read_json(path)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a split file of nnU-Net ({error}); mend or delete it") from error


def covers(splits: Sequence[Mapping[str, Iterable[str]]], cases: Iterable[str]) -> bool:
    """Whether every fold speaks of exactly these cases."""
    wanted = set(cases)
    return bool(splits) and all(set(fold["train"]) | set(fold["val"]) == wanted for fold in splits)


def out_of_fold(splits: Splits) -> dict[str, int]:
    """The first fold that validates each case."""
    result: dict[str, int] = {}
    for number, fold in enumerate(splits):
        for case in fold["val"]:
            result.setdefault(case, number)
    return result


def share_splits(
    folders: NnunetFolders, source: RawDataset, stages: Iterable[Stage], traits: Mapping[str, CaseTraits], seed: int
) -> tuple[Path, list[str]]:
    """Write one split for the source and all stages, where nnU-Net reads it and beside the raw data; what to tell.

    A split of the source's that fits the cases is kept, so that a split of the user's own rules all stages.
    """
    path = source.folder / SPLITS_FILE
    kept = read_splits(path)
    splits = kept if kept is not None and covers(kept, traits) else make_splits(traits, seed=seed)
    for folder in _split_folders(folders, source, stages):
        if read_splits(folder / SPLITS_FILE) != splits:
            write_json(folder / SPLITS_FILE, splits)
        sweep_temporary(folder)
    if kept is None or splits is kept:
        return path, []
    return path, ["the cases have changed, so the split was made anew; models trained on the old one no longer fit it"]


def split_source(folders: NnunetFolders, source: RawDataset, seed: int = 0) -> None:
    """The split of the source alone, where none is there yet: as derive-stages would make it of the same cases."""
    if read_splits(source.folder / SPLITS_FILE) is None:
        share_splits(folders, source, (), source_traits(source), seed)


def source_traits(source: RawDataset) -> dict[str, CaseTraits]:
    """What convert has left of each case, as far as it has."""
    facts = read_json(source.folder / CONVERSION_FILE)["cases"] if has_facts(source.folder) else {}
    return {name: _traits_of(name, facts.get(name)) for name in source.cases()}


def has_facts(folder: Path) -> bool:
    """Whether convert has left what it knows of each case."""
    return (folder / CONVERSION_FILE).is_file()


def _traits_of(name: str, facts: Mapping[str, Any] | None) -> CaseTraits:
    load = 0.0
    if facts is not None:
        voxels = sum(facts["label_voxels"].get(str(label), 0) for label in (TUMOR, CYST))
        load = voxels * math.prod(facts["spacing"])
    return CaseTraits(contrast_phase(name) or "unknown", load)


def _split_folders(folders: NnunetFolders, source: RawDataset, stages: Iterable[Stage]) -> list[Path]:
    names = [source.name, *(stage.dataset for stage in stages)]
    for stage in STAGES:  # those that are there already, and not part of this run
        names += [path.name for path in folders_with_id(folders.raw, stage.dataset_id) if (path / ROI_FILE).is_file()]
    return [root / name for name in dict.fromkeys(names) for root in (folders.raw, folders.preprocessed)]

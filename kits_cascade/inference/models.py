"""Which trained networks the cascade uses: found in nnU-Net's results folder, or in an exported bundle."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError, UsageError
from kits_cascade.files import read_json, sha256
from kits_cascade.stages import STAGES, Stage

CHECKPOINT: Final = "checkpoint_final.pth"
MANIFEST: Final = "kits-cascade-models.json"
MASSES, TUMOR = "masses", "tumor"
Fold = int | str  # a number, or "all"


@dataclass(frozen=True)
class StageModel:
    """One trained network: a folder as nnU-Net writes it, and what of it is used."""

    key: str  # the stage: coarse, kidney or masses
    folder: Path
    folds: tuple[Fold, ...]
    configuration: str
    trainer: str
    plans: str
    checkpoint: str = CHECKPOINT
    outputs: tuple[str, ...] = ()  # its foreground labels or regions, in the order of the channels

    @property
    def name(self) -> str:
        """As nnU-Net names the folder."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def dataset(self) -> str:
        """Folder name of the data set."""
        return self.folder.parent.name

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """One checkpoint per fold."""
        return tuple(self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that prediction reads."""
        return (self.folder / "dataset.json", self.folder / "plans.json", *self.checkpoints)


@dataclass(frozen=True)
class CascadeModels:
    """The networks of the whole cascade."""

    coarse: StageModel
    kidney: StageModel
    masses: tuple[StageModel, ...]  # one network for both regions, or MassTrainer's and TumorTrainer's
    checksums: Mapping[Path, str] = field(default_factory=dict)  # as the bundle's manifest has them

    @property
    def all(self) -> tuple[StageModel, ...]:
        """In the order in which they are used."""
        return (self.coarse, self.kidney, *self.masses)

    def summary(self) -> list[str]:
        """One line per network, for the user to see the choice."""
        return [_line(model) for model in self.all]


def resolve_models(
    source: Path | None = None,
    *,
    folds: Sequence[Fold] | None = None,
    choose: Mapping[str, str] | None = None,
    checkpoint: str | None = None,
    dataset_ids: Mapping[str, int] | None = None,
    results: Path | None = None,
) -> CascadeModels:
    """Find the networks.

    ``source`` is a folder or zip made by ``kits-cascade models export``, or a folder laid out as nnUNet_results;
    without it, nnU-Net's results folder is searched (``results``, else the variable). ``choose`` narrows a stage down
    by a pattern over ``trainer__plans__configuration`` (a trainer's name alone will do; two patterns with a comma name
    a pair for the masses stage), where there are several. Of a bundle only folds can be chosen.
    """
    from kits_cascade.inference.bundle import bundled_models, open_bundle

    defaults = {stage.key: stage.dataset_id for stage in STAGES}
    opened = open_bundle(source) if source is not None else None
    if opened is not None:
        other_ids = any(number != defaults.get(key) for key, number in (dataset_ids or {}).items())
        if choose or checkpoint or other_ids:
            raise UsageError(f"{source} is a bundle, whose networks are chosen already: only folds can be chosen of it")
        return bundled_models(opened, folds)
    root = source or results or _results_folder()
    ids = defaults | dict(dataset_ids or {})
    found = {
        stage.key: _stage_models(root, stage, ids[stage.key], folds, (choose or {}).get(stage.key), checkpoint)
        for stage in STAGES
    }
    return CascadeModels(found["coarse"][0], found["kidney"][0], found["masses"])


def _results_folder() -> Path:
    from kits_cascade.environment import nnunet_folders

    return nnunet_folders(needed=("nnUNet_results",)).results


def _stage_models(
    results: Path,
    stage: Stage,
    dataset_id: int,
    folds: Sequence[Fold] | None,
    pattern: str | None,
    checkpoint: str | None,
) -> tuple[StageModel, ...]:
    dataset = _dataset_folder(results, dataset_id, stage)
    candidates = trained(dataset, stage.key, checkpoint)
    if not candidates:
        raise ModelError(_nothing_trained(dataset, stage, checkpoint or CHECKPOINT))
    chosen = _chosen(candidates, pattern, dataset, stage.key)
    return tuple(with_folds(model, folds) for model in chosen)


def trained(dataset: Path, key: str, checkpoint: str | None = None) -> list[StageModel]:
    """All trained networks of a data set's folder in nnUNet_results."""
    folders = sorted(path for path in dataset.iterdir() if path.is_dir())
    return [model for folder in folders if (model := candidate(folder, key, checkpoint)) is not None]


def listing(results: Path, dataset_ids: Mapping[str, int], checkpoint: str | None = None) -> list[str]:
    """One line for each trained network of the three stages."""
    lines = []
    for stage in STAGES:
        datasets = sorted(results.glob(f"Dataset{dataset_ids[stage.key]:03d}_*"))
        models = [model for dataset in datasets for model in trained(dataset, stage.key, checkpoint)]
        lines += [_line(model) for model in models] or [f"{stage.key}: nothing trained"]
    return lines


def _line(model: StageModel) -> str:
    return f"{model.key}: {model.dataset}/{model.name}, folds {' '.join(map(str, model.folds))}"


def _dataset_folder(results: Path, dataset_id: int, stage: Stage) -> Path:
    if not results.is_dir():
        raise ModelError(f"{results}: no such folder; it should hold the trained networks (nnUNet_results)")
    found = sorted(path for path in results.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())
    if not found:
        raise ModelError(
            f"no trained network for the {stage.key} stage: {results} has no Dataset{dataset_id:03d}_*; "
            f"train it (nnUNetv2_train {dataset_id} {stage.configuration} 0 -tr {stage.trainer}), give a bundle "
            "with -m, or import one (kits-cascade models import FILE)"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{results}: several data sets with id {dataset_id}: {names}; move all but one away")
    return found[0]


def candidate(folder: Path, key: str, checkpoint: str | None) -> StageModel | None:
    """The network in a folder, with all of its folds; None where there is none."""
    parts = folder.name.split("__")
    if len(parts) != 3 or not (folder / "plans.json").is_file() or not (folder / "dataset.json").is_file():
        return None
    name = checkpoint or CHECKPOINT
    folds = _trained_folds(folder, name)
    if not folds:
        return None
    trainer, plans, configuration = parts
    return StageModel(key, folder, folds, configuration, trainer, plans, name, outputs_of(folder, trainer))


def _trained_folds(folder: Path, checkpoint: str) -> tuple[Fold, ...]:
    names = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")]
    numbers = tuple(sorted(int(name) for name in names if name.isdigit()))
    return numbers or tuple(name for name in names if name == "all")


def outputs_of(folder: Path, trainer: str = "") -> tuple[str, ...]:
    """Names of the foreground labels or regions of a trained network, from its own dataset.json."""
    try:
        labels = read_json(folder / "dataset.json")["labels"]
        names = tuple(str(name) for name in labels if name not in {"background", "ignore"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / 'dataset.json'}: not a valid dataset.json ({error})") from error
    # The two single-region trainers say by their names what they have learned, should the file list both regions.
    if len(names) > 1:
        names = {"MassTrainer": (MASSES,), "TumorTrainer": (TUMOR,)}.get(trainer, names)
    return names


def _chosen(candidates: list[StageModel], pattern: str | None, dataset: Path, key: str) -> tuple[StageModel, ...]:
    if pattern:
        patterns = [part.strip() for part in pattern.split(",") if part.strip()]
        candidates = [m for m in candidates if any(_matches(m, part) for part in patterns)] or _no_match(
            candidates, pattern, dataset, key
        )
    groups = complete(candidates) if key == "masses" else [(model,) for model in candidates]
    if len(groups) == 1:
        return groups[0]
    listed = "; ".join(" + ".join(model.name for model in group) for group in groups)
    if not groups:
        have = ", ".join(f"{m.name} ({' + '.join(m.outputs)})" for m in candidates)
        raise ModelError(
            f"{dataset}: the masses stage needs one network with the regions {MASSES} and {TUMOR}, or one for each "
            f"(MassTrainer and TumorTrainer); there is {have}"
        )
    raise ModelError(
        f"{dataset}: several trained networks for the {key} stage: {listed}. Choose one: "
        f"--model {key}={','.join(model.name for model in groups[0])} (a pattern over trainer__plans__configuration)"
    )


def _no_match(candidates: Iterable[StageModel], pattern: str, dataset: Path, key: str) -> list[StageModel]:
    listed = ", ".join(model.name for model in candidates)
    raise ModelError(f"{dataset}: no trained network for the {key} stage matches {pattern!r}; there is {listed}")


def _matches(model: StageModel, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (model.name, model.trainer))


def complete(candidates: Sequence[StageModel]) -> list[tuple[StageModel, ...]]:
    """All ways to get both regions: single networks, and pairs on the same plans."""
    single: list[tuple[StageModel, ...]] = [(m,) for m in candidates if {MASSES, TUMOR} <= set(m.outputs)]
    masses = [m for m in candidates if m.outputs == (MASSES,)]
    tumors = [m for m in candidates if m.outputs == (TUMOR,)]
    return single + [(a, b) for a in masses for b in tumors]


def with_folds(model: StageModel, folds: Sequence[Fold] | None) -> StageModel:
    """The network with the folds asked for; by default all that are trained."""
    if folds is None:
        return model
    wanted = tuple(dict.fromkeys(int(f) if str(f).isdigit() else str(f) for f in folds))
    missing = [f for f in wanted if not (model.folder / f"fold_{f}" / model.checkpoint).is_file()]
    if missing:
        raise ModelError(
            f"{model.folder}: fold {' '.join(map(str, missing))} has no {model.checkpoint}; "
            f"trained folds: {' '.join(map(str, model.folds))}"
        )
    return replace(model, folds=wanted)


def _nothing_trained(dataset: Path, stage: Stage, checkpoint: str) -> str:
    others = sorted({path.name for path in dataset.glob("*__*__*/fold_*/checkpoint_*.pth")} - {checkpoint})
    hint = f"; there are {', '.join(others)}: let the training end, or give --checkpoint {others[0]}" if others else ""
    return f"{dataset}: no network of the {stage.key} stage has a {checkpoint}{hint}"


def describe(models: CascadeModels) -> list[dict[str, Any]]:
    """For run.json: every network with the checksums of its files, which must be those of the bundle it is from."""
    return [
        {
            "stage": model.key,
            "dataset": model.dataset,
            "trainer": model.trainer,
            "plans": model.plans,
            "configuration": model.configuration,
            "folds": list(model.folds),
            "outputs": list(model.outputs),
            "sha256": {
                path.relative_to(model.folder).as_posix(): _checksum(path, models.checksums) for path in model.files
            },
        }
        for model in models.all
    ]


def _checksum(path: Path, expected: Mapping[Path, str]) -> str:
    found = sha256(path)
    if expected.get(path, found) != found:
        raise ModelError(f"{path}: not what its bundle's manifest says (checksum); import the bundle again")
    return found

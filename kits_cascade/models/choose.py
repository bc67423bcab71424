"""Which trained networks the cascade uses: found in nnU-Net's results folder, or in an exported bundle."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kits_cascade.errors import ModelError, UsageError
from kits_cascade.models.bundle import open_bundle, read_bundled_networks
from kits_cascade.models.calibration import Calibration, read_calibration
from kits_cascade.models.fine import read_fine
from kits_cascade.models.network import (
    MASSES,
    TUMOR,
    CascadeModels,
    Fold,
    Models,
    SingleModel,
    StageModel,
    describe_network,
    group_masses,
    read_network,
    with_folds,
)
from kits_cascade.nnunet_folders import CHECKPOINT, VARIABLES, folders_with_id, open_folders
from kits_cascade.stages import STAGES, Stage


def resolve_models(
    source: Path | None = None,
    *,
    folds: Sequence[Fold] | None = None,
    choose: Mapping[str, str] | None = None,
    checkpoint: str | None = None,
    dataset_ids: Mapping[str, int] | None = None,
    results: Path | None = None,
    shipped: bool = True,
    fine: Path | None = None,
) -> Models:
    """Find the networks: those of the cascade, or of the system whose bundle ``source`` is.

    ``source`` is a folder or zip made by ``kits-cascade models export``, or a folder laid out as nnUNet_results;
    without it, nnU-Net's results folder is searched (``results``, else the variable); where nothing is trained there
    either, those that come with the package are taken (unless ``shipped`` is false). ``choose`` narrows a stage down
    by a pattern over ``trainer__plans__configuration`` (a trainer's name alone will do; two patterns with a comma name
    a pair for the masses stage), where there are several. Of a bundle only folds can be chosen.
    ``fine`` is a network of KiTS in nnU-Net's layout that takes the place of the stages after the coarse one.
    """
    defaults = {stage.key: stage.dataset_id for stage in STAGES}
    usual = source is None and not choose and not checkpoint and defaults | dict(dataset_ids or {}) == defaults
    if shipped and usual and SHIPPED.is_file() and not _anything_trained(results):
        return _with_fine(read_shipped(folds), fine, folds)
    opened = open_bundle(source) if source is not None else None
    if opened is not None:
        other_ids = any(number != defaults.get(key) for key, number in (dataset_ids or {}).items())
        if choose or checkpoint or other_ids:
            raise UsageError(f"{source} is a bundle, whose networks are chosen already: only folds can be chosen of it")
        return _with_fine(read_bundled_networks(opened, folds), fine, folds)
    root = source or results or _results_folder()
    ids = defaults | dict(dataset_ids or {})
    found = {
        stage.key: _stage_models(root, stage, ids[stage.key], folds, (choose or {}).get(stage.key), checkpoint)
        for stage in (STAGES if fine is None else STAGES[:1])
    }
    kidney = found["kidney"][0] if fine is None else read_fine(fine, folds)
    masses = found.get("masses", ())
    return CascadeModels(found["coarse"][0], kidney, masses, calibration=_calibration(masses))


def _calibration(masses: Sequence[StageModel]) -> Calibration | None:
    return read_calibration(masses[-1].folder) if masses else None


def _with_fine(models: Models, fine: Path | None, folds: Sequence[Fold] | None) -> Models:
    if fine is None:
        return models
    if isinstance(models, SingleModel):
        raise UsageError(f"a fine network comes after the cascade's coarse one, and this bundle holds {models.system}")
    return replace(models, kidney=read_fine(fine, folds), masses=(), calibration=None)


SHIPPED: Final = Path(__file__).parent / "shipped" / "networks.zip"
NOTICE: Final = (
    "shipped networks, trained on painted CT alone, never on a patient's: for research, not for diagnosis; "
    "CC BY-NC-SA 4.0 (docs/networks.md)"
)


def read_shipped(folds: Sequence[Fold] | None = None) -> Models:
    """The networks that come with the package."""
    opened = open_bundle(SHIPPED)
    if opened is None:
        raise ModelError(f"{SHIPPED}: the networks of this installation are missing; install kits-cascade again")
    return replace(read_bundled_networks(opened, folds), notice=NOTICE)


def _anything_trained(results: Path | None) -> bool:
    """Whether there is any network of one of the stages in nnU-Net's results folder."""
    root = results or Path(os.environ.get(VARIABLES[2]) or "nothing-is-trained")
    return any(
        any(folder.glob("*__*__*/fold_*/*.pth")) for s in STAGES for folder in folders_with_id(root, s.dataset_id)
    )


def resolve_single(
    stage: Stage,
    *,
    folds: Sequence[Fold] | None = None,
    pattern: str | None = None,
    checkpoint: str | None = None,
    results: Path | None = None,
    source: Path | None = None,
    system: str = "",
) -> SingleModel:
    """The trained network of a system with one stage: as in :func:`resolve_models`, but none comes with the package."""
    opened = open_bundle(source) if source is not None else None
    if opened is not None:
        found = read_bundled_networks(opened, folds)
        if not isinstance(found, SingleModel) or (system and found.system not in ("", system)):
            held = found.system if isinstance(found, SingleModel) else "cascade"
            raise UsageError(f"{source} is a bundle of the system {held}, not of {system or 'one network'}")
        return found
    root = source or results or _results_folder()
    pattern = pattern or f"*__{stage.configuration}"
    return SingleModel(_stage_models(root, stage, stage.dataset_id, folds, pattern, checkpoint)[0])


def _results_folder() -> Path:
    return open_folders(needed=("nnUNet_results",), make=False).results


def _stage_models(
    results: Path,
    stage: Stage,
    dataset_id: int,
    folds: Sequence[Fold] | None,
    pattern: str | None,
    checkpoint: str | None,
) -> tuple[StageModel, ...]:
    dataset = _dataset_folder(results, dataset_id, stage)
    candidates = find_networks(dataset, stage.key, checkpoint)
    if not candidates:
        raise ModelError(_nothing_trained(dataset, stage, checkpoint or CHECKPOINT))
    chosen = _chosen(candidates, pattern, dataset, stage.key)
    return tuple(with_folds(model, folds) for model in chosen)


def find_networks(dataset: Path, key: str, checkpoint: str | None = None) -> list[StageModel]:
    """All trained networks of a data set's folder in nnUNet_results."""
    folders = sorted(path for path in dataset.iterdir() if path.is_dir())
    return [model for folder in folders if (model := read_network(folder, key, checkpoint)) is not None]


def list_networks(results: Path, dataset_ids: Mapping[str, int], checkpoint: str | None = None) -> list[str]:
    """One line for each trained network of the three stages."""
    lines = []
    for stage in STAGES:
        datasets = folders_with_id(results, dataset_ids[stage.key])
        models = [model for dataset in datasets for model in find_networks(dataset, stage.key, checkpoint)]
        lines += [describe_network(model) for model in models] or [f"{stage.key}: nothing trained"]
    return lines


def _dataset_folder(results: Path, dataset_id: int, stage: Stage) -> Path:
    if not results.is_dir():
        raise ModelError(f"{results}: no such folder; it should hold the trained networks (nnUNet_results)")
    found = folders_with_id(results, dataset_id)
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


def _chosen(candidates: list[StageModel], pattern: str | None, dataset: Path, key: str) -> tuple[StageModel, ...]:
    if pattern:
        patterns = [part.strip() for part in pattern.split(",") if part.strip()]
        candidates = [m for m in candidates if any(_matches(m, part) for part in patterns)] or _no_match(
            candidates, pattern, dataset, key
        )
    groups = group_masses(candidates) if key == "masses" else [(model,) for model in candidates]
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


def _nothing_trained(dataset: Path, stage: Stage, checkpoint: str) -> str:
    others = sorted({path.name for path in dataset.glob("*__*__*/fold_*/checkpoint_*.pth")} - {checkpoint})
    hint = f"; there are {', '.join(others)}: let the training end, or give --checkpoint {others[0]}" if others else ""
    return f"{dataset}: no network of the {stage.key} stage has a {checkpoint}{hint}"

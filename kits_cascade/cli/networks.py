"""Which networks a command works with, of whatever system: by its options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kits_cascade.cli.options import parse_choices, parse_folds, parse_ids
from kits_cascade.systems import System

if TYPE_CHECKING:
    from kits_cascade.models.network import Models


def choose_networks(
    system: System,
    folds: list[str] | None,
    more_folds: list[str] | None,
    model: list[str] | None,
    checkpoint: str | None,
    ids: str | None,
    *,
    source: Path | None = None,
    fine: Path | None = None,
    results: Path | None = None,
    shipped: bool = True,
) -> Models:
    """Those of the cascade, or the one of another system: of a bundle or folder, else of nnU-Net's results folder."""
    from kits_cascade.data.presets import planned_name
    from kits_cascade.models.choose import resolve_models, resolve_single

    wanted = parse_folds(folds, more_folds)
    if not system.is_single:
        return resolve_models(
            source,
            folds=wanted,
            choose=parse_choices(model),
            checkpoint=checkpoint,
            dataset_ids=parse_ids(ids),
            results=results,
            shipped=shipped,
            fine=fine,
        )
    (stage,) = system.stages
    number = parse_ids(ids, system.stages)[stage.key]
    return resolve_single(
        replace(stage, dataset_id=number),
        folds=wanted,
        pattern=parse_choices(model, system.stages).get(stage.key) or planned_name(system),
        checkpoint=checkpoint,
        results=results,
        source=source,
        system=system.name,
    )

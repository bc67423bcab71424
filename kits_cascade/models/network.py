"""What a trained network is: a folder as nnU-Net writes it, and what of it is used; and the networks of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import ModelError
from kits_cascade.files import read_json, sha256
from kits_cascade.models.calibration import Calibration
from kits_cascade.nnunet_folders import CHECKPOINT, trained_folds

MANIFEST: Final = "kits-cascade-models.json"


MASSES, TUMOR = "masses", "tumor"


Fold = int | str  # a number, or "all"


@dataclass(frozen=True)
class StageModel:
    """One trained network: a folder as nnU-Net writes it, and what of it is used."""

    key: str  # the stage: coarse, kidney or masses; or fine, for one that does the work of the last two
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
    def label(self) -> str:
        """What tells it from the others of a cascade: its stage, or its region where two networks share the stage."""
        return self.outputs[0] if self.key == MASSES and len(self.outputs) == 1 else self.key

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
    kidney: StageModel  # or the fine one
    masses: tuple[StageModel, ...]  # one for both regions, or MassTrainer's and TumorTrainer's; none with a fine one
    checksums: Mapping[Path, str] = field(default_factory=dict)  # as the bundle's manifest has them
    notice: str = ""  # what a user must know of them
    calibration: Calibration | None = None  # what the certainty of lesions is worth, where that was measured

    @property
    def all(self) -> tuple[StageModel, ...]:
        """In the order in which they are used."""
        return (self.coarse, self.kidney, *self.masses)

    def summary(self) -> list[str]:
        """One line per network, for the user to see the choice."""
        return [describe_network(model) for model in self.all]


@dataclass(frozen=True)
class SingleModel:
    """The one network of a system that sees the whole scan."""

    model: StageModel
    checksums: Mapping[Path, str] = field(default_factory=dict)
    notice: str = ""
    system: str = ""  # whose it is, where its bundle says so

    @property
    def all(self) -> tuple[StageModel, ...]:
        """As the cascade's networks are listed."""
        return (self.model,)

    def summary(self) -> list[str]:
        """One line, for the user to see the choice."""
        return [describe_network(self.model)]


Models = CascadeModels | SingleModel


def describe_network(model: StageModel) -> str:
    """In one line: stage, folder and folds."""
    return f"{model.key}: {model.dataset}/{model.name}, folds {' '.join(map(str, model.folds))}"


def read_network(folder: Path, key: str, checkpoint: str | None) -> StageModel | None:
    """The network in a folder, with all of its folds; None where there is none."""
    parts = folder.name.split("__")
    if len(parts) != 3 or not (folder / "plans.json").is_file() or not (folder / "dataset.json").is_file():
        return None
    name = checkpoint or CHECKPOINT
    folds = trained_folds(folder, name)
    if not folds:
        return None
    trainer, plans, configuration = parts
    return StageModel(key, folder, folds, configuration, trainer, plans, name, read_outputs(folder))


def read_outputs(folder: Path) -> tuple[str, ...]:
    """Names of the foreground labels or regions of a trained network, from its own dataset.json."""
    try:
        labels = read_json(folder / "dataset.json")["labels"]
        return tuple(str(name) for name in labels if name not in {"background", "ignore"})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / 'dataset.json'}: not a valid dataset.json ({error})") from error


def group_masses(candidates: Sequence[StageModel]) -> list[tuple[StageModel, ...]]:
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


def describe_networks(models: Models) -> list[dict[str, Any]]:
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


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, read once as long as it stays what it is."""
    stat = path.stat()
    return _checksum_of(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=8192)
def _checksum_of(path: Path, *_state: int) -> str:
    return sha256(path)


def _checksum(path: Path, expected: Mapping[Path, str]) -> str:
    found = file_checksum(path)
    if expected.get(path, found) != found:
        raise ModelError(f"{path}: not what its bundle's manifest says (checksum); import the bundle again")
    return found

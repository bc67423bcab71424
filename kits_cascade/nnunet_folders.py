"""nnU-Net's three folders: one place that knows the variables, and says what to do when one is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kits_cascade.errors import EnvironmentNotReadyError

CHECKPOINT: Final = "checkpoint_final.pth"
STREAM_LOG: Final = "stream_log.txt"  # beside it, of a training on cases that are painted meanwhile
VARIABLES: Final = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@dataclass(frozen=True)
class NnunetFolders:
    """Where nnU-Net keeps raw data, preprocessed data and trained models."""

    raw: Path
    preprocessed: Path
    results: Path

    def export(self) -> None:
        """Set the variables for this process and those that it starts."""
        for variable, folder in zip(VARIABLES, (self.raw, self.preprocessed, self.results), strict=True):
            os.environ[variable] = str(folder)


def open_folders(
    nnunet_dir: Path | None = None, needed: tuple[str, ...] = VARIABLES, *, make: bool = True
) -> NnunetFolders:
    """The three folders, from ``nnunet_dir`` (which gets them as subfolders) or from nnU-Net's variables.

    A variable in ``needed`` that is not set is an error that says how to set it. The variables are exported, since
    nnU-Net reads nothing else. What is needed and not there yet is made, unless the command only reads.
    """
    if nnunet_dir is not None:
        root = nnunet_dir.expanduser().resolve()
        folders = NnunetFolders(*(root / name for name in VARIABLES))
        _make(folders.raw, folders.preprocessed, folders.results)
        folders.export()
        return folders
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise EnvironmentNotReadyError(
            f"nnU-Net's folder variable {', '.join(missing)} is not set. Give --nnunet-dir DIR (it gets the three "
            f"folders {', '.join(VARIABLES)}), or set it, for example: export {missing[0]}=/data/{missing[0]}"
        )
    # A folder that the command does not need may be unset; it then points to where nothing is, and is never exported.
    values = {name: os.environ.get(name) or f"{name}-is-not-set" for name in VARIABLES}
    if make:
        _make(*(Path(values[name]).expanduser() for name in needed))
    return NnunetFolders(*(Path(values[name]).expanduser() for name in VARIABLES))


def _make(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise EnvironmentNotReadyError(f"{folder} cannot be made ({reason}); choose another") from error


def folders_with_id(root: Path, dataset_id: int) -> list[Path]:
    """All dataset folders with this id."""
    return sorted(path for path in root.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())


def trained_folds(model: Path, checkpoint: str = CHECKPOINT) -> tuple[int | str, ...]:
    """Folds of a trained model's folder that have this checkpoint: numbers in order, or ``all`` where it is alone."""
    names = [path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}")]
    numbers = tuple(sorted(int(name) for name in names if name.isdigit()))
    return numbers or tuple(name for name in names if name == "all")

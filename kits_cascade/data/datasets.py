"""nnU-Net datasets on disk: finding them by id, their cases, and whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.files import read_json
from kits_cascade.nnunet_folders import NnunetFolders, folders_with_id
from kits_cascade.stages import SOURCE_STAGE, STAGES, Stage
from kits_cascade.words import some

ROI_FILE: Final = "roi.json"  # in each stage's raw folder: every case's box; also the sign that the folder is ours
CONVERSION_FILE: Final = "conversion.json"  # in the source's raw folder: what convert knows of each case
SPLITS_FILE: Final = "splits_final.json"

StageSelection = Sequence[int | str] | Mapping[str, int]


@dataclass(frozen=True)
class RawDataset:
    """A dataset in nnUNet_raw."""

    folder: Path
    content: dict[str, Any]  # dataset.json

    @property
    def name(self) -> str:
        """Folder name."""
        return self.folder.name

    @property
    def ending(self) -> str:
        """File ending of images and labels."""
        return str(self.content["file_ending"])

    @property
    def channels(self) -> int:
        """Number of image files of a case."""
        return len(self.content["channel_names"])

    def image(self, case: str, channel: int = 0) -> Path:
        """Image file of a case."""
        return self.folder / "imagesTr" / f"{case}_{channel:04d}{self.ending}"

    def label(self, case: str) -> Path:
        """Label file of a case."""
        return self.folder / "labelsTr" / f"{case}{self.ending}"

    def cases(self) -> tuple[str, ...]:
        """All training cases, sorted."""
        tail = f"_0000{self.ending}"
        names = (path.name for path in (self.folder / "imagesTr").glob(f"*{self.ending}"))
        return tuple(sorted(name[: -len(tail)] for name in names if name.endswith(tail) and not name.startswith(".")))


def open_dataset(raw: Path, dataset_id: int, remedy: str) -> RawDataset:
    """The raw dataset with this id; ``remedy`` says how to get one."""
    found = folders_with_id(raw, dataset_id)
    if not found:
        raise DatasetError(f"there is no dataset {dataset_id} in {raw}; {remedy}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DatasetError(
            f"{raw} has more than one dataset {dataset_id}: {names}; nnU-Net takes one, rename the others"
        )
    return read_dataset(found[0])


def read_dataset(folder: Path) -> RawDataset:
    """A raw dataset with its dataset.json."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DatasetError(
            f"{folder} has no dataset.json; the step that makes this dataset was interrupted, run it again"
        )
    try:
        content = read_json(path)
        _ = content["file_ending"], content["channel_names"], content["labels"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a dataset.json of nnU-Net v2 ({error})") from error
    return RawDataset(folder, content)


def check_id(folders: NnunetFolders, stage: Stage) -> None:
    """Raise where another dataset sits on the stage's id, or the stage's folder was not made by us."""
    for root in (folders.raw, folders.preprocessed, folders.results):
        others = [path for path in folders_with_id(root, stage.dataset_id) if path.name != stage.dataset]
        if others:
            raise DatasetError(
                f"id {stage.dataset_id} is taken by {others[0]}; nothing was written. Give this stage another id, "
                f"for example --stages {stage.key}={stage.dataset_id + 100}, or move that dataset away"
            )
    folder = folders.raw / stage.dataset
    if stage.key == SOURCE_STAGE.key:
        return  # made by convert, which has its own mark
    if any(folder.glob("*Tr/*")) and not (folder / ROI_FILE).is_file():
        raise DatasetError(
            f"{folder} was not made by derive-stages (it has no {ROI_FILE}); nothing was written. Move it away"
        )


def find_predictions(
    folder: Path | None, cases: Iterable[str], ending: str, fold_of: Mapping[str, int] | None = None
) -> dict[str, Path]:
    """The prediction of each case: in a folder, or out of fold in the fold_X/validation folders of a trained model.

    ``fold_of`` says which fold validates a case; the folds that were trained with it, and fold_all, do not count.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; predictions are a folder with one file for each case")
    found = {case: _prediction(folder, case, ending, fold_of) for case in cases}
    missing = [case for case, path in found.items() if path is None]
    if missing:
        raise DatasetError(
            f"{folder} has no prediction for {len(missing)} of {len(found)} cases: {some(missing, 10)}. "
            "Predict them (or train the "
            "folds that are missing), or derive without predictions: the labels are used then"
        )
    return {case: path for case, path in found.items() if path is not None}


def _prediction(folder: Path, case: str, ending: str, fold_of: Mapping[str, int] | None) -> Path | None:
    if fold_of is None:
        folds = sorted(folder.glob("fold_[0-9]*"))
    else:
        folds = [folder / f"fold_{fold_of[case]}"] if case in fold_of else []
    candidates = (place / f"{case}{ending}" for place in [folder, *(fold / "validation" for fold in folds)])
    return next((path for path in candidates if path.is_file()), None)


def select_stages(selection: StageSelection | None = None, known: Sequence[Stage] = STAGES) -> tuple[Stage, ...]:
    """Stages with their ids, in the order of ``known``, the stages of a system.

    Takes keys (``kidney``), the usual ids (222), keys with an id of your own (``kidney=322`` or a mapping), or as many
    ids as there are stages, in their order (coarse, kidney, masses).
    """
    if selection is None:
        return tuple(known)
    if isinstance(selection, Mapping):
        chosen = dict(selection)
    else:
        parts = [str(part).strip() for part in selection]
        usual = {str(stage.dataset_id): stage.key for stage in known}
        if len(parts) == len(known) and all(part.isdigit() for part in parts) and not set(parts) <= set(usual):
            parts = [f"{stage.key}={part}" for stage, part in zip(known, parts, strict=True)]
        chosen = dict(_stage_of(usual.get(part, part), known) for part in parts)
    unknown = set(chosen) - {stage.key for stage in known}
    if unknown or not chosen:
        raise UsageError(f"unknown stage {', '.join(sorted(unknown)) or '(none)'}; the stages are {_names(known)}")
    if len(set(chosen.values())) < len(chosen) or any(not 1 <= number <= 999 for number in chosen.values()):
        raise UsageError(f"dataset ids must differ and lie in 1 to 999, not {', '.join(map(str, chosen.values()))}")
    return tuple(replace(stage, dataset_id=chosen[stage.key]) for stage in known if stage.key in chosen)


def _stage_of(text: str, known: Sequence[Stage]) -> tuple[str, int]:
    key, _, number = text.partition("=")
    stage = next((stage for stage in known if stage.key == key), None)
    if stage is None or (number and not number.isdigit()):
        raise UsageError(
            f"'{text}' names no stage; the stages are {_names(known)}; an id of your own is given as kidney=322"
        )
    return key, int(number) if number else stage.dataset_id


def _names(known: Sequence[Stage]) -> str:
    return ", ".join(f"{stage.key} ({stage.dataset_id})" for stage in known)

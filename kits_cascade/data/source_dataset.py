"""The folder of Dataset220_KiTS: its record of what was made from what, and its dataset.json."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kits_cascade import labels as kits
from kits_cascade.data.datasets import CONVERSION_FILE
from kits_cascade.data.source_case import identity
from kits_cascade.errors import DatasetError
from kits_cascade.files import read_json, sweep_temporary, write_json
from kits_cascade.nnunet_folders import folders_with_id
from kits_cascade.stages import READER, SOURCE_CLASS_ORDER, SOURCE_LABELS, SOURCE_NAME, dataset_name
from kits_cascade.volumes.kits import KitsCase

FILE_ENDING: Final = ".nii.gz"
_SAVE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class ConvertOptions:
    """What decides on the content of the dataset; a change is an error, never a mixture."""

    drop_cyst: bool = False
    max_slices: int | None = None
    hu_range: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """For conversion.json."""
        return {**asdict(self), "hu_range": list(self.hu_range) if self.hu_range else None}


def source_folder(raw: Path, dataset_id: int) -> Path:
    """The dataset's folder; the same id under another name, or data that we did not make, stay untouched."""
    name = dataset_name(dataset_id, SOURCE_NAME)
    others = [path.name for path in folders_with_id(raw, dataset_id) if path.name != name]
    if others:
        raise DatasetError(f"id {dataset_id} is taken by {others[0]} in {raw}; choose another with -d")
    folder = raw / name
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONVERSION_FILE).is_file():
        raise DatasetError(
            f"{folder} was not made by kits-cascade convert (it has no {CONVERSION_FILE}), and is not overwritten; "
            "move it away or choose another id with -d"
        )
    return folder


class SourceDataset:
    """The folder under construction; one process writes the record, the cases themselves come from many."""

    def __init__(self, folder: Path, source: Path, options: ConvertOptions) -> None:
        self.folder, self.source, self.options = folder, source, options
        self.record: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()
        file = folder / CONVERSION_FILE
        if file.is_file():
            self._resume(file)
        for part in (folder, folder / "imagesTr", folder / "labelsTr"):
            part.mkdir(parents=True, exist_ok=True)
            sweep_temporary(part)
        if not file.is_file():
            self.save()  # from the first moment on, the folder is known as ours

    def _resume(self, file: Path) -> None:
        try:
            content = read_json(file)
            before, source, record = content["options"], content["source"], content["cases"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{file} cannot be read ({error}); remove {self.folder} to start over") from error
        now = self.options.to_json()
        changed = [f"{key}: {before.get(key)} before, {now[key]} now" for key in now if before.get(key) != now[key]]
        # A source that was moved is fine; a second one beside the first is a mixture.
        if source != str(self.source) and Path(source).is_dir():
            changed.append(f"source folder: {source} before, {self.source} now")
        if changed:
            raise DatasetError(
                f"{self.folder} was made with other options ({'; '.join(changed)}). Give the same options to continue, "
                "choose another id with -d, or remove the folder to start over"
            )
        self.record = record

    def image(self, name: str) -> Path:
        """Image file of a case."""
        return self.folder / "imagesTr" / f"{name}_0000{FILE_ENDING}"

    def label(self, name: str) -> Path:
        """Label file of a case."""
        return self.folder / "labelsTr" / f"{name}{FILE_ENDING}"

    def has(self, name: str) -> bool:
        """In the record, with both files."""
        return name in self.record and self.image(name).is_file() and self.label(name).is_file()

    def is_done(self, case: KitsCase, *, copy: bool) -> bool:
        """Made from the same, unchanged files, or from files that are gone: hard links and copies outlive them."""
        if not self.has(case.name):
            return False
        known = self.record[case.name]
        linked = known["image"].endswith("link")
        return bool(case.missing or known["source"] == identity(case)) and not (copy and linked and not case.missing)

    def add(self, name: str, facts: dict[str, Any]) -> None:
        """A case that is in. The record is saved now and then: a case that it does not know is made again."""
        self.record[name] = facts
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def remove(self, name: str) -> None:
        """Take out a case that the selection leaves out now that its files have changed."""
        self.record.pop(name, None)
        self.image(name).unlink(missing_ok=True)
        self.label(name).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the record."""
        cases = dict(sorted(self.record.items()))
        content = {"source": str(self.source), "options": self.options.to_json(), "cases": cases}
        write_json(self.folder / CONVERSION_FILE, content)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Write dataset.json, last of all: a dataset that has one is whole."""
        self._forget_lost()
        self._sweep_unknown()
        self.save()
        description = self.folder / "dataset.json"
        if self.record:
            write_json(description, dataset_json(len(self.record), self.options))
        else:
            description.unlink(missing_ok=True)

    def _forget_lost(self) -> None:
        """Cases whose files are gone: removed by hand, or links into a folder that is no more."""
        for name in [name for name in self.record if not self.has(name)]:
            self.remove(name)

    def _sweep_unknown(self) -> None:
        """Files of a killed run whose case was not recorded, and is not among those of this run."""
        for path in (self.folder / "labelsTr").iterdir():
            if path.name.removesuffix(FILE_ENDING) not in self.record:
                path.unlink()
        for path in (self.folder / "imagesTr").iterdir():
            if path.name.removesuffix(f"_0000{FILE_ENDING}") not in self.record:
                path.unlink()


def dataset_json(count: int, options: ConvertOptions) -> dict[str, Any]:
    """nnU-Net's description, region-based, in the challenge's regions and order."""
    labels, order = dict(SOURCE_LABELS), list(SOURCE_CLASS_ORDER)
    if options.drop_cyst:
        # Masses without cysts are the tumours: two regions stay.
        labels = {"background": 0, "kidney": [kits.KIDNEY, kits.TUMOR], "tumor": kits.TUMOR}
        order = [kits.KIDNEY, kits.TUMOR]
    return {
        "name": SOURCE_NAME,
        "description": f"Kidneys, renal tumours{'' if options.drop_cyst else ' and renal cysts'} in CT",
        "reference": "https://kits-challenge.org",
        "licence": "CC BY-NC-SA 4.0",
        "channel_names": {"0": "CT"},
        "labels": labels,
        "regions_class_order": order,
        "numTraining": count,
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": READER,
    }

"""Painted cases, made by processes beside the training, and held on the device where the network trains.

Painters write each case into a folder; whoever trains takes in what is new there. So painting goes on where it was, and
several networks train on one pool, one after the other.
"""

from __future__ import annotations

import multiprocessing
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch

from kits_cascade.files import atomic_path
from kits_cascade.labels import LABEL_NAMES
from kits_cascade.synthetic.painter import PaintedCase, PaintOptions, Sources, paint_case
from kits_cascade.volumes.volume import Array

LABELS: Final = {name: value for value, name in LABEL_NAMES.items()}
TISSUE_BITS: Final = 6  # a voxel's code holds its tissue + 1 below, its label above; 0: outside of the scan
_HU_RANGE: Final = (-500, 900)
_SPOTS: Final = 300  # places of each label that are kept, to centre crops on
_LOOK_S: Final = 2.0


@dataclass(frozen=True)
class PooledCase:
    """A case on the device: HU (int16), code (uint8), and where which label is."""

    hu: torch.Tensor
    code: torch.Tensor
    spots: dict[str, Array]
    box: Array | None  # of the kidneys: lowest voxel, and the one after the highest


def pack_case(case: PaintedCase) -> dict[str, Array]:
    """What is kept of a case."""
    low, high = _HU_RANGE
    packed = {
        "hu": np.clip(case.image, low, high).astype(np.int16),
        "code": ((case.tissue + 1) | (case.labels << TISSUE_BITS)).astype(np.uint8),
    }
    rng = np.random.default_rng(0)
    for name, value in LABELS.items():
        places = np.flatnonzero(case.labels == value)
        chosen = rng.choice(places, _SPOTS) if len(places) else places
        packed[name] = np.stack(np.unravel_index(chosen, case.labels.shape), 1).astype(np.int16)
    inside = np.argwhere(case.labels > 0) if (case.labels > 0).any() else np.zeros((0, 3), np.int64)
    packed["box"] = np.stack([inside.min(0), inside.max(0) + 1]) if len(inside) else np.zeros((0, 3), np.int64)
    return packed


def unpack_case(content: dict[str, Array], device: torch.device) -> PooledCase:
    """Onto the device."""
    hu, code = (torch.from_numpy(content[key]).to(device) for key in ("hu", "code"))
    spots = {name: content[name].astype(np.float32) for name in LABELS if len(content[name])}
    return PooledCase(hu, code, spots, content["box"] if len(content["box"]) else None)


@dataclass(frozen=True)
class Painting:
    """What the painters make: cases ``0`` to ``most - 1`` of a series."""

    folder: Path
    sources: Sources
    seed: int
    most: int
    options: PaintOptions = field(default_factory=PaintOptions)

    def path(self, index: int) -> Path:
        """Where a case lies."""
        return self.folder / f"case_{index:05d}.npz"


def paint_share(painting: Painting, worker: int, workers: int) -> None:
    """One painter's work: every ``workers``-th case that is not there yet."""
    torch.set_num_threads(1)
    for index in range(worker, painting.most, workers):
        if not painting.path(index).is_file():
            packed = pack_case(paint_case(painting.sources, painting.seed, index, painting.options))
            with atomic_path(painting.path(index)) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **packed)  # type: ignore[arg-type]


def start_painters(painting: Painting, workers: int) -> Sequence[multiprocessing.process.BaseProcess]:
    """Processes that paint until all cases are there, or the training ends."""
    painting.folder.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    made = [spawn.Process(target=paint_share, args=(painting, k, workers), daemon=True) for k in range(workers)]
    for process in made:
        process.start()
    return made


class Pool:
    """The cases that are there, taken in by a thread as they come."""

    def __init__(self, folder: Path, device: torch.device, most: int) -> None:
        self.cases: list[PooledCase] = []
        self._folder, self._device, self._most = folder, device, most
        self._known: set[Path] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self, least: int) -> None:
        """Begin to take cases in, and wait for the first ``least``."""
        self._thread.start()
        while len(self.cases) < least and not self._ended.wait(0.2):
            pass

    def stop(self) -> None:
        """Take no more in."""
        self._ended.set()
        self._thread.join()

    def take_in(self) -> int:
        """Read what is new in the folder; how many cases came."""
        new = [path for path in sorted(self._folder.glob("case_*.npz")) if path not in self._known]
        before = len(self.cases)
        for path in new[: self._most - before]:
            if self._ended.is_set():
                break
            self._known.add(path)
            try:
                with np.load(path, allow_pickle=False) as content:
                    self.cases.append(unpack_case(dict(content), self._device))
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                path.unlink(missing_ok=True)  # half written by a machine that died: it will be painted again
        return len(self.cases) - before

    def _look(self) -> None:
        while not self._ended.is_set() and len(self.cases) < self._most:
            self.take_in()
            self._ended.wait(_LOOK_S)

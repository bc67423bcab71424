"""Which regions a network has heads for: the dataset.json that a trainer works with and leaves beside its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from kits_cascade.errors import DatasetError
from kits_cascade.labels import CYST, KIDNEY, REGION_NAMES, REGIONS, TUMOR
from kits_cascade.stages import MASSES_CYST, MASSES_TUMOR

Values = tuple[int, ...]

# What a region's voxels are painted with: the challenge's labels, later ones over earlier ones.
_PAINT: Final = {"kidney": KIDNEY, "masses": CYST, "tumor": TUMOR}

_SYNONYMS: Final = {"kidneys": "kidney", "mass": "masses", "tumors": "tumor", "cysts": "cyst"}


def _names(labels: Mapping[str, Any]) -> dict[str, Values]:
    """Foreground entries of a dataset.json, names in one spelling."""
    found = {}
    for name, value in labels.items():
        if name in ("background", "ignore"):
            continue
        spelled = name.strip().casefold().replace("tumour", "tumor")
        values = tuple(sorted({int(v) for v in (value if isinstance(value, (list, tuple)) else [value])}))
        found[_SYNONYMS.get(spelled, spelled)] = values
    return found


def region_values(labels: Mapping[str, Any]) -> dict[str, Values]:
    """Label values of each of the challenge's regions that a dataset has, in the challenge's order.

    Known are KiTS labels (plain or as regions), the labels of stage 223, labels without a cyst as in KiTS19, and a
    single region by its name.
    """
    named = _names(labels)
    values = tuple(sorted({v for group in named.values() for v in group if v}))
    plain = {name: group[0] for name, group in named.items() if len(group) == 1}
    if set(plain) == {"kidney", "tumor", "cyst"} and len(set(plain.values())) == 3:
        # Names that are spelled out count for more than the usual order of the values.
        own = {KIDNEY: plain["kidney"], TUMOR: plain["tumor"], CYST: plain["cyst"]}
        return {r.name: tuple(sorted(own[label] for label in r.labels)) for r in REGIONS}
    if values == (KIDNEY, TUMOR, CYST):
        return {region.name: tuple(sorted(region.labels)) for region in REGIONS}
    if values == (MASSES_CYST, MASSES_TUMOR) and "kidney" not in named and {"masses", "cyst"} & set(named):
        return {"masses": (MASSES_CYST, MASSES_TUMOR), "tumor": (MASSES_TUMOR,)}
    if values == (KIDNEY, TUMOR) and "kidney" in named:
        return {"kidney": (KIDNEY, TUMOR), "tumor": (TUMOR,)}
    if len(named) == 1 and next(iter(named)) in REGION_NAMES:
        return named
    raise DatasetError(
        f"the labels {dict(labels)} are not ones that regions can be made of; taken are KiTS labels (1 kidney, "
        "2 tumor, 3 cyst; plain or as regions), those of the masses stage (1 cyst, 2 tumor), or one region named "
        f"{', '.join(REGION_NAMES)}. Train with nnUNetTrainer or SurfaceLossTrainer, which take any labels"
    )


def lesion_values(labels: Mapping[str, Any]) -> Values:
    """Label values of masses, where the labels are ones that we know."""
    try:
        found = region_values(labels)
    except DatasetError:
        return ()
    return found.get("masses", found.get("tumor", ()))


def with_heads(dataset_json: Mapping[str, Any], heads: tuple[str, ...] | None) -> dict[str, Any]:
    """The dataset.json of a network with heads for the regions ``heads`` (None: as it is; all that are there: empty).

    nnU-Net knows a region by its list of more than one value, so one of a single value is written with it twice.
    The ignore label is left out: it matters in training only (see :class:`HeadLabels`).
    """
    adapted = deepcopy(dict(dataset_json))
    if heads is None or set(_names(adapted["labels"])) == set(heads) == set(_single(adapted["labels"])):
        return adapted
    available = region_values(adapted["labels"])
    missing = [name for name in heads if name not in available]
    if missing:
        raise DatasetError(
            f"region {', '.join(missing)} cannot be made of the labels {adapted['labels']}; "
            f"they give {', '.join(available)}"
        )
    chosen = {name: available[name] for name in (heads or available)}
    adapted["labels"] = {"background": 0, **{n: list(v if len(v) > 1 else v * 2) for n, v in chosen.items()}}
    adapted["regions_class_order"] = _paint_values(chosen)
    return adapted


def _single(labels: Mapping[str, Any]) -> list[str]:
    """Names of plain labels of a dataset with one foreground class; none for any other."""
    named = _names(labels)
    return list(named) if list(named.values()) == [(1,)] and "ignore" not in labels else []


def _paint_values(chosen: dict[str, Values]) -> list[int]:
    """One value per region, in no region painted after it; the challenge's value where that fits."""
    order = []
    for index, (name, values) in enumerate(chosen.items()):
        later = {v for other in list(chosen.values())[index + 1 :] for v in other}
        own = [v for v in values if v not in later] or list(values)
        order.append(_PAINT[name] if _PAINT[name] in own else own[0])
    return order


class HeadLabels(LabelManager):
    """nnU-Net's label manager for training on some of a dataset's regions.

    The data loader looks cases up by all label values of the preprocessed dataset, and its ignore label must follow on
    the highest of them; so both are the source's, while the heads are ours.
    """

    def __init__(self, dataset_json: Mapping[str, Any], source: LabelManager) -> None:
        self._source = source
        super().__init__(dataset_json["labels"], dataset_json["regions_class_order"])

    @property
    def all_labels(self) -> list[int]:
        """Of the preprocessed dataset."""
        return list(self._source.all_labels)

    @property
    def ignore_label(self) -> int | None:
        """Of the preprocessed dataset."""
        label: int | None = self._source.ignore_label
        return label

    @property
    def foreground_labels(self) -> list[int]:
        """Of the heads: nnU-Net's own cascade gives each of them an input channel."""
        return sorted({int(v) for region in self.foreground_regions for v in np.atleast_1d(region)})


class _OfferedPlaces(ABC):
    """A dataset of nnU-Net's whose cases offer other foreground voxels to draw patches around."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As nnU-Net's datasets give it."""
        data, segmentation, previous, properties = self.dataset.load_case(identifier)
        return (
            data,
            segmentation,
            previous,
            {**properties, "class_locations": self._offer(properties["class_locations"])},
        )

    @abstractmethod
    def _offer(self, places: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Voxels by label or region, from the case's own."""


class FocusedCases(_OfferedPlaces):
    """A dataset whose cases offer foreground voxels of some label values only, where they have any of these."""

    def __init__(self, dataset: Any, values: set[int]) -> None:
        super().__init__(dataset)
        self.values = values

    def _offer(self, places: Mapping[Any, Any]) -> Mapping[Any, Any]:
        wanted = {k: v for k, v in places.items() if len(v) and self.values.issuperset(_as_set(k))}
        # The loader looks up the key of all annotated voxels, which holds -1, in datasets with an ignore label.
        return {**wanted, **{k: v for k, v in places.items() if -1 in _as_set(k)}} if wanted else places


class EvenCases(_OfferedPlaces):
    """A dataset whose cases offer the voxels of a region without those of the regions inside it.

    So foreground patches show masses that are no tumour, the cysts, as often as tumours, whatever their sizes. (nnU-Net
    keeps 10,000 of a region's voxels, or one in a hundred: of larger tumours some stay among the masses.)
    """

    def _offer(self, places: Mapping[Any, Any]) -> Mapping[Any, Any]:
        result = dict(places)
        for key, voxels in places.items():
            inner = [other for k, other in places.items() if _as_set(k) < _as_set(key) and len(other)]
            if inner and len(voxels) and -1 not in _as_set(key):
                taken = {tuple(voxel) for other in inner for voxel in np.asarray(other).tolist()}
                own = [voxel for voxel in np.asarray(voxels).tolist() if tuple(voxel) not in taken]
                result[key] = np.array(own, dtype=np.asarray(voxels).dtype).reshape(len(own), len(voxels[0]))
        return result


def _as_set(key: Any) -> set[int]:
    return {int(v) for v in key} if isinstance(key, (tuple, list)) else {int(key)}

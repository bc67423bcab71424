"""Which heads a trainer makes of which labels, and what nnU-Net's label manager thinks of them."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from kits_cascade.errors import DatasetError
from kits_cascade.stages import SOURCE_CLASS_ORDER, SOURCE_LABELS, STAGE_BY_KEY
from kits_cascade.training.heads import EvenCases, FocusedCases, HeadLabels, lesion_values, region_values, with_heads

PLAIN = {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}
KITS = {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)}


def dataset(labels, order=None, **more):
    return {"labels": labels, "channel_names": {"0": "CT"}, **({"regions_class_order": order} if order else {}), **more}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (PLAIN, KITS),
        (SOURCE_LABELS, KITS),
        ({"background": 0, "Kidney": 1, "Tumour": 2, "cyst": 3, "ignore": 4}, KITS),
        ({"background": 0, "a": 1, "b": 2, "c": 3}, KITS),
        ({"background": 0, "whatever": [1, 2, 3]}, KITS),
        # Names that are spelled out beat the usual order of the values.
        (
            {"background": 0, "kidney": 1, "cyst": 2, "tumor": 3},
            {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (3,)},
        ),
        (STAGE_BY_KEY["masses"].labels, {"masses": (1, 2), "tumor": (2,)}),
        ({"background": 0, "cyst": 1, "tumor": 2}, {"masses": (1, 2), "tumor": (2,)}),
        ({"background": 0, "kidney": 1, "tumor": 2}, {"kidney": (1, 2), "tumor": (2,)}),
        (STAGE_BY_KEY["kidney"].labels, {"kidney": (1,)}),
    ],
)
def test_regions_of_labels(labels, expected):
    assert region_values(labels) == expected
    assert list(region_values(labels)) == list(expected)


@pytest.mark.parametrize(
    "labels", [{"background": 0, "liver": 1}, {"background": 0, "a": 1, "b": 2}, {"background": 0}]
)
def test_other_labels_are_named_in_the_error(labels):
    with pytest.raises(DatasetError, match="taken are KiTS labels"):
        region_values(labels)


@pytest.mark.parametrize("labels", [PLAIN, SOURCE_LABELS, {"background": 0, "x": 1, "y": 2, "z": 3}])
def test_all_regions_from_any_kits_labels(labels):
    made = with_heads(dataset(labels, list(SOURCE_CLASS_ORDER)), ())
    assert made["labels"] == {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": [2, 2]}
    assert made["regions_class_order"] == [1, 3, 2]
    manager = LabelManager(made["labels"], made["regions_class_order"])
    assert manager.num_segmentation_heads == 3
    painted = manager.convert_probabilities_to_segmentation(np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1]], np.float32))
    assert painted.tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("labels", "head", "values", "painted"),
    [
        (PLAIN, "kidney", [1, 2, 3], 1),
        (PLAIN, "masses", [2, 3], 3),
        (PLAIN, "tumor", [2, 2], 2),
        (STAGE_BY_KEY["masses"].labels, "masses", [1, 2], 1),
        (STAGE_BY_KEY["masses"].labels, "tumor", [2, 2], 2),
    ],
)
def test_a_single_head(labels, head, values, painted):
    source = dataset(labels, [1, 2])
    made = with_heads(source, (head,))
    assert made["labels"] == {"background": 0, head: values}
    assert made["regions_class_order"] == [painted]
    assert with_heads(made, (head,)) == made, "what a checkpoint holds gives the same again"
    manager = LabelManager(made["labels"], made["regions_class_order"])
    assert (manager.has_regions, manager.num_segmentation_heads) == (True, 1)
    assert source["labels"] == labels, "the input stays as it was"


def test_a_dataset_of_that_one_label_stays_as_it_is():
    source = dataset(STAGE_BY_KEY["kidney"].labels)
    assert with_heads(source, ("kidney",)) == source
    assert with_heads(source, None) == source


def test_a_region_that_cannot_be_made():
    with pytest.raises(DatasetError, match=r"region masses cannot be made of.*they give kidney"):
        with_heads(dataset(STAGE_BY_KEY["kidney"].labels), ("masses",))


def test_the_ignore_label_is_the_datasets():
    source = dataset({**PLAIN, "ignore": 4})
    made = with_heads(source, ("tumor",))
    assert "ignore" not in made["labels"]
    manager = HeadLabels(made, LabelManager(source["labels"], None))
    assert manager.ignore_label == 4
    assert manager.has_ignore_label
    assert manager.all_labels == [0, 1, 2, 3], "the loader's key of the annotated voxels"
    assert manager.foreground_regions == [(2, 2)]
    assert manager.num_segmentation_heads == 1
    assert manager.foreground_labels == [2]


class Cases:
    identifiers = ("a",)

    def __init__(self, places):
        self.places = places

    def load_case(self, identifier):
        return identifier, None, None, {"class_locations": self.places, "spacing": 1}


def test_foreground_is_drawn_from_the_heads_own_voxels():
    places = {(1, 2, 3): [1], (2, 3): [2], 2: [3], (-1, 0, 1, 2, 3): [4]}
    tumor = FocusedCases(Cases(places), {2}).load_case("a")[3]
    assert tumor["class_locations"] == {2: [3], (-1, 0, 1, 2, 3): [4]}
    masses = FocusedCases(Cases(places), {2, 3}).load_case("a")[3]
    assert masses["class_locations"] == {(2, 3): [2], 2: [3], (-1, 0, 1, 2, 3): [4]}
    without = {1: [5], 2: []}
    assert FocusedCases(Cases(without), {2}).load_case("a")[3]["class_locations"] == without
    assert places[(1, 2, 3)] == [1]


def test_lesions_of_known_labels_only():
    assert lesion_values({"background": 0, "masses": [1, 2], "tumor": 2}) == (1, 2)
    assert lesion_values({"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}) == (2, 3)
    assert lesion_values({"background": 0, "tumor": [2, 2]}) == (2,)
    assert lesion_values({"background": 0, "kidney": [1, 2, 3]}) == (2, 3), "the values are in the segmentation"
    assert lesion_values({"background": 0, "kidney": 1}) == ()
    assert lesion_values({"background": 0, "vessel": 1}) == ()


def test_a_region_offers_its_voxels_without_those_of_regions_inside_it():
    class One:
        identifiers = ("a",)

        def load_case(self, _):
            tumor = np.array([[0, 1, 1, 1], [0, 2, 2, 2]])
            masses = np.array([[0, 1, 1, 1], [0, 5, 5, 5], [0, 2, 2, 2]])
            return 1, 2, None, {"class_locations": {(1, 2): masses, 2: tumor, (-1, 1, 2): masses}, "spacing": 3}

    _, _, _, properties = EvenCases(One()).load_case("a")
    assert properties["class_locations"][1, 2].tolist() == [[0, 5, 5, 5]]
    assert len(properties["class_locations"][2]) == 2
    assert len(properties["class_locations"][-1, 1, 2]) == 3, "what is annotated stays what it is"
    assert properties["spacing"] == 3


def test_tumours_only_leave_an_empty_offer():
    class One:
        identifiers = ("a",)

        def load_case(self, _):
            tumor = np.array([[0, 1, 1, 1]])
            return 1, 2, None, {"class_locations": {(1, 2): tumor, 2: tumor}}

    assert EvenCases(One()).load_case("a")[3]["class_locations"][1, 2].shape == (0, 4)

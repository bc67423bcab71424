"""The one split that all stages share."""

import csv
from collections import Counter

import numpy as np
import pytest

from kits_cascade.data.derive import derive_stages
from kits_cascade.data.splits import CaseTraits, covers, make_splits, out_of_fold, read_splits
from kits_cascade.errors import DatasetError
from kits_cascade.files import read_json, write_json

from .small import make_source


def check(splits, cases):
    assert len(splits) == 5
    for fold in splits:
        assert set(fold["train"]) | set(fold["val"]) == set(cases)
        assert fold["train"] and fold["val"]
        assert not set(fold["train"]) & set(fold["val"]) or len(cases) == 1
    assert {case for fold in splits for case in fold["val"]} == set(cases)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 11])
def test_any_number_of_cases(count):
    cases = {f"case_{n:05d}": CaseTraits("arterial", float(n)) for n in range(count)}
    splits = make_splits(cases)
    check(splits, cases)
    if count >= 5:
        assert Counter(case for fold in splits for case in fold["val"]) == dict.fromkeys(cases, 1)
        sizes = [len(fold["val"]) for fold in splits]
        assert max(sizes) - min(sizes) <= 1


def test_no_case_is_an_error():
    with pytest.raises(DatasetError):
        make_splits({})


def test_kits23_is_balanced(kits23):
    with (kits23 / "geometry.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    traits = {}
    for row in rows:
        voxel = float(row["s0_mm"]) * float(row["s1_mm"]) * float(row["s2_mm"])
        load = (int(row["tumor_voxels"]) + int(row["cyst_voxels"])) * voxel
        traits[row["case"]] = CaseTraits("arterial" if int(row["case"][5:]) < 500 else "nephrogenic", load)
    splits = make_splits(traits)
    check(splits, traits)
    late = [sum(traits[case].phase == "nephrogenic" for case in fold["val"]) for fold in splits]
    assert max(late) - min(late) <= 1
    medians = [np.median([traits[case].lesion_mm3 for case in fold["val"]]) for fold in splits]
    overall = np.median([trait.lesion_mm3 for trait in traits.values()])
    assert np.allclose(medians, overall, rtol=0.15), (medians, overall)
    assert make_splits(dict(reversed(traits.items()))) == splits
    assert make_splits(traits, seed=1) != splits


def test_all_stages_share_one_split_where_nnunet_reads_it(tmp_path):
    folders = make_source(tmp_path, 6)
    derive_stages(folders, jobs=1)
    names = ["Dataset220_KiTS", "Dataset221_KidneyCoarse", "Dataset222_KidneyFine", "Dataset223_MassesTumor"]
    files = [root / name / "splits_final.json" for root in (folders.raw, folders.preprocessed) for name in names]
    splits = [read_json(path) for path in files]
    assert all(other == splits[0] for other in splits)
    check(splits[0], [f"case_{n:05d}" for n in range(6)])


def test_a_split_of_the_users_own_rules_all_stages(tmp_path):
    folders = make_source(tmp_path, 3)
    own = [{"train": ["case_00000", "case_00001"], "val": ["case_00002"]}]
    write_json(folders.raw / "Dataset220_KiTS" / "splits_final.json", own)
    derive_stages(folders, jobs=1)
    assert read_json(folders.preprocessed / "Dataset223_MassesTumor" / "splits_final.json") == own


def test_reading_splits(tmp_path):
    path = tmp_path / "splits_final.json"
    assert read_splits(path) is None
    path.write_text("{")
    with pytest.raises(DatasetError, match="not a split file"):
        read_splits(path)
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    assert out_of_fold(splits) == {"a": 0, "b": 1}
    assert covers(splits, ["a", "b"]) and not covers(splits, ["a"]) and not covers([], [])

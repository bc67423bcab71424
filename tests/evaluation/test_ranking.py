"""The challenge's ranking, by hand and against its own rules."""

import numpy as np
import pytest

from kits_cascade.errors import DatasetError, UsageError
from kits_cascade.evaluation.ranking import final_ranks, rank_systems, read_systems
from kits_cascade.evaluation.score import OFFICIAL_COLUMNS
from kits_cascade.files import read_json


def write_scores(folder, scores, names=None):
    """An evaluation.csv as the challenge writes it."""
    folder.mkdir(parents=True)
    names = names or [f"case_{i:05d}" for i in range(len(scores))]
    rows = [*zip(names, scores), ("average", np.mean(scores, axis=0))]
    lines = [",".join([name, *(f"{v:.8f}" for v in values)]) for name, values in rows]
    (folder / "evaluation.csv").write_text("\n".join([",".join(["caseID", *OFFICIAL_COLUMNS]), *lines]))
    return folder


def test_rank_then_aggregate_by_hand():
    # Mean Dice 0.9, 0.8, 0.7 ranks 1, 2, 3; mean surface Dice 0.5, 0.6, 0.7 ranks 3, 2, 1: all have mean rank 2.
    averages = np.array([[0.9] * 3 + [0.5] * 3, [0.8] * 3 + [0.6] * 3, [0.7] * 3 + [0.7] * 3])
    ranks, mean_ranks = final_ranks(averages)
    assert mean_ranks.tolist() == [2, 2, 2]
    assert ranks.tolist() == [1, 2, 3]  # tumour Dice decides


def test_ties_below_the_first_place():
    averages = np.array([[0.9] * 6, [0.8, 0.8, 0.7] + [0.6] * 3, [0.7, 0.7, 0.75] + [0.7] * 3, [0.1] * 6])
    assert final_ranks(averages)[0].tolist() == [1, 3, 2, 4]


def test_equal_in_all_share_a_place():
    assert final_ranks(np.full((3, 6), 0.5))[0].tolist() == [1, 1, 1]


@pytest.fixture
def systems(tmp_path):
    scores = np.random.default_rng(0).uniform(0.6, 0.8, (30, 6))
    return [
        write_scores(tmp_path / "A", scores),
        write_scores(tmp_path / "B", scores + 0.1),
        write_scores(tmp_path / "C", scores),
    ]


def test_ranking_and_tests(systems, tmp_path):
    ranking = rank_systems(read_systems(systems))
    assert [(p.name, p.rank) for p in ranking.places] == [("B", 1), ("A", 2), ("C", 2)]
    assert ranking.places[0].first_share == 1.0
    assert len(ranking.comparisons) == 3 * 3
    first = ranking.comparisons[0]
    assert (first.first, first.second, first.measure) == ("B", "A", "mean Dice")
    assert first.difference == pytest.approx(0.1, abs=1e-7)
    assert (first.better_cases, first.worse_cases) == (30, 0)
    assert first.p < first.p_holm < 0.001
    same = next(c for c in ranking.comparisons if {c.first, c.second} == {"A", "C"})
    assert (same.p, same.difference) == (1.0, 0.0)
    ranking.write(tmp_path / "out")
    assert (tmp_path / "out" / "ranking.csv").read_text().splitlines()[1].startswith("B,1,1.0000,")
    assert read_json(tmp_path / "out" / "ranking.json")["ranking"][0]["name"] == "B"


def test_other_cases_are_refused_or_cut(systems, tmp_path):
    scores = np.full((29, 6), 0.5)
    other = write_scores(tmp_path / "D", scores)
    with pytest.raises(UsageError, match="not in all of them: case_00029"):
        rank_systems(read_systems([*systems, other]))
    ranking = rank_systems(read_systems([*systems, other]), common=True)
    assert len(ranking.cases) == 29
    assert ranking.left_out == ("case_00029",)


def test_another_order_of_cases_is_put_right(systems, tmp_path):
    lines = (systems[0] / "evaluation.csv").read_text().splitlines()
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "evaluation.csv").write_text("\n".join([lines[0], *lines[-2:0:-1], lines[-1]]))
    ranking = rank_systems(read_systems([systems[0], tmp_path / "E"]))
    assert all(c.p == 1.0 for c in ranking.comparisons)


def test_folders_of_one_name(systems, tmp_path):
    twin = write_scores(tmp_path / "fold 1" / "A", np.full((30, 6), 0.1))
    assert [s.name for s in read_systems([systems[0], twin])] == [f"{tmp_path.name}/A", "fold 1/A"]
    with pytest.raises(UsageError, match="twice"):
        read_systems([systems[0], systems[0]])


def test_one_folder_is_no_ranking(systems):
    with pytest.raises(UsageError, match="two"):
        rank_systems(read_systems(systems[:1]))


@pytest.mark.parametrize("content", ["", "a,b\n1,2", "x", None])
def test_other_files(tmp_path, content):
    folder = tmp_path / "A"
    folder.mkdir()
    if content is not None:
        (folder / "evaluation.csv").write_text(content)
    with pytest.raises(DatasetError, match="evaluate"):
        read_systems([folder])


def test_rows_that_are_not_numbers(systems):
    path = systems[0] / "evaluation.csv"
    path.write_text(path.read_text().replace("case_00003,", "case_00003,nan,"))
    with pytest.raises(DatasetError, match="six numbers"):
        read_systems(systems)

"""Cases in several processes: one bad case never takes the others along."""

import os
import time

import pytest

from kits_cascade.errors import CaseError, KitsCascadeError
from kits_cascade.parallel import run_cases


def work(number):
    if number == 1:
        raise CaseError("case 1", "is broken")
    if number == 2:
        raise KitsCascadeError("no room")
    if number == 3:
        raise ZeroDivisionError
    if number == 4:
        os._exit(9)
    return number * 10


@pytest.mark.parametrize("jobs", [1, 2])
def test_outcomes_and_progress(jobs):
    seen = []
    items = [(f"case {number}", number) for number in (0, 1, 2, 5)]
    outcomes = list(run_cases(work, items, jobs=jobs, progress=lambda *step: seen.append(step)))
    found = {outcome.name: (outcome.result, outcome.failure) for outcome in outcomes}
    assert found == {
        "case 0": (0, None),
        "case 1": (None, "is broken"),
        "case 2": (None, "no room"),
        "case 5": (50, None),
    }
    assert [step[:2] for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_mistakes_in_the_program_are_not_hidden(jobs):
    with pytest.raises(ZeroDivisionError):
        list(run_cases(work, [("a", 0), ("b", 3)], jobs=jobs))


def test_a_worker_that_is_ended_from_outside():
    with pytest.raises(KitsCascadeError, match=r"memory ran out.*fewer jobs"):
        list(run_cases(work, [("a", 4), ("b", 0)], jobs=2))


def test_nothing_to_do():
    began = time.monotonic()
    assert list(run_cases(work, [])) == []
    assert time.monotonic() - began < 1

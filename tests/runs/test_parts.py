"""--part auto: what the schedulers' variables say, and the files of docs/scale.md that rely on it."""

import re

import pytest
import yaml

from kits_cascade.errors import UsageError
from kits_cascade.runs.parts import resolve_part, stagger_seconds
from tests.conftest import REPOSITORY

SLURM = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "8",
    "SLURM_ARRAY_TASK_STEP": "1",
    "SLURM_ARRAY_TASK_COUNT": "8",
}
SGE = {"SGE_TASK_ID": "6", "SGE_TASK_FIRST": "2", "SGE_TASK_LAST": "10", "SGE_TASK_STEPSIZE": "2"}
LSF = {"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "4", "LSB_JOBINDEX_STEP": "1"}


@pytest.mark.parametrize(
    ("part", "variables", "expected"),
    [
        ("1/3", {}, "1/3"),
        ("1/3", SLURM, "1/3"),
        ("auto", SLURM, "4/8"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "9"}, "5/9"),
        ("auto", SGE, "2/5"),
        ("auto", LSF, "2/4"),
        ("auto/4", {"PBS_ARRAY_INDEX": "4"}, "0/4"),
        ("auto/4", {"PBS_ARRAYID": "3"}, "3/4"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "0"}, "0/4"),
        ("auto/8", SLURM | {"SLURM_ARRAY_TASK_COUNT": "2"}, "5/8"),
    ],
)
def test_the_part_of_a_task(part, variables, expected):
    assert resolve_part(part, variables) == expected


@pytest.mark.parametrize(
    ("part", "variables", "message"),
    [
        ("auto", {}, "no task of a job array"),
        ("auto", {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}, "no task of a job array"),
        ("auto", {"PBS_ARRAY_INDEX": "4"}, "PBS does not say how many"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "Kubernetes does not say how many"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_COUNT": "2"}, "no even numbers"),
        ("auto/x", SLURM, "I/N"),
        ("2/2", {}, "I/N"),
    ],
)
def test_what_a_task_cannot_know_is_said(part, variables, message):
    with pytest.raises(UsageError, match=message):
        resolve_part(part, variables)


def test_all_tasks_of_an_array_together_have_every_part_once():
    ids = [str(number) for number in range(1, 9)]
    parts = {resolve_part("auto", SLURM | {"SLURM_ARRAY_TASK_ID": number}) for number in ids}
    assert parts == {f"{number}/8" for number in range(8)}
    assert parts == {resolve_part("auto/8", {"PBS_ARRAY_INDEX": number}) for number in ids}


def test_tasks_do_not_all_begin_at_once():
    waits = [stagger_seconds(f"{number}/1000") for number in range(1000)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[1] > 0
    assert waits[-1] <= 60


def test_the_slurm_array_of_the_docs():
    script = (REPOSITORY / "docs" / "cluster" / "predict.slurm").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)", script, re.MULTILINE))
    first, last = re.fullmatch(r"(\d+)-(\d+)", options["array"]).groups()
    assert int(last) > int(first)
    assert options["signal"].startswith("B:TERM@")
    assert "--part auto" in script
    assert script.startswith("#!/bin/bash\n")
    assert "exec kits-cascade predict" in script  # so that the signal reaches it


def test_the_kubernetes_job_of_the_docs():
    job = yaml.safe_load((REPOSITORY / "docs" / "cluster" / "predict-job.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    command = pod["containers"][0]["command"]
    part = command[command.index("--part") + 1]
    assert part == f"auto/{spec['completions']}"
    variables = {"JOB_COMPLETION_INDEX": str(spec["completions"] - 1)}
    assert resolve_part(part, variables) == f"{spec['completions'] - 1}/{spec['completions']}"
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 30


def test_the_docs_name_the_files():
    text = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    for file in (REPOSITORY / "docs" / "cluster").iterdir():
        assert f"cluster/{file.name}" in text

"""Many workers on one folder: whatever has submit, processes of this machine, GPUs that are made up, a Dask cluster."""

import json
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest

from kits_cascade import Cascade
from kits_cascade.errors import KitsCascadeError, UsageError
from kits_cascade.runs.crew import Crew
from kits_cascade.runs.executors import THREAD_VARIABLES, Processes, dask_workers, visible_devices, worker_environments
from kits_cascade.runs.workers import Job
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import write_models
from tests.inference.oracle import Oracle
from tests.runs.light import die, wait_for_ever, what_it_sees
from tests.runs.test_runner import contents, dead_claim, finish, run, start, strays, write_cases


def load(loads):
    loads.append(1)
    return Cascade(predictors=Oracle())


def crew(out, executor, workers=2, loads=None, listener=None, **options):
    return Crew(Job(out, partial(load, [] if loads is None else loads), **options), executor, workers, listener)


class Inline:
    """An executor that works at once, and of which the first workers die, each with a case in hand."""

    def __init__(self, out=None, deaths=()):
        self.out, self.deaths, self.submitted = out, list(deaths), 0

    def submit(self, work, *arguments):
        self.submitted += 1
        future = Future()
        if self.deaths:
            case, before = self.deaths.pop(0)
            if case:
                dead_claim(self.out, case, before)
            future.set_exception(RuntimeError("a process in the pool was terminated abruptly"))
        else:
            future.set_result(work(*arguments))
        return future


def test_whatever_has_submit_gets_the_same_results(tmp_path):
    source = write_cases(tmp_path / "in", 6)
    run(source, tmp_path / "alone")
    loads, said = [], []
    with ThreadPoolExecutor(2) as pool:
        summary = crew(tmp_path / "out", pool, loads=loads, listener=said.append).run(find_inputs(source))
    assert sorted(summary.done) == [f"case {number}" for number in range(6)]
    assert len(loads) <= 2  # once a worker
    assert sorted(event.case for event in said if event.kind == "done") == sorted(summary.done)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not strays(tmp_path / "out")
    assert len(list((tmp_path / "out" / ".kits-cascade" / "runs").iterdir())) == 1
    with ThreadPoolExecutor(2) as pool:
        again = crew(tmp_path / "out", pool).run(find_inputs(source))
    assert (again.done, len(again.skipped)) == ([], 6)


def test_a_dead_worker_costs_its_case_one_try(tmp_path):
    source, out = write_cases(tmp_path / "in", 3), tmp_path / "out"
    executor = Inline(out, [("case 1", 0)])
    summary = crew(out, executor, workers=1).run(find_inputs(source))
    assert (sorted(summary.done), summary.failed, executor.submitted) == (["case 0", "case 1", "case 2"], {}, 2)
    assert not strays(out)


def test_a_case_that_kills_three_workers_is_set_aside_and_the_others_go_on(tmp_path):
    source, out = write_cases(tmp_path / "in", 3), tmp_path / "out"
    executor = Inline(out, [("case 1", 0), ("case 1", 1), ("case 1", 2)])
    summary = crew(out, executor, workers=1).run(find_inputs(source))
    assert sorted(summary.done) == ["case 0", "case 2"]
    assert "3 workers died" in summary.failed["case 1"]
    assert json.loads((out / "run.json").read_text())["counts"] == {"done": 2, "failed": 1}
    assert not strays(out)
    again = crew(out, Inline(), workers=1).run(find_inputs(source))
    assert list(again.failed) == ["case 1"]
    assert crew(out, Inline(), workers=1, retry=True).run(find_inputs(source)).done == ["case 1"]


def test_workers_that_cannot_even_begin_are_not_sent_for_ever(tmp_path):
    source = write_cases(tmp_path / "in", 2)
    with pytest.raises(KitsCascadeError, match="died one after the other"):
        crew(tmp_path / "out", Inline(deaths=[("", 0)] * 1000), workers=2).run(find_inputs(source))


def test_what_stops_a_worker_is_said(tmp_path):
    def broken():
        raise KitsCascadeError("no such network")

    source = write_cases(tmp_path / "in", 2)
    with pytest.raises(KitsCascadeError, match="no such network"):
        Crew(Job(tmp_path / "out", broken), Inline(), 1).run(find_inputs(source))
    assert not strays(tmp_path / "out")


# --- processes, and GPUs that are made up


def test_one_worker_for_each_visible_gpu():
    made_up = {"CUDA_VISIBLE_DEVICES": "2, GPU-8f1a,MIG-77"}
    assert visible_devices(made_up) == ["2", "GPU-8f1a", "MIG-77"]
    found = worker_environments("auto", "auto", 12, made_up)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == ["2", "GPU-8f1a", "MIG-77"]
    assert {environment[name] for environment in found for name in THREAD_VARIABLES} == {"4"}
    found = worker_environments("5", "cuda", 4, made_up)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in found] == [
        "2",
        "GPU-8f1a",
        "MIG-77",
        "2",
        "GPU-8f1a",
    ]
    assert found[0]["OMP_NUM_THREADS"] == "1"
    for nothing in ({"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}):
        assert worker_environments("auto", "auto", 2, nothing) == [dict.fromkeys(THREAD_VARIABLES, "2")]
    assert len(worker_environments("3", "cpu", 2, made_up)) == 3
    assert "CUDA_VISIBLE_DEVICES" not in worker_environments("3", "cpu", 2, made_up)[0]
    for workers, device in (("0", "auto"), ("many", "auto"), ("2", "cuda:1")):
        with pytest.raises(UsageError, match="--workers"):
            worker_environments(workers, device, 2, made_up)


def test_processes_have_their_device_before_torch_and_die_alone(tmp_path):
    processes = Processes([{"CUDA_VISIBLE_DEVICES": "7"}, {"CUDA_VISIBLE_DEVICES": "GPU-1"}])
    mark = tmp_path / "waits"
    try:
        waiting = processes.submit(wait_for_ever, str(mark))
        with pytest.raises(Exception, match="terminated abruptly"):
            processes.submit(die).result()
        # The environment of the dead one is free again.
        assert processes.submit(what_it_sees, ["CUDA_VISIBLE_DEVICES"]).result() == (
            {"CUDA_VISIBLE_DEVICES": "GPU-1"},
            False,
        )
        while not mark.exists():
            time.sleep(0.05)
        assert not waiting.done()
    finally:
        processes.close()
    assert waiting.result() == "ended tidily"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def alone(results, source, tmp_path):
    code, text = finish(start(results, source, tmp_path / "alone"))
    assert code == 0, text
    return contents(tmp_path / "alone")


def worker_of(out, process):
    """The number of a worker process that has a case in hand."""
    while process.poll() is None:
        for path in (out / ".kits-cascade" / "claims").glob("[!.]*.json"):
            try:
                claim = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if claim["begun"]:
                assert claim["pid"] != process.pid
                return claim["pid"]
        time.sleep(0.01)
    raise AssertionError(process.communicate())


@pytest.mark.slow
def test_workers_as_processes_one_of_them_killed(results, tmp_path, monkeypatch):
    loads = tmp_path / "loads"
    monkeypatch.setenv("ORACLE_LOADS", str(loads))
    source, out = write_cases(tmp_path / "in", 6), tmp_path / "out"
    process = start(results, source, out, "--workers", "2", seconds=0.2)
    killed = worker_of(out, process)
    os.kill(killed, signal.SIGKILL)
    code, text = finish(process)
    assert code == 0, text
    assert text.count(": done") == 6
    lines = [line.split() for line in loads.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == len(lines) <= 3  # once a worker, and the one in the dead one's place
    assert {torch for _, torch in lines} == {"False"}
    assert contents(out) == alone(results, source, tmp_path)
    assert not strays(out)


@pytest.mark.slow
def test_workers_end_tidily_with_their_parent(results, tmp_path):
    source, out = write_cases(tmp_path / "in", 8), tmp_path / "out"
    process = start(results, source, out, "--workers", "2", seconds=0.5)
    worker_of(out, process)
    process.send_signal(signal.SIGTERM)
    code, text = finish(process)
    assert code == 130
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert not strays(out)
    assert finish(start(results, source, out))[0] == 0


@pytest.mark.slow
def test_a_dask_cluster_of_this_machine_one_worker_killed(results, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    loads = tmp_path / "loads"
    monkeypatch.setenv("ORACLE_LOADS", str(loads))
    source, out = write_cases(tmp_path / "in", 6), tmp_path / "out"
    process = start(results, source, out, "--dask", "local:2", seconds=0.2)
    os.kill(worker_of(out, process), signal.SIGKILL)
    code, text = finish(process)
    assert code == 0, text
    lines = [line.split() for line in loads.read_text().splitlines()]
    assert len({pid for pid, _ in lines}) == len(lines) <= 3
    assert contents(out) == alone(results, source, tmp_path)
    assert not strays(out)


def test_wrong_clusters_are_said():
    pytest.importorskip("distributed")
    for wrong in ("local:", "local:0", "local:x"):
        with pytest.raises(UsageError, match="local:N"), dask_workers(wrong):
            pass


def test_dask_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(KitsCascadeError, match=r"kits-cascade\[dask\]"), dask_workers("local:2"):
        pass

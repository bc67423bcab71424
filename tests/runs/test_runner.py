"""Many cases: isolation, resuming, killed and concurrent runs, a full disk. An oracle stands for the networks."""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer

from kits_cascade import Cascade
from kits_cascade.cli.runs import _conclude, _verdicts
from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import CascadeOptions
from kits_cascade.inference.roi import FineGrid
from kits_cascade.runs import runner as runner_module
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.events import Summary
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.owners import Owner
from kits_cascade.runs.parts import part_of
from kits_cascade.runs.runner import DiskFullError, Runner
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import write_models
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys

REPOSITORY = Path(__file__).parent.parent.parent
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


def write_case(path, labels=None, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = two_kidneys() if labels is None else labels
    nib.save(nib.Nifti1Image(HU[labels.transpose(2, 1, 0)], affine), path)
    return path


def write_cases(folder, count=3):
    for number in range(count):
        labels = two_kidneys()
        labels[20 + number, 30, 95] = 2
        write_case(folder / f"case {number}_0000.nii.gz", labels)
    return folder


def run(source, out, oracle=None, options=None, overwrite=False, part=None, listener=None, settings=None, **more):
    oracle = oracle or Oracle()
    cascade = Cascade(predictors=oracle, options=options or CascadeOptions())
    manifest = RunManifest(out, options=settings)
    return Runner(lambda: cascade, out, manifest, overwrite, listener, **more).run(part_of(find_inputs(source), part))


def labels_of(path):
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def contents(out, ending=(".nii.gz", ".csv")):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name.endswith(ending) and p.name[0] != "."}


def strays(out):
    found = [p for p in out.rglob("*") if p.is_file() and ".kc-tmp-" in p.name]
    return found + list((out / ".kits-cascade" / "claims").glob("*.json"))


def test_bad_cases_are_named_and_the_good_ones_come_out_right(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    good = ["good", "name with spaces", "Größe café"]
    for name in good:
        write_case(source / f"{name}_0000.nii.gz")
    whole = write_case(source / "truncated.nii.gz").read_bytes()
    (source / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (source / "text.nii.gz").write_text("not an image at all")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.int16), AFFINE), source / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((9, 9), np.int16), AFFINE), source / "flat.nii.gz")
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        image = HU[two_kidneys()].astype(np.float32)
        image[3, 4, 5] = value
        nib.save(nib.Nifti1Image(image, AFFINE), source / f"{name}.nii.gz")
    data = bytearray(gzip.decompress(whole))
    data[80:84] = b"\0\0\0\0"  # pixdim[1]
    (source / "zero.nii.gz").write_bytes(gzip.compress(bytes(data)))
    nib.save(nib.Nifti1Image(np.full((30, 30, 20), -1000, np.int16), AFFINE), source / "air.nii.gz")
    small = np.zeros((40, 40, 40), np.uint8)
    small[10:30, 10:30, 10:30] = 1
    write_case(source / "small.nii.gz", small, np.diag([3.0, 3.0, 3.0, 1.0]))

    said = []
    summary = run(source, out, listener=said.append)
    assert summary.exit_code == 1
    assert sorted(summary.done) == sorted([*good, "air", "small"])
    bad = {"truncated", "text", "four", "flat", "nan", "inf", "zero"}
    assert set(summary.failed) == bad
    assert all(reason and "\n" not in reason for reason in summary.failed.values())
    assert "NaN or infinite" in summary.failed["inf"]
    assert "4-D" in summary.failed["four"]
    for name in good:
        np.testing.assert_array_equal(labels_of(out / f"{name}.nii.gz"), two_kidneys())
    np.testing.assert_array_equal(labels_of(out / "small.nii.gz"), small)
    assert not labels_of(out / "air.nii.gz").any()
    assert not any((out / f"{name}.nii.gz").exists() for name in bad)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert {name for name, case in record["cases"].items() if case["status"] == "failed"} == bad
    assert all(record["cases"][name]["reason"] == summary.failed[name] for name in bad)
    assert {event.case for event in said if event.kind == "failed"} == bad
    assert not strays(out)


def test_the_verdict_and_its_reasons_stand_in_run_json_and_in_the_summary(tmp_path):
    write_case(tmp_path / "in" / "empty.nii.gz", np.zeros_like(two_kidneys()))
    out = tmp_path / "out"
    summary = run(tmp_path / "in", out)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))["cases"]["empty"]
    assert record["verdict"] == "implausible" == summary.verdicts["empty"]
    assert {"check", "severity", "text", "where", "lesion", "look"} == set(record["findings"][0])
    assert summary.not_plausible == {"implausible": ["empty"]}
    assert run(tmp_path / "in", out).not_plausible == {"implausible": ["empty"]}  # also of what was finished before


def test_the_last_lines_name_what_is_not_to_be_believed(capsys):
    names = [f"case {n}" for n in range(8)]
    summary = Summary(done=names, verdicts={n: "plausible" for n in names} | {"case 3": "doubtful"})
    for strict, code in ((False, 0), (True, 1)):
        with pytest.raises(typer.Exit) as exit_:
            _conclude(summary, Path("out"), CascadeOptions(), quiet=False, strict=strict)
        assert exit_.value.exit_code == code
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 8 results is doubtful: case 3 (why: run.json)"
    many = Summary(done=names, verdicts=dict.fromkeys(names, "doubtful"))
    (line,) = _verdicts(many)
    assert line.startswith("8 of 8 results are doubtful: case 0, ") and "case 4 and 3 more (" in line


def test_exit_codes(tmp_path):
    write_cases(tmp_path / "good", 1)
    assert run(tmp_path / "good", tmp_path / "a").exit_code == 0
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.nii.gz").write_text("no")
    assert run(tmp_path / "bad", tmp_path / "b").exit_code == 2


def test_a_network_that_fails_on_one_case_spares_the_others(tmp_path):
    write_cases(tmp_path / "in")

    class Failing(Oracle):
        def coarse(self, image, spacing):
            if len(self.calls) == 0:
                self.calls.append("first")
                raise RuntimeError("CUDA out of memory.\nTried to allocate")
            return super().coarse(image, spacing)

    summary = run(tmp_path / "in", tmp_path / "out", Failing())
    assert list(summary.failed) == ["case 0"]
    assert "memory" in summary.failed["case 0"]
    assert len(summary.done) == 2
    assert run(tmp_path / "in", tmp_path / "out").done == ["case 0"]  # what failed is tried again


def test_a_second_run_does_nothing_and_a_changed_input_is_done_again(tmp_path):
    write_cases(tmp_path / "in")
    first = run(tmp_path / "in", tmp_path / "out")
    assert len(first.done) == 3
    before = contents(tmp_path / "out")
    oracle = Oracle()
    second = run(tmp_path / "in", tmp_path / "out", oracle)
    assert (second.done, len(second.skipped), second.exit_code) == ([], 3, 0)
    assert not oracle.calls
    assert contents(tmp_path / "out") == before
    write_case(tmp_path / "in" / "case 1_0000.nii.gz", np.flip(two_kidneys(), 2))
    (tmp_path / "out" / "case 2.nii.gz").unlink()
    assert run(tmp_path / "in", tmp_path / "out").done == ["case 1", "case 2"]


def test_other_options_are_not_mixed_in_unasked(tmp_path):
    write_cases(tmp_path / "in", 2)
    run(tmp_path / "in", tmp_path / "out", settings={"tta": True})
    with pytest.raises(UsageError, match="--overwrite"):
        run(tmp_path / "in", tmp_path / "out", settings={"tta": False})
    assert len(run(tmp_path / "in", tmp_path / "out", settings={"tta": False}, overwrite=True).done) == 2


def test_a_foreign_file_of_the_same_name_is_left_alone(tmp_path):
    write_cases(tmp_path / "in", 2)
    foreign = tmp_path / "out" / "case 1.nii.gz"
    foreign.parent.mkdir()
    foreign.write_bytes(b"mine")
    summary = run(tmp_path / "in", tmp_path / "out")
    assert list(summary.failed) == ["case 1"]
    assert foreign.read_bytes() == b"mine"
    with pytest.raises(UsageError, match="folder of the inputs"):
        write_case(tmp_path / "same" / "x.nii.gz")
        run(tmp_path / "same", tmp_path / "same")


def test_stages_and_probabilities_are_kept_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "grid", FineGrid((2.0, 2.0, 2.0), (64, 64, 64), 0.5), raising=False)
    write_cases(tmp_path / "in", 1)
    run(tmp_path / "in", tmp_path / "out", options=CascadeOptions(keep_stages=True, save_probabilities=True))
    stages = tmp_path / "out" / "stages" / "case 0"
    coarse = nib.load(stages / "coarse.nii.gz")
    assert coarse.shape == (60, 30, 40)
    # The corners of the field of view coincide: the first voxel is twice as wide.
    np.testing.assert_allclose(coarse.affine @ [-0.5, -0.5, -0.5, 1], AFFINE @ [-0.5, -0.5, -0.5, 1])
    assert len(json.loads((stages / "roi.json").read_text())["boxes"]) == 2
    kept = np.load(tmp_path / "out" / "probabilities" / "case 0.npz")
    box, crop = kept["region0_box"], kept["region0_crop"]
    assert kept["region0_masses"].shape == (2, *(crop[1] - crop[0]))
    assert (crop[0] <= box[0]).all()
    assert (crop[1] >= box[1]).all()
    assert (crop != box).any()
    places = json.loads((stages / "roi.json").read_text())
    assert places["boxes"][0] == {"start": box[0].tolist(), "stop": box[1].tolist()}
    assert places["crops"][0] == {"start": crop[0].tolist(), "stop": crop[1].tolist()}
    record = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]["case 0"]
    assert (record["boxes"], record["crops"]) == (places["boxes"], places["crops"])


def test_a_full_disk_stops_with_a_clear_error(tmp_path, monkeypatch):
    write_cases(tmp_path / "in", 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kits_cascade.runs.outputs.write_result", full)
    with pytest.raises(DiskFullError, match="No space left on device"):
        run(tmp_path / "in", tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert not strays(tmp_path / "out")
    assert len(run(tmp_path / "in", tmp_path / "out").done) == 2


def test_parts():
    assert part_of(list(range(7)), "0/3") == [0, 3, 6]
    assert part_of(list(range(7)), "2/3") == [2, 5]
    assert part_of([1], None) == [1]
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(UsageError, match="I/N"):
            part_of([1], wrong)


# --- the command as a process


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def command(source, out, *more):
    return [sys.executable, "-m", "tests.inference.oracle", "predict", "-i", str(source), "-o", str(out), *more]


def start(results, source, out, *more, seconds=0.0, **options):
    environment = os.environ | {"nnUNet_results": str(results), "ORACLE_SECONDS": str(seconds)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": REPOSITORY}
    return subprocess.Popen(command(source, out, *more), env=environment, **pipes, **options)


def finish(process):
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def test_killed_at_random_moments_the_result_is_the_same(results, tmp_path):
    source = write_cases(tmp_path / "in", 12)
    assert finish(start(results, source, tmp_path / "whole"))[0] == 0
    expected = contents(tmp_path / "whole")
    assert len(expected) == 13
    out, moments, done_before = tmp_path / "out", random.Random(0), set()
    for _ in range(10):
        process = start(results, source, out, seconds=0.05)
        deadline = time.time() + 30
        while process.poll() is None and not (out / ".kits-cascade" / "claims").exists() and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = contents(out, (".nii.gz",)) if out.exists() else {}
        assert all(expected[name] == content for name, content in now.items())
        done = {p.name: p.stat().st_mtime_ns for p in (out / ".kits-cascade" / "cases").glob("[!.]*.json")}
        assert done_before <= set(done.items())  # nothing is done twice
        done_before = set(done.items())
    code, text = finish(start(results, source, out))
    assert code == 0, text
    assert contents(out) == expected
    assert not strays(out)


def test_killed_after_a_case_was_finished_its_claim_goes(results, tmp_path):
    source, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    assert finish(start(results, source, out))[0] == 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = Owner.this().to_json() | {"pid": dead.pid, "born": "1"}
    name = next(p.name for p in (out / ".kits-cascade" / "cases").glob("[!.]*.json"))
    (out / ".kits-cascade" / "claims" / name).write_text(json.dumps(owner), encoding="utf-8")
    assert finish(start(results, source, out))[0] == 0
    assert not strays(out)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(results, tmp_path, kind):
    source = write_cases(tmp_path / "in", 8)
    process = start(results, source, tmp_path / "out", seconds=0.4)
    while not list((tmp_path / "out").glob("[!.]*.nii.gz")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(kind)
    code, text = finish(process)
    assert code == 130
    assert "run the same command again" in text
    assert "Traceback" not in text
    finished = len(list((tmp_path / "out").glob("*.nii.gz")))
    assert 0 < finished < 8
    assert json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["done"] == finished
    assert not strays(tmp_path / "out")
    assert finish(start(results, source, tmp_path / "out"))[0] == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 8


def records(out):
    return {p.stem: json.loads(p.read_text())["run"] for p in (out / ".kits-cascade" / "cases").glob("[!.]*.json")}


@pytest.mark.parametrize("parts", [((), ()), (("--part", "0/2"), ("--part", "1/2"))])
def test_two_processes_do_every_case_once(results, tmp_path, parts):
    source = write_cases(tmp_path / "in", 9)
    out = tmp_path / "out"
    processes = [start(results, source, out, *part, seconds=0.1) for part in parts]
    ends = [finish(process) for process in processes]
    assert [code for code, _ in ends] == [0, 0], ends
    done = [text.count(": done") for _, text in ends]
    assert sum(done) == 9
    if parts[0]:  # else, on a busy machine, one may have done all before the other has started
        assert min(done) >= 1
    assert len(set(records(out).values())) == 2
    assert finish(start(results, source, tmp_path / "alone"))[0] == 0
    assert contents(out) == contents(tmp_path / "alone")
    assert not strays(out)


def test_no_room_for_a_result_in_a_real_process(results, tmp_path):
    source = tmp_path / "in"
    write_case(source / "big.nii")  # its result is not compressed: 288,352 bytes
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    code, text = finish(start(results, source, tmp_path / "out", preexec_fn=limit))
    assert code == 2
    assert "no room left" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out" / "big.nii").exists()
    assert not strays(tmp_path / "out")
    assert finish(start(results, source, tmp_path / "out"))[0] == 0


def test_folds_and_wrong_options(results, tmp_path):
    source = write_cases(tmp_path / "in", 1)
    code, text = finish(start(results, source, tmp_path / "out", "-f", "0", "1"))
    assert code == 2
    assert "fold 1 has no checkpoint_final.pth" in text
    for more, word in (
        (("-f", "x"), "fold numbers"),
        (("stray",), "unexpected argument"),
        (("--part", "2/2"), "I/N"),
        (("--min-voxels", "1,2"), "--options FILE"),
        (("--options", "none.json"), "no such file"),
        (("--model", "coarse"), "STAGE=PATTERN"),
    ):
        code, text = finish(start(results, source, tmp_path / "out", *more))
        assert (code, word in text, "Traceback" in text) == (2, True, False), text
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    code, text = finish(start(results, source, tmp_path / "out", "-f", "0", "-q", "--fast"))
    assert (code, text) == (0, "")


# --- several workers


class Losing(Oracle):
    """Stands still in its first case until another process has taken the case over, finished it, or neither."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile = meanwhile

    def coarse(self, image, spacing):
        if not self.calls:
            self.meanwhile()
        return super().coarse(image, spacing)


def claim_path(out, name="case 0"):
    return out / ".kits-cascade" / "claims" / f"{name}.json"


def test_an_owner_that_comes_late_leaves_the_case_to_its_successor(tmp_path):
    source, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    successor = Owner.this().to_json() | {"case": "case 0", "token": "of the successor"}
    oracle = Losing(lambda: claim_path(out).write_text(json.dumps(successor)))
    summary = run(source, out, oracle)
    assert (summary.done, summary.elsewhere, summary.exit_code) == ([], ["case 0"], 0)
    assert not (out / "case 0.nii.gz").exists()
    assert json.loads(claim_path(out).read_text())["token"] == "of the successor"


def test_waiting_for_others_and_helping_when_they_die(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "_WAIT_SECONDS", 0.05)
    source, out = write_cases(tmp_path / "in", 2), tmp_path / "out"
    other = Claims(out)
    assert other.take("case 0")
    said = []

    def listen(event):
        said.append(event)
        if "waiting" in event.text and other.holds("case 0"):
            dead = json.loads(claim_path(out).read_text()) | {"pid": 999999999}
            claim_path(out).write_text(json.dumps(dead))

    summary = run(source, out, listener=listen, wait=True)
    assert (summary.done, summary.elsewhere) == (["case 1", "case 0"], [])
    assert any("waiting for 1 cases" in event.text for event in said)
    other.close()
    assert not strays(out)


def dead_claim(out, name, deaths):
    claim_path(out).parent.mkdir(parents=True, exist_ok=True)
    dead = Owner.this().to_json() | {"pid": 999999999, "case": name, "token": "t", "deaths": deaths, "begun": True}
    claim_path(out, name).write_text(json.dumps(dead))


def test_a_case_that_kills_three_workers_is_set_aside(tmp_path):
    source, out = write_cases(tmp_path / "in", 3), tmp_path / "out"
    dead_claim(out, "case 0", deaths=1)
    dead_claim(out, "case 1", deaths=2)
    summary = run(source, out)
    assert summary.done == ["case 0", "case 2"]
    assert "3 workers died" in summary.failed["case 1"]
    assert not strays(out)
    again = run(source, out)  # the budget is spent, until it is asked for
    assert (again.done, list(again.failed), again.exit_code) == ([], ["case 1"], 1)
    assert run(source, out, retry=True).done == ["case 1"]


def test_a_suspect_is_worked_on_alone(tmp_path):
    source, out = write_cases(tmp_path / "in", 3), tmp_path / "out"
    dead_claim(out, "case 0", deaths=0)
    beside = []
    first = Losing(lambda: beside.extend(p.stem for p in claim_path(out).parent.glob("[!.]*.json")))
    assert len(run(source, out, first).done) == 3
    assert beside == ["case 0"]


def test_what_failed_is_not_tried_again_by_each_of_many_workers(tmp_path):
    source, out = write_cases(tmp_path / "in", 3), tmp_path / "out"
    other = RunManifest(out)
    record = other.records.path("case 2")

    def fails_elsewhere():
        other.failed("case 2", source / "case 2_0000.nii.gz", "bad")
        os.utime(record, (time.time() + 60,) * 2)

    summary = run(source, out, Losing(fails_elsewhere))
    assert (summary.done, summary.failed) == (["case 0", "case 1"], {"case 2": "bad"})
    os.utime(record, (1, 1))
    assert run(source, out).done == ["case 2"]  # a run that begins later tries again


def test_a_walltime_that_ends_while_a_case_is_written_leaves_it_to_the_next(tmp_path, monkeypatch):
    source, out = write_cases(tmp_path / "in", 1), tmp_path / "out"
    monkeypatch.setattr(runner_module, "_PATIENCE_SECONDS", 0.05)
    written, go_on = threading.Event(), threading.Event()

    def slow(*arguments):  # the result lies there, its record does not
        written.set()
        go_on.wait(60)
        raise RuntimeError("the process would have ended here")

    monkeypatch.setattr(RunManifest, "done", slow)
    monkeypatch.setattr(Runner, "_wait_for_writing", lambda self: interrupt_once(self, written))
    with pytest.raises(KeyboardInterrupt):
        run(source, out)
    monkeypatch.undo()
    assert (out / "case 0.nii.gz").exists()
    assert json.loads(claim_path(out).read_text())["left"]
    assert run(source, out).done == ["case 0"]  # at once, and the result is known to be ours
    assert not strays(out)
    go_on.set()


def interrupt_once(runner, written):
    if runner._writing is not None:
        assert written.wait(60)
        raise KeyboardInterrupt

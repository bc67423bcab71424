"""The watched folder: done once, done again when slices come late, never lost. An oracle stands for the networks."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra dicom is not installed")

from kits_cascade import Cascade
from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import CascadeOptions
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.service.archive import ArchiveError
from kits_cascade.service.arrivals import Arrivals
from kits_cascade.service.watcher import Watcher, watch
from tests.conftest import REPOSITORY
from tests.inference.handmade import write_models
from tests.inference.oracle import HU, Oracle
from tests.inference.test_cascade import two_kidneys
from tests.volumes.painted_series import UID, write_ct

SERIES = UID + "2"


def painted(folder, **given):
    return write_ct(folder, HU[two_kidneys()], spacing=(4.0, 2.0, 2.0), **given)


def watcher(tmp_path, send=None, oracle=None):
    options = CascadeOptions(dicom=("seg", "sr"))
    out = tmp_path / "out"
    load = lambda: Cascade(predictors=oracle or Oracle(), options=options)  # noqa: E731
    return Watcher(Arrivals(tmp_path / "in", 0), out, RunManifest(out), load, send)


def result_names(tmp_path):
    return sorted(path.name for path in (tmp_path / "out" / "dicom" / SERIES).glob("*"))


def test_done_once_and_again_when_slices_come_late(tmp_path):
    painted(tmp_path / "all")
    (tmp_path / "in").mkdir()
    files = sorted((tmp_path / "all").iterdir())
    for path in files[:-3]:
        shutil.copy2(path, tmp_path / "in")
    assert watcher(tmp_path).turn().done == [SERIES]
    first = (tmp_path / "out" / f"{SERIES}.nii.gz").read_bytes()
    assert result_names(tmp_path) == ["seg.dcm", "sr.dcm"]
    assert watcher(tmp_path).turn().done == []  # started again: nothing to do
    for path in files[-3:]:
        shutil.copy2(path, tmp_path / "in")
    again = watcher(tmp_path)
    assert again.turn().done == [SERIES]
    assert (tmp_path / "out" / f"{SERIES}.nii.gz").read_bytes() != first
    assert again.turn().done == []
    shutil.rmtree(tmp_path / "in")
    (tmp_path / "in").mkdir()
    again.turn()
    assert list((tmp_path / "out" / ".kits-cascade" / "series").iterdir()) == []  # no link keeps the space in use


def test_a_bad_series_is_tried_again_only_when_it_has_changed(tmp_path):
    painted(tmp_path / "in", skip=(20,))
    own = watcher(tmp_path)
    assert "missing slices" in own.turn().failed[SERIES]
    assert own.turn().failed == {}
    shutil.rmtree(tmp_path / "in")
    painted(tmp_path / "in")
    assert own.turn().done == [SERIES]


def test_results_are_sent_until_the_archive_has_them(tmp_path):
    painted(tmp_path / "in")
    sent, down = [], [True]

    def send(files):
        if down:
            raise ArchiveError("no answer")
        sent.append([path.name for path in files])

    told = []
    own = watcher(tmp_path, send)
    own.tell = told.append
    own.turn()
    assert "no answer" in told[0]
    down.clear()
    watcher(tmp_path, send).turn()
    watcher(tmp_path, send).turn()
    assert sent == [["seg.dcm", "sr.dcm"]]


def test_folders_that_would_feed_themselves_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    for out in (tmp_path / "in", tmp_path / "in" / "out"):
        own = watcher(tmp_path)
        own.out = out
        with pytest.raises(UsageError, match="lies in the watched folder"):
            own.check()
    with pytest.raises(UsageError, match="no such folder"):
        watcher(tmp_path / "nowhere").check()


def test_once_ends_when_all_is_done(tmp_path):
    painted(tmp_path / "in")
    own = watcher(tmp_path)
    own.arrivals.quiet = 2.5
    clock = [0.0]
    own.arrivals._now = lambda: clock[0]
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        clock[0] += seconds

    assert watch(own, 1.0, once=True, sleep=sleep).done == [SERIES]
    assert pauses == [1.0] * 3


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    models = write_models(tmp_path / "models")
    painted(tmp_path / "in")
    painted(tmp_path / "in" / "second", SeriesInstanceUID=UID + "9")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "tests.inference.oracle",
        "watch",
        "--from",
        str(tmp_path / "in"),
        "--to",
        str(out),
    ]
    command += ["-m", str(models), "--quiet-seconds", "0", "--poll", "0.1", "--once"]
    slow = {**os.environ, "ORACLE_SECONDS": "600"}
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=slow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        while process.poll() is None and not list((out / ".kits-cascade" / "claims").glob("*.json")):
            time.sleep(0.05)
        process.kill()
        said = process.stdout.read()
    assert process.returncode == -9, said
    subprocess.run(command, cwd=REPOSITORY, check=True)
    cases = json.loads((out / "run.json").read_text(encoding="utf-8"))["cases"]
    assert {name: case["status"] for name, case in cases.items()} == {SERIES: "done", UID + "9": "done"}
    assert all((out / "dicom" / uid / "seg.dcm").is_file() for uid in cases)
    assert not list(out.rglob(".kc-tmp-*"))
    assert np.count_nonzero([(out / f"{uid}.nii.gz").is_file() for uid in cases]) == 2

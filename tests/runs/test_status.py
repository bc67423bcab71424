"""kits-cascade status: how far a run is."""

import json
import os

import pytest
from typer.testing import CliRunner

from kits_cascade.cli.app import app
from kits_cascade.errors import UsageError
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.owners import Owner
from kits_cascade.runs.status import read_status
from tests.runs.test_manifest import finish, manifest


def folder(tmp_path):
    """Three done, a minute apart, one failed, one in work, one of a dead process, of ten."""
    out = tmp_path / "out"
    run = manifest(out, about={"total": 10})
    for number in range(3):
        finish(run, f"done {number}", out)
        os.utime(run.records.path(f"done {number}"), (1000 + 60 * number,) * 2)
    run.failed("bad", tmp_path / "bad", "truncated")
    claims = Claims(out)
    claims.take("ours")
    dead = Owner.this().to_json() | {"pid": 999999999, "case": "theirs", "since": 1.0}
    (claims.folder / "theirs.json").write_text(json.dumps(dead))
    return out, claims


def test_status(tmp_path):
    out, claims = folder(tmp_path)
    status = read_status(out)
    assert (status.total, status.done, status.failed) == (10, 3, {"bad": "truncated"})
    assert [(work.case, work.alive) for work in status.working] == [("ours", True), ("theirs", False)]
    assert status.working[0].pid == os.getpid()
    assert status.cases_per_hour == pytest.approx(60)
    assert status.seconds_left == pytest.approx(6 * 60)
    claims.close()
    assert read_status(out).seconds_left is None  # nobody is at work


def test_the_command(tmp_path):
    out, claims = folder(tmp_path)
    before = (out / "run.json").stat().st_mtime_ns
    text = CliRunner().invoke(app, ["status", str(out)]).output
    assert "3 of 10 done, 1 failed, 1 in work; 60 an hour, about 6 min left" in text.replace("\n", " ")
    assert "theirs" in text
    assert "no longer there" in text
    assert "bad: truncated" in text
    content = json.loads(CliRunner().invoke(app, ["status", str(out), "--json"]).output)
    assert (content["done"], content["total"], content["working"][0]["case"]) == (3, 10, "ours")
    assert (out / "run.json").stat().st_mtime_ns == before
    assert CliRunner().invoke(app, ["status", str(out), "--assemble"]).exit_code == 0
    assert json.loads((out / "run.json").read_text())["counts"] == {"done": 3, "failed": 1}
    claims.close()


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UsageError, match="no run of kits-cascade predict"):
        read_status(tmp_path)

"""Who has which case: claims of living, dead, distant and late owners."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from kits_cascade.runs import claims as claims_module
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.owners import Owner


def test_a_claim_is_ones_own(tmp_path):
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("a/b")
    assert not other.take("a/b")  # this process lives
    assert other.others_alive()
    assert not mine.others_alive()
    mine.release("a/b")
    assert other.take("a/b")
    assert not other.taken_over("a/b")
    mine.close()
    other.close()
    assert not list(mine.folder.glob("*.json"))


DEAD = Owner.this().to_json() | {"pid": 999999999, "born": ""}


@pytest.mark.parametrize("content", [json.dumps(DEAD), '{"host"', ""])
def test_claims_of_the_dead_are_taken_over(tmp_path, content):
    claims = Claims(tmp_path)
    path = claims.folder / "a.json"
    path.write_text(content)
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert claims.take("a")
    assert claims.taken_over("a")
    claims.close()


def test_claims_of_another_machine_count_while_they_are_touched(tmp_path):
    claims = Claims(tmp_path)
    path = claims.folder / "a.json"
    path.write_text('{"host": "elsewhere", "pid": 1, "born": ""}')
    assert not claims.take("a")
    old = time.time() - claims_module.STALE_SECONDS - 5
    os.utime(path, (old, old))
    assert claims.take("a")
    claims.close()


def test_a_living_owner_touches_its_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_SECONDS", 0.05)
    claims = Claims(tmp_path)
    claims.take("a")
    path = claims.folder / "a.json"
    os.utime(path, (1, 1))
    deadline = time.time() + 5
    while path.stat().st_mtime < 2 and time.time() < deadline:
        time.sleep(0.02)
    assert path.stat().st_mtime > 2
    claims.close()


def claim_of(claims, **changes):
    """A claim on case a that another process has."""
    path = claims.folder / "a.json"
    path.write_text(json.dumps(DEAD | {"case": "a", "token": "t", "since": 1.0, "deaths": 0, "begun": True} | changes))
    return path


@pytest.mark.parametrize("place", [{"namespace": "pid:[1]"}, {"boot": "another"}, {"host": "another"}])
def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(tmp_path, place):
    claims = Claims(tmp_path)
    path = claim_of(claims, **place)
    assert not claims.take("a")
    assert claims.others_alive()
    old = time.time() - claims_module.STALE_SECONDS - 5
    os.utime(path, (old, old))
    assert claims.take("a")
    claims.close()


SCRIPT = """
import sys
from pathlib import Path
from kits_cascade.runs.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take("a"), flush=True)
sys.stdin.read()
"""


def test_two_containers_with_one_host_name(tmp_path):
    unshare = shutil.which("unshare")
    inside = [str(unshare), "--pid", "--fork", "--mount-proc"]
    if unshare is None or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces of process numbers cannot be made here (needs unshare, and the right to it)")
    command = [*inside, sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline().strip() == "True"
        claims = Claims(tmp_path)
        assert not claims.take("a")
        claims.close()
        other.stdin.close()


def test_an_owner_that_comes_late_leaves_the_claim_of_its_successor_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT_SECONDS", 3600.0)
    late = Claims(tmp_path)
    assert late.take("a")
    path = late.folder / "a.json"
    content = json.loads(path.read_text()) | {"boot": "of a machine that stood still"}
    path.write_text(json.dumps(content))
    os.utime(path, (1, 1))
    successor = Claims(tmp_path)
    assert successor.take("a")
    assert not late.holds("a")
    late.release("a")
    late.close()
    assert successor.holds("a")
    successor.close()


def test_deaths_are_counted_once_the_networks_are_loaded(tmp_path):
    claims = Claims(tmp_path)
    claim_of(claims, deaths=1)
    assert claims.take("a")
    assert claims.deaths("a") == 2
    claims.release("a")
    claim_of(claims, deaths=1, begun=False)
    assert claims.take("a")
    assert claims.deaths("a") == 1
    assert not json.loads((claims.folder / "a.json").read_text())["begun"]
    claims.ready()
    assert json.loads((claims.folder / "a.json").read_text())["begun"]
    claims.close()


def test_what_was_left_is_free_at_once_and_counts_as_no_death(tmp_path):
    first = Claims(tmp_path)
    first.ready()
    assert first.take("a")
    assert first.take("b")
    first.close(unfinished="a")
    second = Claims(tmp_path)
    assert not second.others_alive()
    assert second.take("a")  # although its owner, this process, lives
    assert second.taken_over("a")
    assert second.deaths("a") == 0
    assert second.take("b")
    assert not second.taken_over("b")
    second.close()


def test_without_locks_claims_still_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    claims = Claims(tmp_path)
    claim_of(claims)
    assert claims.take("a")
    claims.close()

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from kits_cascade.errors import EnvironmentNotReadyError
from kits_cascade.files import TEMPORARY_MARK, atomic_path, link_or_copy, locked, read_json, sweep_temporary, write_json
from kits_cascade.nnunet_folders import VARIABLES, open_folders


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"é": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"é": 1}
    assert list(tmp_path.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


def test_sweep_spares_the_living(tmp_path):
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = tmp_path / f"{TEMPORARY_MARK}{living.pid}-x"
    stray = tmp_path / f"{TEMPORARY_MARK}{dead.pid}-y"
    for path in (kept, stray):
        path.touch()
    assert sweep_temporary(tmp_path) == 1
    living.communicate(b"\n")
    assert kept.exists()
    assert not stray.exists()


def test_missing_variables_are_named(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentNotReadyError, match=r"nnUNet_raw.*--nnunet-dir.*export"):
        open_folders()
    for name in VARIABLES:
        monkeypatch.setenv(name, "to be restored")
    folders = open_folders(tmp_path)
    assert folders.raw == tmp_path / "nnUNet_raw"
    assert os.environ["nnUNet_results"] == str(tmp_path / "nnUNet_results")


def test_linking_shares_the_content_and_copying_does_not(tmp_path):
    source = tmp_path / "a" / "source"
    source.parent.mkdir()
    source.write_bytes(b"content")
    source.chmod(0o444)
    linked, copied, pointer = tmp_path / "b" / "linked", tmp_path / "copied", tmp_path / "pointer"
    pointer.symlink_to(source)
    link_or_copy(pointer, linked)
    assert linked.samefile(source) and not linked.is_symlink() and (source.stat().st_mode & 0o777) == 0o444
    link_or_copy(source, linked)  # once more, onto itself
    link_or_copy(source, copied, copy=True)
    assert copied.read_bytes() == b"content" and not copied.samefile(source)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "copied",
        "linked",
        "pointer",
        "source",
    ]


def test_without_links_a_copy_is_made(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "source").write_bytes(b"content")
    link_or_copy(tmp_path / "source", tmp_path / "pointer")
    assert (tmp_path / "pointer").is_symlink()
    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_or_copy(tmp_path / "source", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink() and (tmp_path / "copy").read_bytes() == b"content"


def test_one_at_a_time(tmp_path, monkeypatch):
    inside, most = 0, 0

    def work(_):
        nonlocal inside, most
        with locked(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == 1

    def refuse(*_, **__):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(tmp_path / "other"):
        pass

"""What code makes a network: all of it that is loaded and not installed is recorded, and looked at again."""

import importlib
import multiprocessing
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType

import pytest

from kits_cascade import processor
from kits_cascade.inference.nnunet import code_marks
from kits_cascade.inference.nnunet.code_marks import foreign_code, is_unchanged, own_mark


@pytest.fixture(autouse=True)
def nothing_remembered():
    code_marks._installed.cache_clear()
    yield
    code_marks._installed.cache_clear()


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A module in development and one that it builds on, written before this process began, and loaded."""
    (tmp_path / "their_blocks.py").write_text("WIDTH = 32\n")
    (tmp_path / "their_unet.py").write_text("import their_blocks\n")
    monkeypatch.setattr(code_marks, "PROCESS_BEGAN", time.time() + 60)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("their_unet")
    yield tmp_path
    for name in ("their_unet", "their_blocks"):
        sys.modules.pop(name)


def recorded(folder):
    code = foreign_code()
    assert code is not None
    return {name: mark for name, mark in code.items() if name == "installed" or name.startswith(str(folder))}


def test_what_a_network_builds_on_is_recorded_and_looked_at_again(network):
    code = recorded(network)
    assert {path.rpartition("/")[2] for path in code} == {"their_blocks.py", "their_unet.py", "installed"}
    assert is_unchanged(code)
    (network / "their_blocks.py").write_text("WIDTH = 64\n")
    assert not is_unchanged(code)
    (network / "their_blocks.py").unlink()
    assert not is_unchanged(code)


def test_neither_ours_nor_what_is_installed_is_a_file_of_it():
    code = foreign_code()
    assert not [path for path in code or () if "site-packages" in path or "/kits_cascade/kits_cascade/" in path]
    assert own_mark() == own_mark()


def test_a_file_that_was_written_since_it_was_loaded_is_not_recorded(network, monkeypatch):
    assert foreign_code() is not None
    monkeypatch.setattr(code_marks, "PROCESS_BEGAN", (network / "their_blocks.py").stat().st_mtime - 1)
    assert foreign_code() is None
    os.utime(network / "their_blocks.py", (1e9, 1e9))  # as copied with its time
    os.utime(network / "their_unet.py", (1e9, 1e9))
    assert foreign_code() is None


def test_a_script_is_code_too(network, monkeypatch):
    script = network / "script.py"
    script.write_text("import their_unet\n")
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert str(script) not in recorded(network)
    sys.modules["__main__"].__file__ = str(script)
    assert str(script) in recorded(network)


def test_a_module_that_lies_in_no_file_is_not_recorded(network, monkeypatch):
    monkeypatch.setattr(sys.modules["their_blocks"].__spec__, "origin", str(network / "all.zip" / "their_blocks.py"))
    assert foreign_code() is None


@pytest.mark.parametrize("kind", ["layers-1.0.dist-info", "layers.egg-info"])
def test_whatever_is_installed_or_installed_again_counts(network, tmp_path, monkeypatch, kind):
    site, other = tmp_path / "site-packages", tmp_path / "_vendor"
    site.mkdir()
    other.mkdir()
    monkeypatch.setattr(sys, "path", ["", b"bytes", str(tmp_path / "missing"), *sys.path, str(site)])
    before = recorded(network)
    sys.path.append(str(other))  # as packages do that bring others along
    (other / kind).mkdir()
    code_marks._installed.cache_clear()
    assert is_unchanged(before)
    (site / kind).mkdir()
    code_marks._installed.cache_clear()
    assert not is_unchanged(before)
    now = recorded(network)
    os.utime(site / kind, (1e9, 1e9))
    code_marks._installed.cache_clear()
    assert not is_unchanged(now)
    os.utime(site / kind, (1e10, 1e10))
    code_marks._installed.cache_clear()
    assert foreign_code() is None


def test_nothing_is_always_the_same():
    assert is_unchanged({})


def test_a_process_knows_when_it_began(monkeypatch, tmp_path):
    assert 0 <= time.time() - processor.PROCESS_BEGAN < 24 * 3600
    assert abs(processor._began() - processor.PROCESS_BEGAN) < 1
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "no proc here")
    assert abs(processor._began() - time.time()) < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_what_its_parent_had_loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            assert pool.submit(_began_here).result() == processor.PROCESS_BEGAN


def _began_here():
    return code_marks.PROCESS_BEGAN

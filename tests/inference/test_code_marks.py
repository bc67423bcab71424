"""Marks of the code that makes networks: they change with it, and nothing is imported for them."""

import sys

import pytest

from kits_cascade.inference.nnunet import code_marks
from kits_cascade.inference.nnunet.code_marks import foreign_mark, own_mark
from kits_cascade.models.checkpoint import foreign_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in development, which must not be imported."""
    folder = tmp_path / "their_networks"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "unet.py").write_text("WIDTH = 32\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_known_parts_need_no_mark_of_their_own():
    plain = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"conv_op": "torch.nn.modules.conv.Conv3d", "norm_op": None},
        "_kw_requires_import": ["conv_op", "norm_op"],
    }
    assert foreign_names(plain) == []
    assert foreign_mark([]) == ""
    assert own_mark()
    other = {**plain, "network_class_name": "their_networks.unet.UNet"}
    assert foreign_names(other) == ["their_networks.unet.UNet"]


def test_any_change_of_a_foreign_package_changes_the_mark(package):
    names = ["their_networks.unet.UNet"]
    first = foreign_mark(names)
    assert first == foreign_mark(names)
    (package / "unet.py").write_text("WIDTH = 64\n")
    second = foreign_mark(names)
    (package / "deep").mkdir()
    (package / "deep" / "layers.py").write_text("DEPTH = 5\n")
    assert len({first, second, foreign_mark(names)}) == 3
    assert "their_networks" not in sys.modules


def test_a_package_that_is_installed_or_updated_changes_the_mark(package, tmp_path, monkeypatch):
    names = ["their_networks.unet.UNet"]
    marks = [foreign_mark(names)]
    for version in ("1.0", "1.1"):
        site = tmp_path / f"site-{version}"
        (site / f"layers-{version}.dist-info").mkdir(parents=True)
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        marks.append(foreign_mark(names))
    assert len(set(marks)) == 3


def test_what_cannot_be_told_has_no_mark(package, monkeypatch):
    assert foreign_mark(["no_such_package.unet.UNet"]) is None
    assert foreign_mark([""]) is None
    monkeypatch.setattr(code_marks, "_MOST_FILES", 1)
    assert foreign_mark(["their_networks.unet.UNet"]) is None


def test_a_single_module_is_a_package_too(tmp_path, monkeypatch):
    (tmp_path / "one_network.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = foreign_mark(["one_network.UNet"])
    (tmp_path / "one_network.py").write_text("A = 12\n")
    assert first
    assert foreign_mark(["one_network.UNet"]) not in (None, first)

"""The challenge platform's interface: both layouts, and a container's conditions as far as they can be had here."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from kits_cascade.errors import FileFormatError, UsageError
from kits_cascade.service.grand_challenge import find_job, model_source
from tests.conftest import REPOSITORY
from tests.evaluation.small_scores import label_map
from tests.inference.oracle import HU

SLUG = "kidney-tumor-and-cyst-segmentation"
# As a container runs: no network, nothing writable but /tmp, an ordinary user; the first that works here.
READ_ONLY = 'mount --bind /tmp /tmp && mount -o remount,bind,ro / && exec "$@"'
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
SANDBOXES = (
    ("unshare", "--net", "--mount", "sh", "-c", READ_ONLY, "sh", *NOBODY),
    ("unshare", "--net", *NOBODY),
    ("unshare", "--user", "--net"),
    (),
)


@pytest.fixture
def tree():
    """/input and /output, where any user can reach them."""
    folder = Path(tempfile.mkdtemp(prefix="kits-cascade-container-", dir="/tmp" if os.name == "posix" else None))
    (folder / "output").mkdir()
    folder.chmod(0o755)
    (folder / "output").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def image(path, labels=None):
    """A CT whose voxel values tell the oracle its labels, oblique, as ITK writes it."""
    labels = label_map() if labels is None else labels
    ct = sitk.GetImageFromArray(HU[labels])
    ct.SetSpacing((3.0, 3.0, 5.0))
    ct.SetOrigin((-10, 5, 100))
    ct.SetDirection((0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(ct, str(path))
    return ct


def sockets(folder, *slugs, key="socket"):
    entries = [{key: {"slug": slug, "relative_path": f"images/{slug}", "is_image_kind": True}} for slug in slugs]
    entries.append({key: {"slug": "age", "relative_path": "age.json", "is_image_kind": False}})
    (folder / "input").mkdir(exist_ok=True)
    (folder / "input" / "inputs.json").write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def sandbox():
    """The strictest way to run a program that works here."""
    for prefix in SANDBOXES:
        probe = [*prefix, sys.executable, "-c", "import kits_cascade.cli.app"]
        if prefix and shutil.which(prefix[0]) is None:
            continue
        if subprocess.run(probe, cwd=REPOSITORY, capture_output=True, check=False, timeout=600).returncode == 0:
            return prefix
    raise AssertionError("python does not start")


def run(tree, prefix=(), *arguments, **environment):
    command = [*prefix, sys.executable, "-m", "tests.service.container", "grand-challenge"]
    command += ["-i", str(tree / "input"), "-o", str(tree / "output"), *arguments]
    caches = {"HOME": "/nonexistent", "MPLCONFIGDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | caches | environment, text=True, check=False, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def check(path, ct):
    result = sitk.ReadImage(str(path))
    assert (sitk.GetArrayFromImage(result) == label_map()).mean() > 0.999
    assert np.allclose(result.GetDirection(), ct.GetDirection()) and result.GetOrigin() == ct.GetOrigin()
    assert result.GetPixelID() == sitk.sitkUInt8


def test_as_the_platform_runs_it(tree, sandbox):
    ct = image(tree / "input" / "images" / "ct-image" / "5b1e.mha")
    sockets(tree, "ct-image")
    done = run(tree, sandbox)
    assert done.returncode == 0, done.stdout
    check(tree / "output" / "images" / SLUG / "output.mha", ct)
    assert [path.name for path in (tree / "output").rglob("*") if path.is_file()] == ["output.mha"]
    assert "case 5b1e of ct-image" in done.stdout and "written:" in done.stdout
    if not sandbox:
        pytest.skip("it ran, but without isolation: this machine lets nobody unshare the network")


def test_the_older_layout(tree):
    ct = image(tree / "input" / "images" / "ct" / "1.2.3.mha")
    done = run(tree)
    assert done.returncode == 0, done.stdout
    check(tree / "output" / "images" / SLUG / "1.2.3.mha", ct)


def test_the_log_says_what_is_missing(tree):
    (tree / "input" / "images").mkdir(parents=True)
    (tree / "input" / "readme.txt").write_text("")
    done = run(tree)
    assert done.returncode == 2
    assert "one CT is needed" in done.stdout and "readme.txt" in done.stdout and "Traceback" not in done.stdout


def test_which_input_is_meant(tmp_path):
    out = tmp_path / "output"
    for slug in ("ct", "old-ct"):
        image(tmp_path / "input" / "images" / slug / "a.mha")
    sockets(tmp_path, "ct", "old-ct", key="interface")
    with pytest.raises(UsageError, match="ct, old-ct; --input-slug"):
        find_job(tmp_path / "input", out)
    job = find_job(tmp_path / "input", out, input_slug="old-ct", output_slug="x")
    assert (job.slug, job.output) == ("old-ct", out / "images" / "x" / "output.mha")
    job = find_job(tmp_path / "input", out, layout="images", input_slug="ct")
    assert job.output == out / "images" / SLUG / "a.mha"


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"socket": 3}]'])
def test_inputs_that_are_no_list(tmp_path, text):
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises((FileFormatError, UsageError), match=r"inputs\.json"):
        find_job(tmp_path, tmp_path / "output")


def test_inputs_lead_nowhere_else(tmp_path):
    entries = [{"socket": {"slug": "ct", "relative_path": "images/../../secret", "is_image_kind": True}}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "inputs.json").write_text(json.dumps(entries))
    with pytest.raises(UsageError, match="outside"):
        find_job(tmp_path / "in", tmp_path / "output")


def test_where_the_networks_come_from(tmp_path):
    assert model_source(None, tmp_path / "nowhere") is None
    assert model_source(None, tmp_path) is None
    assert model_source(None, tmp_path, Path(__file__)) == Path(__file__)
    (tmp_path / "cascade.zip").touch()
    assert model_source(None, tmp_path) == tmp_path / "cascade.zip"
    assert model_source(tmp_path / "mine.zip", tmp_path) == tmp_path / "mine.zip"
    (tmp_path / "other.zip").touch()
    with pytest.raises(UsageError, match="several bundles"):
        model_source(None, tmp_path)

"""What a client has sent is read in another process, which may be killed, stalled or starved: the service stays."""

import gzip
import sys

import nibabel as nib
import numpy as np
import pytest

from kits_cascade.service import reader
from kits_cascade.service.handover import restore_case
from kits_cascade.service.isolation import run_apart
from kits_cascade.service.uploads import Limits, RefusedError
from kits_cascade.volumes.cases import load_case
from kits_cascade.volumes.find import InputCase

OBLIQUE = np.array([[-0.8, 0.1, 0, 90], [0.1, 0.8, 0.2, -80], [0, -0.2, 3.0, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def folder(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 18, 9)).astype(np.int16)
    image = nib.Nifti1Image(array, OBLIQUE)
    image.header["descrip"] = b"kept"
    (tmp_path / reader.UPLOAD).write_bytes(gzip.compress(image.to_bytes()))
    return tmp_path


def test_what_was_read_elsewhere_is_what_is_read_here(folder):
    content = (folder / reader.UPLOAD).read_bytes()
    run_apart(reader.READ, folder, Limits())
    restored = restore_case(folder, Limits())
    here = folder / "here.nii.gz"
    here.write_bytes(content)
    loaded = load_case(InputCase("image", here, "nifti"))
    assert restored.volume.array.dtype == loaded.volume.array.dtype
    assert np.array_equal(restored.volume.array, loaded.volume.array)
    assert np.array_equal(restored.volume.affine, loaded.volume.affine)
    assert restored.volume.stored.shape == loaded.volume.stored.shape
    assert np.array_equal(restored.volume.stored.affine, loaded.volume.stored.affine)
    assert restored.volume.stored.header == loaded.volume.stored.header
    assert (restored.warnings, restored.air_only) == (loaded.warnings, loaded.air_only)
    assert restored.case.path == folder / "image.nii.gz"


def test_a_reader_that_takes_too_long_is_ended(folder):
    with pytest.raises(RefusedError, match=r"longer than 0\.01 s"):
        run_apart(reader.READ, folder, Limits(read_seconds=0.01))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's memory")
def test_a_reader_that_takes_too_much_memory_is_ended(folder):
    with pytest.raises(RefusedError, match=r"memory|limits|cannot be read"):
        run_apart(reader.READ, folder, Limits(memory_bytes=150_000_000))  # not even the libraries go into it


def test_a_reader_that_breaks_is_no_reason_to_break(folder):
    for crash in ("import os; os.abort()", "raise SystemExit(0)", "import time; 1 / 0"):
        with pytest.raises(RefusedError, match="broke the program"):
            run_apart(reader.READ, folder, Limits(), (sys.executable, "-c", crash))


def test_what_a_broken_reader_leaves_is_not_believed(folder):
    run_apart(reader.READ, folder, Limits())
    with pytest.raises(RefusedError, match="makes no case"):
        restore_case(folder, Limits(voxels=100))
    about = (folder / "case.json").read_text()
    for wrong in ("", "[]", about.replace("-0.8", "NaN"), about.replace('"header": "', '"header": "zz')):
        (folder / "case.json").write_text(wrong)
        with pytest.raises(RefusedError):
            restore_case(folder, Limits())
    (folder / "case.json").write_text(about)
    np.save(folder / "voxels.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RefusedError):
        restore_case(folder, Limits())

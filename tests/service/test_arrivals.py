"""Which series have stopped growing. The clock is made by hand."""

import os
import shutil

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra dicom is not installed")

from kits_cascade.service.arrivals import Arrivals
from tests.volumes.painted_series import UID, write_ct

SERIES = (
    {},
    {"SeriesInstanceUID": UID + "9"},
    {"SeriesInstanceUID": "1.2", "Modality": "MR"},
    {"SeriesInstanceUID": "1.3", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
)


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


def look(arrivals, clock, seconds=0.0):
    clock.time += seconds
    arrivals.look()
    return [(arrival.uid, len(arrival.files)) for arrival in arrivals.settled]


def test_a_series_is_ready_when_it_has_stopped_growing(tmp_path):
    ready, inbox = write_ct(tmp_path / "ready", np.zeros((4, 5, 6), np.int16)), tmp_path / "in" / "deep" / "er"
    inbox.mkdir(parents=True)
    clock = Clock()
    arrivals = Arrivals(tmp_path / "in", 10, clock)
    files = sorted(ready.iterdir())
    whole = files[2].read_bytes()
    old = files[0].stat().st_mtime - 9999
    for path in files[:2]:
        shutil.copyfile(path, inbox / path.name)
        os.utime(inbox / path.name, (old, old))  # the times of files say nothing
    assert look(arrivals, clock) == []
    assert look(arrivals, clock, 9) == []
    assert arrivals.growing
    (inbox / files[2].name).write_bytes(whole[:-20])  # one more, and not whole
    assert look(arrivals, clock, 9) == []
    (inbox / files[2].name).write_bytes(whole)
    assert look(arrivals, clock, 9) == []
    assert look(arrivals, clock, 10) == [(UID + "2", 3)]
    shutil.copyfile(files[3], inbox / files[3].name)  # late, after all
    assert look(arrivals, clock, 1) == []
    assert look(arrivals, clock, 10) == [(UID + "2", 4)]
    assert not arrivals.growing
    shutil.rmtree(inbox)
    assert look(arrivals, clock, 10) == []
    assert arrivals.uids == set()


def test_series_are_told_apart_in_one_folder_and_the_rest_is_passed_over(tmp_path):
    array = np.zeros((3, 5, 6), np.int16)
    for number, given in enumerate(SERIES):
        for path in write_ct(tmp_path / "made" / str(number), array, **given).iterdir():
            path.rename(tmp_path / f"{number}{path.name}")
    shutil.rmtree(tmp_path / "made")
    for name in (".hidden.dcm", "x.dcm.part"):
        shutil.copyfile(tmp_path / "0IM0000.dcm", tmp_path / name)
    (tmp_path / "readme.txt").write_text("no DICOM " * 50)
    (tmp_path / "half.dcm").write_bytes((tmp_path / "0IM0000.dcm").read_bytes()[:180])
    evil = write_ct(tmp_path / "evil", array, SeriesInstanceUID="1.2.3")
    for path in evil.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.3\0", b"../x/\0"))
    assert sorted(look(Arrivals(tmp_path, 0, Clock()), Clock())) == [(UID + "2", 3), (UID + "9", 3)]

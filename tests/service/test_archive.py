"""Slices by C-STORE and results by STOW-RS: with our own ends alone, and with a real Orthanc where there is one."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
pytest.importorskip("pynetdicom", reason="the extra dicom is not installed")
pytest.importorskip("dicomweb_client", reason="the extra dicom is not installed")
import pydicom
import pynetdicom

from kits_cascade.service.archive import ArchiveError, receiver, send_stow
from tests.inference.oracle import HU
from tests.inference.test_cascade import two_kidneys
from tests.service.test_watcher import SERIES, painted, watcher
from tests.volumes.painted_series import CT, UID

PATIENCE_SECONDS = 300  # only ever waited for on a machine that is very busy
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
FORWARD = """
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/kits/store', DumpJson({ Resources = { seriesId }, Asynchronous = true }))
  end
end
"""


def c_store(port, datasets, title="ORTHANC"):
    entity = pynetdicom.AE()
    entity.add_requested_context(CT, pydicom.uid.ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title=title)
    assert association.is_established
    statuses = [association.send_c_store(dataset).Status for dataset in datasets]
    association.release()
    return statuses


def read(folder):
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def test_slices_come_in_whole_and_nothing_of_a_name_reaches_a_path(tmp_path):
    datasets = read(painted(tmp_path / "made"))[:3]
    inbox = tmp_path / "a" / "in"
    with receiver(inbox, 0, "KITS") as port:
        assert c_store(port, datasets, "KITS") == [0, 0, 0]
        with (
            pytest.raises(ArchiveError, match=f"port {port} of 127.0.0.1 cannot be listened to"),
            receiver(inbox, port),
        ):
            pass
    files = sorted((inbox / SERIES).iterdir())
    assert [path.name for path in files] == [f"{UID}4.{number}.dcm" for number in (1, 2, 3)]
    assert [pydicom.dcmread(path).PixelData for path in files] == [dataset.PixelData for dataset in datasets]


def test_an_archive_that_is_not_there(tmp_path):
    file = painted(tmp_path / "made") / "IM0000.dcm"
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ArchiveError, match="dicom-web"):
            send_stow(f"http://127.0.0.1:{taken.getsockname()[1]}/dicom-web", [file])


def orthanc_program():
    program = shutil.which("Orthanc") or next((p for p in ["/usr/sbin/Orthanc"] if Path(p).is_file()), None)
    plugin = next((p for folder in PLUGINS for p in Path(folder).glob("libOrthancDicomWeb*.so*")), None)
    if program is None or plugin is None:
        pytest.skip("no Orthanc with DICOMweb here: Debian's packages orthanc and orthanc-dicomweb")
    return program, plugin


def free_ports(count):
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Orthanc:
    def __init__(self, folder, forward_to):
        program, plugin = orthanc_program()
        self.folder = folder
        self.web, self.dicom = free_ports(2)
        (folder / "forward.lua").write_text(FORWARD)
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.web,
            "DicomPort": self.dicom,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StableAge": 1,
            "Plugins": [str(plugin)],
            "LuaScripts": [str(folder / "forward.lua")],
            "DicomModalities": {"kits": ["KITS", "127.0.0.1", forward_to]},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.log = (folder / "log.txt").open("w")
        self.process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=self.log, stderr=self.log)

    def __enter__(self):
        wait_for(self.answers)
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def answers(self):
        assert self.process.poll() is None, (self.folder / "log.txt").read_text(errors="replace")[-2000:]
        try:
            return self.get("/system")
        except (urllib.error.URLError, OSError):
            return None

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}{path}") as answer:
            content = answer.read()
        return content if path.endswith("/file") else json.loads(content)

    def series(self, modality):
        found = [self.get(f"/series/{name}") for name in self.get("/series")]
        return [series for series in found if series["MainDicomTags"]["Modality"] == modality]


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_there_and_back_with_orthanc(tmp_path, monkeypatch):
    orthanc_program()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    datasets = read(painted(tmp_path / "made"))
    inbox = tmp_path / "in"
    with receiver(inbox, 0) as port, Orthanc(tmp_path, port) as orthanc:
        assert set(c_store(orthanc.dicom, datasets)) == {0}
        wait_for(lambda: len(list(inbox.rglob("[!.]*.dcm"))) == len(datasets))
        own = watcher(tmp_path, lambda files: send_stow(f"http://127.0.0.1:{orthanc.web}/dicom-web", files))
        assert own.turn().done == [SERIES]
        [seg], [sr] = orthanc.series("SEG"), orthanc.series("SR")
        [ct] = orthanc.series("CT")
        assert seg["ParentStudy"] == sr["ParentStudy"] == ct["ParentStudy"]
        (tmp_path / "back.dcm").write_bytes(orthanc.get(f"/instances/{seg['Instances'][0]}/file"))
    back = pydicom.dcmread(tmp_path / "back.dcm")
    voxels = sum(int(plane.sum()) for plane in back.pixel_array)
    assert voxels == int((HU[two_kidneys()] > 0).sum())
    assert back.PatientName == "Müller^Zoë"

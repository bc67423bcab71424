"""The HTTP service on a real socket, with an oracle: what it gives, and what it takes from nobody."""

import gzip
import http.client
import importlib.util
import io
import json
import socket
import threading
import time
import zipfile

import numpy as np
import pytest

from kits_cascade.errors import UsageError
from kits_cascade.inference.cascade import Cascade
from tests.evaluation.small_scores import label_map
from tests.inference.oracle import HU, Oracle
from tests.volumes.painted_series import write_ct

pytest.importorskip("fastapi", reason="no fastapi here: pip install 'kits-cascade[serve]'")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from kits_cascade.service import reader
from kits_cascade.service.jobs import Jobs
from kits_cascade.service.server import build_app, make_server, read_token
from kits_cascade.service.uploads import Limits

LIMITS = Limits(
    upload_bytes=3_000_000, unpacked_bytes=4_000_000, files=50, voxels=1_000_000, idle_seconds=1.0, request_seconds=20.0
)
EDGE = "b0undary"


def nifti(labels=None, **header):
    import nibabel as nib

    labels = label_map() if labels is None else labels
    image = nib.Nifti1Image(HU[labels], np.diag([5.0, 3.0, 3.0, 1.0]))
    data = bytearray(image.to_bytes())
    changed = nib.Nifti1Header(bytes(data[:348]), check=False)
    for key, value in header.items():
        changed[key] = value
    data[:348] = changed.binaryblock
    return bytes(data)


def form(content, filename="ct.nii.gz", field="file"):
    head = f'--{EDGE}\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'.encode(
        "latin-1"
    )
    return head + content + f"\r\n--{EDGE}--\r\n".encode()


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


class Service:
    """A server in a thread, and a client."""

    def __init__(self, folder, token=None, waiting=3, oracle=None):
        self.folder = folder / "jobs"
        self.jobs = Jobs(Cascade(predictors=oracle or Oracle()), self.folder, waiting, LIMITS)
        self.server = make_server(build_app(self.jobs, token), "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def ask(self, method, path, body=None, headers=None):
        given = {"Content-Type": f"multipart/form-data; boundary={EDGE}"} if body is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, given | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def send(self, content, **about):
        status, body = self.ask("POST", "/jobs", form(content, **about))
        return status, json.loads(body)

    def finished(self, name):
        while True:
            job = json.loads(self.ask("GET", f"/jobs/{name}")[1])
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.05)

    def close(self):
        self.server.should_exit = True
        self.thread.join(60)
        self.jobs.close(60)


@pytest.fixture
def service(tmp_path):
    running = Service(tmp_path)
    yield running
    running.close()
    assert not running.folder.exists()


def test_labels_and_page_come_back(service):
    import nibabel as nib

    status, job = service.send(gzip.compress(nifti()), filename="../../etc/passwd")
    assert status == 202 and job["state"] in ("waiting", "working", "done")
    job = service.finished(job["id"])
    assert job["state"] == "done", job
    assert [lesion["kind"] for lesion in job["lesions"]] == ["tumor", "cyst"]
    assert job["verdict"] in ("plausible", "doubtful", "implausible") and isinstance(job["findings"], list)
    status, content = service.ask("GET", f"/jobs/{job['id']}/labels")
    labels = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert status == 200 and (np.asarray(labels.dataobj) == label_map()).mean() > 0.999
    assert labels.affine == pytest.approx(np.diag([5.0, 3.0, 3.0, 1.0]))
    if importlib.util.find_spec("ipyniivue"):
        assert b"Tumor 1" in service.ask("GET", f"/jobs/{job['id']}/view")[1]
    assert service.ask("DELETE", f"/jobs/{job['id']}")[0] == 204
    assert service.ask("GET", f"/jobs/{job['id']}")[0] == 404
    assert not any(service.folder.iterdir())


def test_a_zip_of_dicom_gives_a_segmentation_object(service, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    write_ct(tmp_path / "series", HU[label_map()], spacing=(5.0, 3.0, 3.0))
    files = sorted((tmp_path / "series").iterdir())
    content = zipped(*((f"../{path.name}", path.read_bytes()) for path in files), ("readme.txt", b"not a slice"))
    job = service.finished(service.send(content, filename="a.zip")[1]["id"])
    assert job["state"] == "done", job
    assert {"labels", "seg", "sr"} <= set(job["files"])
    seg = pydicom.dcmread(io.BytesIO(service.ask("GET", f"/jobs/{job['id']}/seg")[1]))
    assert seg.Modality == "SEG"


def bomb(size=20_000_000):
    return zipped(("a.dcm", bytes(128) + b"DICM" + bytes(size)))


def many():
    return zipped(*((f"{number}", b"") for number in range(60)))


def truncated():
    return gzip.compress(nifti())[:-200]


HOSTILE = {
    "empty": b"", "text": b"hello", "broken gzip": b"\x1f\x8b" + bytes(40),
    "half a gzip header": b"\x1f\x8b\x08", "nothing in a gzip": gzip.compress(b""),
    "a gzip bomb without a header": gzip.compress(bytes(30_000_000)),
    "a header of 2 GB": gzip.compress(nifti(vox_offset=2e9)),
    "an offset that is no number": nifti(vox_offset=np.nan), "an offset below zero": nifti(vox_offset=-5),
    "2 GB of voxels announced": nifti(dim=[3, 1300, 1300, 1300, 1, 1, 1, 1]),
    "terabytes of voxels announced": gzip.compress(nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])),
    "sizes below zero": nifti(dim=[3, -9, 40, 40, 1, 1, 1, 1]), "eight axes": nifti(dim=[9] + [2] * 7),
    "no axis": nifti(dim=[0] * 8), "a type that is none": nifti(datatype=777), "colours": nifti(datatype=128),
    "an affine of zeros": nifti(srow_x=[0] * 4, srow_y=[0] * 4),
    "an affine that is no number": nifti(srow_x=[np.nan] * 4),
    "half a file": truncated(), "voxels that are missing": nifti()[:2000], "broken zip": b"PK\x03\x04" + bytes(100),
    "an empty zip": zipped(("a/", "")), "a zip bomb": bomb(), "many files": many(),
    "names that climb": zipped(("../../../evil.dcm", bytes(128) + b"DICMxx"), ("/etc/evil", b"x")),
    "a zip in a zip": zipped(("a.zip", bomb())), "another compression": zipped(("a", b"x" * 99), method=14),
    "no DICOM": zipped(("a.dcm", b"DICM" * 99)),
}  # fmt: skip
# Each costs the start of a process: the others are tried in this one, and all of them by tests.benchmarks.serve_abuse.
SENT = ("half a file", "terabytes of voxels announced", "names that climb")


def test_hostile_files_are_refused_with_a_reason(tmp_path):
    for number, (what, content) in enumerate(HOSTILE.items()):
        folder = tmp_path / "in" / str(number)
        folder.mkdir(parents=True)
        (folder / reader.UPLOAD).write_bytes(content)
        refused = reader.try_task(reader.READ, folder, LIMITS)
        assert refused and str(tmp_path) not in refused, (what, refused)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_hostile_files_leave_nothing(service, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    for what in SENT:
        status, answer = service.send(HOSTILE[what], filename="..%2f..\\x.nii")
        assert status == 422 and "detail" in answer, (what, status, answer)
        assert str(tmp_path) not in json.dumps(answer), what
    assert not service.folder.exists() or not any(service.folder.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*before, "jobs"})
    status, job = service.send(nifti())
    assert service.finished(job["id"])["state"] == "done"  # and it still works


def test_hostile_requests_are_refused(service):
    assert service.ask("POST", "/jobs", b"no form", {"Content-Type": "text/plain"})[0] == 400
    assert service.ask("POST", "/jobs", b"no form")[0] == 400
    assert service.ask("POST", "/jobs", form(b"x", field="other"))[0] == 400
    assert service.ask("POST", "/jobs", bytes(4_000_000))[0] == 413
    assert service.ask("POST", "/jobs", None, {"Content-Length": "-1"})[0] in (400, 413)
    for path in ("/jobs/../../etc/passwd", "/jobs/%2e%2e%2f%2e%2e/labels", "/jobs/x/..%2f..%2fy", "/etc/passwd", "//"):
        assert service.ask("GET", path)[0] == 404
    assert service.ask("GET", "/", headers={"Host": "evil.example"})[0] == 403
    assert service.ask("POST", "/jobs", form(nifti()), {"Origin": "https://evil.example"})[0] == 403
    assert service.ask("GET", "/")[0] == 200
    assert service.ask("GET", "/", headers={"X": "y" * 100_000})[0] in (400, 431)


def test_an_endless_body_is_ended(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=300) as client:
        client.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=b0undary\r\n\r\n"
        )
        head = form(b"").split(b"\r\n\r\n")[0] + b"\r\n\r\n"
        client.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
        sent = 0
        try:
            while sent < 60_000_000:
                client.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
        except OSError:
            pass  # closed while we were still sending
        assert sent < 60_000_000
    assert service.ask("GET", "/")[0] == 200


def test_a_slow_client_is_let_go(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=300) as client:
        client.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
                       b"Content-Type: multipart/form-data; boundary=b0undary\r\n\r\n--b0und")  # fmt: skip
        assert b" 408 " in client.recv(4096)


def test_the_queue_has_an_end(tmp_path):
    class Slow(Oracle):
        go = threading.Event()

        def coarse(self, image, spacing):
            self.go.wait(300)
            return super().coarse(image, spacing)

    service = Service(tmp_path, waiting=2, oracle=Slow())
    try:
        jobs = [service.send(nifti())[1]["id"] for _ in range(2)]
        status, answer = service.send(nifti())
        assert status == 503 and "try again" in answer["detail"]
        assert service.ask("DELETE", f"/jobs/{jobs[1]}")[0] == 409
        Slow.go.set()
        assert {service.finished(name)["state"] for name in jobs} == {"done"}
        assert service.send(nifti())[0] == 202
    finally:
        Slow.go.set()
        service.close()


def test_strangers_need_the_token(tmp_path):
    service = Service(tmp_path, token="s3cret")
    try:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert service.ask("GET", "/", headers=given)[0] == 401
        known = {"Authorization": "Bearer s3cret", "Host": "ct.example"}
        assert service.ask("GET", "/", headers=known)[0] == 200
    finally:
        service.close()
    with pytest.raises(UsageError, match="token"):
        read_token("0.0.0.0", None, None)
    assert read_token("127.0.0.1", None, None) is None
    assert read_token("0.0.0.0", None, " abc\n") == "abc"

"""A thousand hostile requests against the service: python -m tests.benchmarks.serve_abuse [-n 1000] [--clients 8].

Prints what was answered how often, how long others waited for an answer meanwhile, whether a good request was still
answered, the files left, the growth of the service's memory, and the most that a process took which reads an upload.
"""

import argparse
import io
import itertools
import resource
import socket
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

from tests.service.test_server import HOSTILE, Service, nifti, zipped

_PAUSE = 0.2


def dicom(syntax=ExplicitVRLittleEndian, **tags):
    """A slice that is whole but for what is given."""
    slice_ = pydicom.Dataset()
    slice_.file_meta = pydicom.dataset.FileMetaDataset()
    slice_.file_meta.TransferSyntaxUID = syntax
    slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = "1.2.3"
    slice_.Modality, slice_.SeriesInstanceUID, slice_.PhotometricInterpretation = "CT", "1.2.3.4", "MONOCHROME2"
    slice_.Rows = slice_.Columns = 64
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit, slice_.PixelRepresentation, slice_.SamplesPerPixel = 15, 1, 1
    slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 1
    slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    for name, value in tags.items():
        setattr(slice_, name, value)
    stream = io.BytesIO()
    slice_.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom_bombs():
    """Small files that ask for much."""
    rubbish = pydicom.encaps.encapsulate([bytes(range(256)) * 20])
    bombs = {
        "a slice of 65535 x 65535": dicom(Rows=65535, Columns=65535, PixelData=bytes(64)),
        "a billion frames": dicom(NumberOfFrames=10**9, PixelData=bytes(64)),
        "a slice that unpacks to 500 MB": dicom(DeflatedExplicitVRLittleEndian, PixelData=bytes(500_000_000)),
        "JPEG 2000 that is none": dicom(JPEG2000Lossless, PixelData=rubbish),
    }
    return {what: zipped(("a.dcm", content)) for what, content in bombs.items()}


def hold(service):
    """A client that begins and says no more."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=300) as client:
        client.sendall(b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n"
                       b"Content-Type: multipart/form-data; boundary=b0undary\r\n\r\n--b0")  # fmt: skip
        return client.recv(100).split(b" ", 2)[1].decode()


def attack(service, files, what):
    """What the service says in the end, and how often it said before that it was busy."""
    for busy in itertools.count():
        answer = hold(service) if what == "slow" else send(service, files[what])
        if answer != "503":
            return answer, busy
        time.sleep(_PAUSE)


def send(service, content):
    status, answer = service.send(content, filename="../" * 9 + "etc/x")
    if status != 202:
        return str(status)
    state = service.finished(answer["id"])["state"]
    service.ask("DELETE", f"/jobs/{answer['id']}")
    return state


class Bystander(threading.Thread):
    """Asks the service for a word all the while; how long that took at most."""

    def __init__(self, service):
        super().__init__(daemon=True)
        self.service, self.over, self.longest, self.answers = service, threading.Event(), 0.0, Counter()

    def run(self):
        while not self.over.wait(_PAUSE):
            start = time.perf_counter()
            self.answers[self.service.ask("GET", "/")[0]] += 1
            self.longest = max(self.longest, time.perf_counter() - start)


def forget_peak():
    """What this process has needed until now is no matter: Linux counts the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    files = HOSTILE | dicom_bombs()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), waiting=4)
        try:
            for what in files:  # once each, so that what follows shows growth alone
                print(f"{what}: {attack(service, files, what)[0]}", flush=True)
            forget_peak()
            before, start = peak_megabytes(), time.perf_counter()
            bystander = Bystander(service)
            bystander.start()
            kinds = itertools.islice(itertools.cycle([*files, "slow"]), options.n)
            with ThreadPoolExecutor(options.clients) as pool:
                said = list(pool.map(lambda what: attack(service, files, what), kinds))
            seconds = time.perf_counter() - start
            bystander.over.set()
            bystander.join()
            status, job = service.send(nifti())
            good = service.finished(job["id"])["state"] if status == 202 else status
            service.ask("DELETE", f"/jobs/{job['id']}")
            left = len(list(service.folder.rglob("*")))
            answers = dict(sorted(Counter(answer for answer, _ in said).items()))
            print(f"{options.n} requests of {len(files) + 1} kinds in {seconds:.0f} s: {answers}; ", end="")
            print(f"{sum(busy for _, busy in said)} more were told to come back")
            print(f"bystander: {dict(bystander.answers)}, longest wait {bystander.longest:.1f} s")
            print(f"a good request afterwards: {good}; files left: {left}")
            print(f"memory of the service at most {peak_megabytes() - before:.0f} MB above before; ", end="")
            largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"largest process that reads: {largest:.0f} MB")
        finally:
            service.close()


if __name__ == "__main__":
    main()

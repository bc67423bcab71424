"""The download against a server that stalls, cuts, refuses and lies: every file right, or named."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from kits_cascade.data import download as room
from kits_cascade.data.download import IMAGES, Source, download_dataset, mask_table
from kits_cascade.data.transfer import Expected, Meter, Patience
from kits_cascade.errors import DatasetError, MissingExtraError, UsageError
from tests.data.http_server import FaultyServer

pytest.importorskip("huggingface_hub")

QUICK = Patience(stall_s=0.4, retries=3, pause_s=0.02)
NAMES = ("case_00000", "case_00001", "case_00400")


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def payload(seed, size=300_000):
    return gzip.compress(np.random.default_rng(seed).bytes(size), 1, mtime=0)


@pytest.fixture
def server(monkeypatch):
    server = FaultyServer()
    table = {}
    for seed, name in enumerate(NAMES):
        server.add_image(IMAGES, f"images/{name}.nii.gz", payload(seed))
        mask = payload(100 + seed, 5000)
        server.files[f"/masks/{name}/segmentation.nii.gz"] = mask
        table[name] = Expected(len(mask), git_sha1=git_sha1(mask))
    monkeypatch.setattr(room, "mask_table", lambda: table)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    yield server
    server.close()


def image(name):
    return f"/storage/images/{name}.nii.gz"


def head(name):
    return f"/datasets/{IMAGES}/resolve/main/images/{name}.nii.gz"


def mask(name):
    return f"/masks/{name}/segmentation.nii.gz"


def run(server, out, cases="0-1,400", **options):
    source = Source(endpoint=server.url, masks_url=f"{server.url}/masks")
    options = {"workers": 3, "patience": QUICK, **options}
    return download_dataset(out, cases=cases, source=source, **options)


def check_files(server, out, names=NAMES, without=()):
    for name in names:
        for kind, path in (("imaging", image(name)), ("segmentation", mask(name))):
            file = out / name / f"{kind}.nii.gz"
            if f"{name}/{kind}.nii.gz" not in without:
                assert file.read_bytes() == server.files[path], file
    assert not list(out.rglob("*.part")) or without


def test_all_goes_well(server, tmp_path):
    seen = []
    report = run(server, tmp_path / "Daten mit Ümläuten", changed=lambda meter: seen.append((meter.done, meter.total)))
    check_files(server, tmp_path / "Daten mit Ümläuten")
    assert len(report.fetched) == 6 and not report.kept and not report.failed and report.exit_code == 0
    size = sum(len(server.files[p(name)]) for name in NAMES for p in (image, mask))
    assert seen[-1] == (size, size) and report.bytes == size


def test_second_run_asks_for_nothing(server, tmp_path):
    run(server, tmp_path)
    before = len(server.requests)
    report = run(server, tmp_path)
    assert len(server.requests) == before
    assert len(report.kept) == 6 and not report.fetched


def test_only_what_is_missing_or_wrong_is_fetched(server, tmp_path):
    run(server, tmp_path)
    (tmp_path / NAMES[0] / "imaging.nii.gz").unlink()
    (tmp_path / NAMES[1] / "segmentation.nii.gz").write_bytes(b"somebody's mistake")
    (tmp_path / NAMES[2] / "imaging.nii.gz").touch()  # changed time, same content: checked, not fetched
    server.requests.clear()
    report = run(server, tmp_path)
    assert report.fetched == [f"{NAMES[0]}/imaging.nii.gz", f"{NAMES[1]}/segmentation.nii.gz"]
    gets = {path for command, path, _ in server.requests if command == "GET" and "resolve" not in path}
    assert gets == {image(NAMES[0]), mask(NAMES[1])}
    check_files(server, tmp_path)


def test_files_of_another_tool_are_checked_and_kept(server, tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "imaging.nii.gz").write_bytes(server.files[image(name)])
    report = run(server, tmp_path)
    assert len(report.kept) == 3 and all("segmentation" in name for name in report.fetched)


def test_verify_finds_silent_damage(server, tmp_path):
    run(server, tmp_path)
    file = tmp_path / NAMES[0] / "imaging.nii.gz"
    times = file.stat()
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not run(server, tmp_path).fetched  # same size and time
    assert run(server, tmp_path, verify=True).fetched == [f"{NAMES[0]}/imaging.nii.gz"]
    check_files(server, tmp_path)


PASSING = {
    "stalled body": ["stall"],
    "no answer": ["silence"],
    "cut": ["cut"],
    "reset": ["reset"],
    "busy": [429, 429],
    "server error": [500, 503],
    "corrupt once": ["corrupt"],
    "wrong page once": ["page"],
    "cut and no range": ["cut", "no-range"],
    "one after the other": ["cut", 429, 500, "stall", "reset", "cut", 503, "stall", "corrupt", "cut"],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_passing_faults_end_in_right_files(server, tmp_path, faults):
    for path in (image(NAMES[0]), mask(NAMES[1])):
        server.faults[f"GET {path}"] = list(faults)
    if not {"corrupt", "page", "no-range", "cut"} & set(faults):
        server.faults[f"HEAD {head(NAMES[2])}"] = [fault for fault in faults if fault != "stall"]
    report = run(server, tmp_path)
    assert not report.failed and report.exit_code == 0
    check_files(server, tmp_path)
    assert not any(queue for queue in server.faults.values())


LASTING = {
    "silence": "timed out",
    "reset": "",
    "corrupt": "checksum",
    "page": "published",
    429: "429",
    500: "500",
    404: "404",
}


@pytest.mark.parametrize("fault", LASTING, ids=str)
def test_lasting_faults_are_named(server, tmp_path, fault):
    for path in (image(NAMES[0]), mask(NAMES[1])):
        server.always[f"GET {path}"] = fault
    report = run(server, tmp_path, patience=Patience(stall_s=0.3, retries=1, pause_s=0.02))
    bad = [f"{NAMES[0]}/imaging.nii.gz", f"{NAMES[1]}/segmentation.nii.gz"]
    assert list(report.failed) == bad and report.exit_code == 1
    assert all(LASTING[fault] in reason for reason in report.failed.values()), report.failed
    check_files(server, tmp_path, without=bad)
    assert not any((tmp_path / name).exists() for name in bad)
    server.always.clear()
    assert run(server, tmp_path).fetched == bad
    check_files(server, tmp_path)


def test_a_cut_file_is_continued_where_it_broke_off(server, tmp_path):
    name, size = NAMES[0], len(server.files[image(NAMES[0])])
    server.faults[f"GET {image(name)}"] = ["cut"]
    report = run(server, tmp_path, cases="0", patience=Patience(stall_s=0.4, retries=0, pause_s=0))
    assert report.exit_code == 1
    server.requests.clear()
    run(server, tmp_path, cases="0")
    (ranged,) = [headers["range"] for _, path, headers in server.requests if path == image(name)]
    assert int(ranged.removeprefix("bytes=").removesuffix("-")) > size // 4
    check_files(server, tmp_path, NAMES[:1])


def test_cuts_are_no_failures_as_long_as_something_comes(server, tmp_path):
    server.faults[f"GET {image(NAMES[0])}"] = ["cut"] * 8
    report = run(server, tmp_path, cases="0", patience=Patience(stall_s=0.4, retries=1, pause_s=0.01))
    assert not report.failed
    check_files(server, tmp_path, NAMES[:1])


def test_cuts_that_bring_nothing_new_end(server, tmp_path):
    server.always[f"GET {image(NAMES[0])}"] = "cut from the start"
    report = run(server, tmp_path, cases="0")
    assert list(report.failed) == [f"{NAMES[0]}/imaging.nii.gz"]


def test_credentials_stay_with_the_hub(server, tmp_path):
    run(server, tmp_path)
    for _command, path, headers in server.requests:
        sent = "authorization" in {name.lower() for name in headers}
        assert sent == path.startswith("/datasets/"), path


def test_missing_image_is_named_at_once(server, tmp_path):
    del server.files[head(NAMES[0])]
    begin = time.monotonic()
    report = run(server, tmp_path, patience=Patience(stall_s=5, retries=9, pause_s=5))
    assert time.monotonic() - begin < 4
    assert report.failed == {f"{NAMES[0]}/imaging.nii.gz": "the server answered 404: there is no such file"}


def test_dead_host_is_given_up(server, tmp_path):
    url = server.url
    server.close()
    source = Source(endpoint=url, masks_url=f"{url}/masks")
    report = download_dataset(tmp_path, cases="0-1,400", source=source, workers=1, patience=QUICK)
    assert len(report.failed) == 6 and report.exit_code == 2
    assert sum(reason.startswith("not tried") for reason in report.failed.values()) == 4


def test_uncompressed(server, tmp_path):
    run(server, tmp_path)
    report = run(server, tmp_path, uncompressed=True)
    assert len(report.kept) == 6
    for name in NAMES:
        assert (tmp_path / name / "imaging.nii").read_bytes() == gzip.decompress(server.files[image(name)])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii")}
    before = len(server.requests)
    run(server, tmp_path, uncompressed=True)
    assert len(server.requests) == before
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii")} and len(times) == 6


def test_published_file_that_does_not_unpack_is_named(server, tmp_path):
    broken = server.files[image(NAMES[0])][:-100]
    server.add_image(IMAGES, f"images/{NAMES[0]}.nii.gz", broken)
    report = run(server, tmp_path, uncompressed=True)
    assert list(report.failed) == [f"{NAMES[0]}/imaging.nii.gz"]
    assert not (tmp_path / NAMES[0] / "imaging.nii").exists()


def test_two_downloads_into_one_folder(server, tmp_path):
    server.faults[f"GET {mask(NAMES[0])}"] = ["stall"]
    first = threading.Thread(target=run, args=(server, tmp_path))
    first.start()
    try:
        for _ in range(100):
            if server.requests:
                break
            time.sleep(0.02)
        with pytest.raises(UsageError, match="another download"):
            run(server, tmp_path)
    finally:
        first.join()
    check_files(server, tmp_path)


def test_full_disk_ends_the_whole(server, tmp_path, monkeypatch):
    from kits_cascade.data import transfer

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "_append", full)
    with pytest.raises(DatasetError, match="No space left"):
        run(server, tmp_path)


def test_wrong_names(tmp_path):
    with pytest.raises(UsageError, match="kits23, kits19"):
        download_dataset(tmp_path, dataset="kits20")
    with pytest.raises(UsageError, match="no case 300"):
        download_dataset(tmp_path, cases="300")


def test_kits19_has_210_cases(server, tmp_path):
    with pytest.raises(UsageError, match="0-209"):
        run(server, tmp_path, dataset="kits19", cases="400")
    assert run(server, tmp_path, dataset="kits19", cases="0-1").exit_code == 0


def test_missing_extra(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"kits-cascade\[download\]"):
        run(server, tmp_path)


def test_table_of_masks_is_whole():
    table = mask_table()
    assert len(table) == 489
    assert all(len(entry.git_sha1) == 40 and entry.size > 0 for entry in table.values())


def test_table_agrees_with_the_published_masks(kits23):
    table = mask_table()
    files = sorted((kits23 / "masks").glob("*/segmentation.nii.gz"))[:10]
    assert files
    for file in files:
        assert table[file.parent.name].mismatch(file) is None


def test_meter_estimates_the_unknown():
    meter = Meter(4)
    assert meter.total is None
    meter.add(expected=100, sized=1)
    meter.add(expected=300, sized=1)
    assert meter.total == 800


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_command_stopped_and_started_again(server, tmp_path, kits23, how):
    """The real command with real masks: stopped in the middle, then started again."""
    names = sorted(path.parent.name for path in (kits23 / "masks").glob("*/segmentation.nii.gz"))[:2]
    for seed, name in enumerate(names):
        server.add_image(IMAGES, f"images/{name}.nii.gz", payload(seed, 3_000_000))
        server.files[mask(name)] = (kits23 / "masks" / name / "segmentation.nii.gz").read_bytes()
    server.faults[f"GET {image(names[1])}"] = ["stall"]
    cases = ",".join(str(int(name[-5:])) for name in names)
    command = [sys.executable, "-c", "from kits_cascade.cli.app import main; main()", "download", "-o", str(tmp_path)]
    command += ["--cases", cases, "--masks-url", f"{server.url}/masks", "--timeout", "20"]
    environment = {**os.environ, "HF_ENDPOINT": server.url}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    part = tmp_path / names[1]
    for _ in range(600):
        if any(path.stat().st_size > 1_000_000 for path in part.glob(".*.part")) and server.count("GET", "nii.gz") >= 4:
            break
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=10)  # of the 20 seconds that the server is silent
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert list(part.glob(".*.part"))
    server.requests.clear()
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    ranges = [headers.get("range") for _, path, headers in server.requests if path == image(names[1])]
    assert ranges and ranges[0] and not ranges[0].startswith("bytes=0-")
    check_files(server, tmp_path, names)
    assert json.loads((tmp_path / "download.json").read_text())["files"].keys() == {
        f"{name}/{kind}.nii.gz" for name in names for kind in ("imaging", "segmentation")
    }

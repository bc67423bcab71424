"""Ten thousand scans: what the work around the networks costs, and whether it stands being killed.

    python -m tests.benchmarks.scale kills [--cases 10000] [--workers 4] [--kills 10]
    python -m tests.benchmarks.scale bookkeeping [--cases 10000]
    python -m tests.benchmarks.scale resume [--cases 10000]
    python -m tests.benchmarks.scale dask --models MODELS --images FOLDER
    python -m tests.benchmarks.scale metadata

An oracle on tiny volumes stands for the networks, but for `dask`. Everything is made below --work, and left there.
"""

import argparse
import heapq
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from kits_cascade.files import write_text
from kits_cascade.runs.claims import Claims
from kits_cascade.runs.events import Progress
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.pick import Picker
from kits_cascade.runs.records import CaseRecord
from kits_cascade.volumes.find import find_inputs
from tests.inference.handmade import write_models
from tests.inference.oracle import HU

REPOSITORY = Path(__file__).parent.parent.parent
VARIANTS = 50
BAR_MS, BAR_RATIO, BAR_RESUME_SECONDS = 20.0, 1.2, 10.0


def tiny_cases(folder, count):
    """So many scans of 16 x 16 x 12 voxels; every fiftieth is the same."""
    if folder.is_dir() and len(os.listdir(folder)) == count:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    variants = []
    for number in range(VARIANTS):
        labels = np.zeros((16, 16, 12), np.uint8)
        labels[1:6, 4:12, 2:10] = labels[10:15, 4:12, 2:10] = 1
        labels[2 : 4 + number % 2, 5 : 8 + number // 10, 3 : 5 + number // 2 % 5] = 2
        path = folder / "variant.nii.gz"
        nib.save(nib.Nifti1Image(HU[labels], np.diag([8.0, 8.0, 8.0, 1.0])), path)
        variants.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        (folder / f"scan {number:05d}_0000.nii.gz").write_bytes(variants[number % VARIANTS])
    return folder


def predict(work, source, out, *more, **variables):
    arguments = ["predict", "-i", str(source), "-o", str(out), "-q", *more]
    results = work / "nnUNet_results"
    if not results.is_dir():
        write_models(results)
    environment = os.environ | {"nnUNet_results": str(results), "PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "tests.inference.oracle", *arguments], cwd=REPOSITORY, env=environment
    )


def results_of(out):
    return {path.name: path.read_bytes() for path in out.glob("[!.]*.nii*")} | {
        "lesions.csv": (out / "lesions.csv").read_bytes()
    }


def strays(out):
    state = out / ".kits-cascade"
    return [p for p in out.rglob("*") if ".kc-tmp-" in p.name] + list((state / "claims").glob("*.json"))


def workers_of(out):
    pids = set()
    for path in (out / ".kits-cascade" / "claims").glob("[!.]*.json"):
        try:
            pids.add(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue
    return sorted(pids)


def kills(given):
    """Kill workers, and now and then the command itself, at random moments; compare with a run that nobody disturbs."""
    source = tiny_cases(given.work / f"in{given.cases}", given.cases)
    whole, out = given.work / "whole", given.work / "out"
    for folder in (whole, out):
        shutil.rmtree(folder, ignore_errors=True)
    begin = time.perf_counter()
    assert predict(given.work, source, whole).wait() == 0
    alone = time.perf_counter() - begin
    chance, killed, deaths = random.Random(given.seed), 0, []
    begin = time.perf_counter()
    process = predict(given.work, source, out, "--workers", str(given.workers))
    while killed < given.kills:
        time.sleep(chance.uniform(0.2, 2 * alone / given.workers / given.kills))
        victims = workers_of(out) if (out / ".kits-cascade").is_dir() else []
        if process.poll() is not None:
            break
        if not victims:
            continue
        victim = process.pid if chance.random() < 0.2 else chance.choice(victims)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
        deaths.append("command" if victim == process.pid else "worker")
        if victim == process.pid:
            process.wait()
            process = predict(given.work, source, out, "--workers", str(given.workers))
    code = process.wait()
    if code < 0:
        code = predict(given.work, source, out, "--workers", str(given.workers)).wait()
    took = time.perf_counter() - begin
    same = results_of(out) == results_of(whole)
    counts = json.loads((out / "run.json").read_text())["counts"]
    print(
        f"{killed} SIGKILLs ({', '.join(deaths)}); exit code {code}; {counts}; {took:.0f} s, undisturbed {alone:.0f} s"
    )
    print(f"byte-identical: {same}; stray files: {len(strays(out))}")
    sys.exit(not (same and code == 0 and counts == {"done": given.cases, "failed": 0} and not strays(out)))


def bookkeep(cases, out, count):
    """Everything about a case but the case: seconds and processor seconds for each, with the tables at the end."""
    manifest = RunManifest(out, options={"tta": True}, about={"total": count})
    claims = Claims(out)
    picker = Picker(manifest, claims, Progress())
    claims.ready()
    wall, processor = time.perf_counter(), time.process_time()
    idle = 0.0
    for case in picker.free(picker.start(cases[:count])):
        begin = time.process_time()
        result = out / case.result_name
        write_text(result, "a result")
        record = CaseRecord(case.name, "", input=str(case.path), seconds={"coarse": 1.0}, volumes_ml={"kidney": 300.0})
        idle += time.process_time() - begin
        claims.holds(case.name)
        manifest.done(record, result, case.path)
        claims.release(case.name)
    manifest.assemble()
    spent = time.perf_counter() - wall, time.process_time() - processor - idle
    claims.close()
    return tuple(seconds / count * 1000 for seconds in spent)


def bookkeeping(given):
    cases = find_inputs(tiny_cases(given.work / f"in{given.cases}", given.cases))
    print("| cases | ms a case | processor ms a case |\n|---|---|---|")
    found = {}
    for count in (100, given.cases):
        measured = []
        for _ in range(max(1, 1000 // count)):
            out = given.work / "bookkeeping"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            measured.append(bookkeep(cases, out, count))
        found[count] = [statistics.median(values) for values in zip(*measured, strict=True)]
        print(f"| {count} | {found[count][0]:.2f} | {found[count][1]:.2f} |", flush=True)
    ratio = found[given.cases][1] / found[100][1]
    print(f"processor time, {given.cases} cases against 100: {ratio:.2f} times")
    sys.exit(not (found[given.cases][0] <= BAR_MS and ratio <= BAR_RATIO))


def resume(given):
    source = tiny_cases(given.work / f"in{given.cases}", given.cases)
    out = given.work / "whole"
    assert predict(given.work, source, out).wait() == 0
    for more in ((), ("--workers", "2"), ("--verify",)):
        begin = time.perf_counter()
        assert predict(given.work, source, out, *more).wait() == 0
        took = time.perf_counter() - begin
        print(f"{given.cases} finished cases, {' '.join(more) or 'as by default'}: {took:.1f} s", flush=True)
        if not more and took > BAR_RESUME_SECONDS:
            sys.exit(1)


def dask(given):
    """Real networks: the same bytes as one process, although a worker is killed; how often networks were loaded."""
    models = ("-m", str(given.models), "--device", "cpu", "--fast")
    outs = [given.work / "one", given.work / "dask"]
    for folder in outs:
        shutil.rmtree(folder, ignore_errors=True)
    assert predict(given.work, given.images, outs[0], *models, ORACLE_REAL="1").wait() == 0
    loads = given.work / "loads"
    loads.unlink(missing_ok=True)
    process = predict(
        given.work, given.images, outs[1], *models, "--dask", "local:2", ORACLE_REAL="1", ORACLE_LOADS=str(loads)
    )
    while not list(outs[1].glob("[!.]*.nii*")) and process.poll() is None:
        time.sleep(0.1)
    victim = workers_of(outs[1])[0]
    os.kill(victim, signal.SIGKILL)
    code = process.wait()
    lines = loads.read_text().split("\n")[:-1]
    same = results_of(outs[0]) == results_of(outs[1])
    print(f"exit code {code}; byte-identical: {same}; networks were loaded {len(lines)} times (2 workers, 1 killed)")
    sys.exit(not (code == 0 and same and len(lines) == 3 and not strays(outs[1])))


def metadata(given):
    """Workers, and one shared folder that answers so many operations a second: how much of their time they wait."""
    print("| workers | seconds a scan | operations a second | scans an hour | lost to waiting |\n|---|---|---|---|---|")
    for seconds in (5.0, 50.0):
        for rate in (500.0, 5000.0):
            for workers in (10, 100, 1000, 3000):
                done, lost = simulate(workers, seconds, rate, given.operations)
                print(f"| {workers} | {seconds:g} | {rate:g} | {done:.0f} | {lost:.1%} |", flush=True)


def simulate(workers, seconds, rate, operations, hours=1.0):
    """Each worker computes, then has its operations done one after the other by the folder, which has a queue."""
    chance, free, done = random.Random(0), 0.0, 0
    ready = [(chance.uniform(0, seconds), worker) for worker in range(workers)]
    heapq.heapify(ready)
    end = hours * 3600
    while ready[0][0] < end:
        now, worker = heapq.heappop(ready)
        free = max(now, free) + operations / rate
        done += 1
        heapq.heappush(ready, (free + chance.uniform(0.5, 1.5) * seconds, worker))
    return done / hours, max(0.0, 1 - done * seconds / (workers * end))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "bookkeeping", "resume", "dask", "metadata"])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=float, default=40.0, help="on the folder, for each case")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/kits-cascade-scale"))
    given = parser.parse_args()
    {"kills": kills, "bookkeeping": bookkeeping, "resume": resume, "dask": dask, "metadata": metadata}[given.what](
        given
    )


if __name__ == "__main__":
    main()

import csv
import json
import os
import subprocess
import sys

import pytest

from kits_cascade.errors import FileFormatError
from kits_cascade.files import read_json, write_text
from kits_cascade.inference.measure import LesionRow
from kits_cascade.runs import manifest as manifest_module
from kits_cascade.runs import records as records_module
from kits_cascade.runs.manifest import RunManifest
from kits_cascade.runs.records import CaseRecord, Records

MODELS = [{"stage": "coarse", "sha256": {"plans.json": "0" * 64}}]
OPTIONS = {"tta": True, "postprocess": {"tumor_mm3": 95.4}}


def manifest(out, **changes):
    return RunManifest(out, **({"device": "cpu", "models": MODELS, "options": OPTIONS} | changes))


def lesion(kind="tumor", number=1):
    return LesionRow(kind, number, "left", 1.25, 14.5, 40.25, False, 1.0, 2.0, 3.0, 17, 800)


def finish(run, name, out, source=None, lesions=()):
    source = source or out.parent / "in" / f"{name}.nii.gz"
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        source.write_text(name, encoding="utf-8")
    output = out / f"{name}.nii.gz"
    write_text(output, f"labels of {name}")
    record = CaseRecord(name, "", input=str(source), seconds={"coarse": 1.23456}, volumes_ml={"kidney": 300.5})
    run.done(record, output, source, lesions)
    return source


def test_run_json_holds_all(tmp_path):
    out = tmp_path / "out"
    run = manifest(out, about={"part": "0/2"})
    finish(run, "Zoë 1", out, lesions=[lesion()])
    run.failed("bad", tmp_path / "in" / "bad.nii.gz", "truncated;\n copy it again")
    run.assemble()
    content = read_json(out / "run.json")
    assert content["schema"] == 1
    assert content["versions"]["nnunetv2"]
    assert (content["device"], content["models"], content["options"]) == ("cpu", MODELS, OPTIONS)
    assert content["part"] == "0/2"
    assert content["counts"] == {"done": 1, "failed": 1}
    case = content["cases"]["Zoë 1"]
    assert (case["status"], case["output"], case["seconds"]) == ("done", "Zoë 1.nii.gz", {"coarse": 1.235})
    assert case["volumes_ml"] == {"kidney": 300.5}
    assert case["lesions"][0]["diameter_mm"] == 14.5
    assert content["cases"]["bad"]["reason"] == "truncated; copy it again"
    assert [entry["run"] for entry in content["runs"]] == [case["run"]]


def test_lesions_csv_is_stable(tmp_path):
    tables = []
    for order in (("b", "a, c"), ("a, c", "b")):
        out = tmp_path / order[0] / "out"
        run = manifest(out)
        for name in order:
            finish(run, name, out, lesions=[lesion(), lesion("cyst")])
        run.failed("z", tmp_path / "z", "gone")
        run.assemble()
        tables.append((out / "lesions.csv").read_bytes())
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].decode().splitlines()))
    assert [(row["case"], row["kind"]) for row in rows] == [
        ("a, c", "tumor"),
        ("a, c", "cyst"),
        ("b", "tumor"),
        ("b", "cyst"),
    ]
    assert rows[0]["cut_by_border"] == "no"
    assert b"\r" not in tables[0]


def test_what_is_done_is_known(tmp_path):
    out = tmp_path / "out"
    source = finish(manifest(out), "a", out)
    assert manifest(out).is_done("a", source)
    assert not manifest(out).is_done("b", source)
    # Other options or models, another input, another result: to be done again.
    assert not manifest(out, options={"tta": False}).is_done("a", source)
    assert manifest(out, options={"tta": False}).made_otherwise() == ["a"]
    assert not manifest(out, models=[]).is_done("a", source)
    assert manifest(out, about={"part": "1/2"}).is_done("a", source)
    assert manifest(out, device="cpu:1").is_done("a", source)
    assert manifest(out, kind="cuda").made_otherwise() == ["a"]
    text = source.read_text()
    source.write_text("other scan")
    assert not manifest(out).is_done("a", source)
    source.write_text(text)
    finish(manifest(out), "a", out)
    (out / "a.nii.gz").write_text("half")
    assert not manifest(out).is_done("a", source)
    (out / "a.nii.gz").unlink()
    assert not manifest(out).is_done("a", source)


def test_a_failed_case_may_be_done_later_and_a_folder_is_a_source(tmp_path):
    out = tmp_path / "out"
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_text("1")
    run = manifest(out)
    run.failed("a", series, "a single slice")
    assert not run.is_done("a", series)
    (series / "2.dcm").write_text("2")
    finish(run, "a", out, series)
    assert run.is_done("a", series)
    run.assemble()
    assert read_json(out / "run.json")["counts"] == {"done": 1, "failed": 0}
    (series / "3.dcm").write_text("3")
    assert not run.is_done("a", series)


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "é" * 200, "CON.", "x" * 300, "a%2Fb", "a\\b:c*?"])
def test_any_name_gets_a_record_of_its_own(tmp_path, name):
    run = manifest(tmp_path / "out")
    run.failed(name, tmp_path / "x", "r")
    assert run.record(name).name == name
    path = run.records.path(name)
    assert path.parent == tmp_path / "out" / ".kits-cascade" / "cases"
    assert list(path.parent.iterdir()) == [path]
    assert path != run.records.path(name + "0")
    assert read_json(tmp_path / "out" / "run.json")["cases"][name]["reason"] == "r"


def test_a_damaged_record_is_named(tmp_path):
    out = tmp_path / "out"
    run = manifest(out)
    source = finish(run, "a", out)
    run.records.path("a").write_text("{")
    assert not manifest(out).is_done("a", source)
    with pytest.raises(FileFormatError, match="delete it"):
        manifest(out).assemble()


SCRIPT = """
import sys
from pathlib import Path
from kits_cascade.runs.manifest import RunManifest
out = Path(sys.argv[1])
run = RunManifest(out, device=sys.argv[2], models=[], options={})
sys.stdin.readline()
for index in range(25):
    run.failed(f"{sys.argv[2]} {index:02d}", out / "x", "r")
run.assemble()
"""


def test_several_processes_lose_nothing(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(out)]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in "abc"]
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    content = read_json(out / "run.json")
    assert sorted(content["cases"]) == sorted(f"{name} {index:02d}" for name in "abc" for index in range(25))
    assert len(content["runs"]) == 3
    assert not [path for path in out.rglob("*") if ".kc-tmp-" in path.name]


def write_records(out, count):
    """As many cases, finished without any work."""
    run = manifest(out)
    for number in range(count):
        finish(run, f"case {number:05d}", out, lesions=[lesion()])
    return run


def test_a_finished_case_does_not_write_all_others_anew(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_records(out, 20)
    texts = []
    monkeypatch.setattr(manifest_module, "write_text", lambda path, text: texts.append(path.name))
    run = write_records(out, 40)
    assert not texts  # run.json is younger than a minute
    monkeypatch.setattr(manifest_module, "PAUSE_SECONDS", 0.0)
    run._pause = 0.0
    finish(run, "one more", out)
    assert texts == ["run.json"]


def test_ten_thousand_records_are_left_alone_until_the_end(tmp_path, monkeypatch):
    out = tmp_path / "out"
    finish(manifest(out), "case 00000", out)
    records = Records(out)
    text = records.path("case 00000").read_text(encoding="utf-8")
    for number in range(1, 10_000):
        name = f"case {number:05d}"
        records.path(name).write_text(text.replace("case 00000", name), encoding="utf-8")
    read, content = [], records_module._content
    monkeypatch.setattr(records_module, "_content", lambda path: read.append(path) or content(path))
    run = manifest(out)
    finish(run, "one more", out)
    assert len(read) < 10
    run.assemble()
    assert read_json(out / "run.json")["counts"] == {"done": 10_001, "failed": 0}
    assert len(read) < 10_100, "each is read once"


def test_resuming_reads_no_result_unless_asked_to(tmp_path, monkeypatch):
    out = tmp_path / "out"
    write_records(out, 30)
    read = []
    monkeypatch.setattr(manifest_module, "sha256", lambda path: read.append(path) or "wrong")
    run, sources = manifest(out), sorted((tmp_path / "in").iterdir())
    assert len(sources) == 30
    assert all(run.is_done(source.name.removesuffix(".nii.gz"), source) for source in sources)
    assert not read
    assert not run.is_done("case 00000", sources[0], verify=True)
    assert len(read) == 1


def test_a_copied_folder_is_as_good(tmp_path):
    out = tmp_path / "out"
    source = finish(manifest(out), "a", out)
    result = out / "a.nii.gz"
    os.utime(result, (1, 1))
    assert manifest(out).is_done("a", source)
    result.write_text("Labels of a")  # as long as before
    assert not manifest(out).is_done("a", source)


def test_assembling_ends_although_others_go_on_writing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run = write_records(out, 3)
    other, number = manifest(out), iter(range(1000))
    original = Records.listing

    def busy(self):
        if self is run.records:
            other.failed(f"x {next(number)}", tmp_path / "x", "r")
        return original(self)

    monkeypatch.setattr(Records, "listing", busy)
    run.assemble()
    assert next(number) < 50


def test_two_assemble_at_once_and_the_last_one_has_all(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run, other = write_records(out, 3), manifest(out)
    original = manifest_module.write_text

    def while_the_other_assembles(path, text):
        monkeypatch.setattr(manifest_module, "write_text", original)
        finish(other, "later", out)
        other.assemble()
        original(path, text)

    monkeypatch.setattr(manifest_module, "write_text", while_the_other_assembles)
    run.assemble()
    assert "later" in read_json(out / "run.json")["cases"]


def test_a_record_of_another_version_keeps_what_we_do_not_know(tmp_path):
    out = tmp_path / "out"
    run = manifest(out)
    source = finish(run, "a", out)
    path = run.records.path("a")
    path.write_text(json.dumps(read_json(path) | {"reviewed": {"by": "a reader"}}), encoding="utf-8")
    record = run.records.get("a")
    assert record.more == {"reviewed": {"by": "a reader"}}
    run.records.put(record)
    run.assemble()
    assert read_json(out / "run.json")["cases"]["a"]["reviewed"] == {"by": "a reader"}
    assert manifest(out).is_done("a", source)

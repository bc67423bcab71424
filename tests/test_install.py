"""Regular and editable installs, outside the repository: commands, presets, and trainers that nnU-Net finds."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

FIND = (
    "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find;"
    "c = find('SurfaceLossTrainer'); print(c.__module__, c.__name__)"
)
VARIABLE = "nnUNet_extTrainer"


def run(*command, cwd, env=None, check=True):
    clean = {k: v for k, v in os.environ.items() if k not in {VARIABLE, "PYTHONPATH"}}
    result = subprocess.run(
        [str(c) for c in command],
        check=False,
        cwd=cwd,
        env=clean | (env or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def make_venv(folder):
    """A venv that sees the dependencies of this one, but not its kits_cascade."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = Path(
        run(folder / "bin/python", "-c", "import site; print(site.getsitepackages()[0])", cwd="/").stdout.strip()
    )
    outer = [sysconfig.get_path("purelib"), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    (packages / "dependencies.pth").write_text("\n".join(outer) + "\n")
    return folder, packages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", out, REPOSITORY, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module", params=["regular", "editable"])
def installed(request, wheel, tmp_path_factory):
    folder, packages = make_venv(tmp_path_factory.mktemp(request.param) / "venv")
    before = {p.name for p in packages.iterdir()}
    what = [wheel] if request.param == "regular" else ["--no-build-isolation", "-e", REPOSITORY]
    run(folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", *what, cwd=folder)
    return request.param, folder / "bin", packages, before


def test_wheel_holds_what_is_needed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "kits_cascade").rglob("*") if p.is_file()}
    package = {n for n in package if "__pycache__" not in n and "/startup/" not in n}  # those go to the top
    assert package <= names
    presets = {f"kits_cascade/plans/{p.name}" for p in (REPOSITORY / "plans").glob("*.json")}
    assert presets
    assert presets <= names
    assert {"kits_cascade_nnunet.pth", "_kits_cascade_startup.py"} <= names
    assert not [n for n in names if n.startswith(("tests/", "docs/"))]


def test_commands_run_from_elsewhere(installed, tmp_path):
    _, bin_, _, _ = installed
    assert "phantom" in run(bin_ / "kits-cascade", "--help", cwd=tmp_path).stdout
    run(bin_ / "kits-cascade", "phantom", "-o", "p", "-n", "1", "--in-plane-mm", "6", "--slice-mm", "8", cwd=tmp_path)
    assert (tmp_path / "p/case_00000/imaging.nii.gz").is_file()
    report = run(bin_ / "kits-cascade", "doctor", "--json", "--nnunet-dir", "nn", cwd=tmp_path, check=False)
    findings = {f["topic"]: f for f in json.loads(report.stdout)["findings"]}
    assert findings["trainers"]["status"] == "ok", findings["trainers"]
    assert findings["nnUNet_raw"]["status"] == "ok"


def test_presets_are_found(installed, tmp_path):
    _, bin_, _, _ = installed
    code = "from kits_cascade.data.presets import preset_folder as f; print(sorted(p.name for p in f().glob('*.json')))"
    names = run(bin_ / "python", "-c", code, cwd=tmp_path).stdout
    assert names.strip() == str(sorted(p.name for p in (REPOSITORY / "plans").glob("*.json")))


def test_nnunet_finds_the_trainer(installed, tmp_path):
    _, bin_, _, _ = installed
    found = run(bin_ / "python", "-c", FIND, cwd=tmp_path).stdout
    assert "kits_cascade.training.trainers SurfaceLossTrainer" in found  # not a second, top-level copy of the module


def test_the_users_own_folder_is_kept_and_comes_first(installed, tmp_path):
    _, bin_, _, _ = installed
    code = f"import os; print(os.environ[{VARIABLE!r}].split(os.pathsep))"
    entries = run(bin_ / "python", "-c", code, cwd=tmp_path, env={VARIABLE: "/theirs"}).stdout
    assert entries.startswith("['/theirs', ")
    assert entries.count("nnunet_plugin") == 1
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    assert run(bin_ / "python", "-c", nested, cwd=tmp_path).stdout.count("nnunet_plugin") == 1


def test_worker_processes_have_it(installed, tmp_path):
    _, bin_, _, _ = installed
    code = (
        "import multiprocessing as m, os\n"
        "def f(_): return 'nnunet_plugin' in os.environ['nnUNet_extTrainer']\n"
        "if __name__ == '__main__':\n"
        "    print([m.get_context(k).Pool(1).map(f, [0])[0] for k in ('spawn', 'fork')])\n"
    )
    (tmp_path / "w.py").write_text(code)
    assert run(bin_ / "python", "w.py", cwd=tmp_path).stdout.strip() == "[True, True]"


def test_with_an_editable_nnunet(installed, tmp_path):
    import nnunetv2

    _, bin_, packages, _ = installed
    source = tmp_path / "source"
    shutil.copytree(nnunetv2.__path__[0], source / "nnunetv2", ignore=shutil.ignore_patterns("__pycache__", "tests"))
    # What an editable install puts into site-packages: a path that comes before the regular copy.
    line = packages / "__editable__.nnunetv2.pth"
    line.write_text(f"import sys; sys.path.insert(0, {str(source)!r})\n")
    try:
        found = run(bin_ / "python", "-c", FIND + "; import nnunetv2; print(nnunetv2.__file__)", cwd=tmp_path).stdout
    finally:
        line.unlink()
    assert str(source) in found
    assert "kits_cascade.training.trainers SurfaceLossTrainer" in found


def test_start_up_costs_nothing_measurable(installed, tmp_path):
    _, bin_, packages, _ = installed
    code = (
        "import importlib.util as u, time, sys\n"
        f"spec = u.spec_from_file_location('startup', {str(packages / '_kits_cascade_startup.py')!r})\n"
        "module = u.module_from_spec(spec); before = set(sys.modules)\n"
        "spec.loader.exec_module(module)\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    assert run(bin_ / "python", "-c", code, cwd=tmp_path).stdout.strip() == "[]"  # imports nothing of its own


def test_uninstall_leaves_nothing(installed, tmp_path):
    _, bin_, packages, before = installed
    run(bin_ / "python", "-m", "pip", "uninstall", "-q", "-y", "kits-cascade", cwd=tmp_path)
    left = {p.name for p in packages.iterdir()} - before - {"__pycache__"}
    assert not left
    assert not list((packages / "__pycache__").glob("*kits_cascade*"))
    code = f"import os; print({VARIABLE!r} in os.environ)"
    assert run(bin_ / "python", "-c", code, cwd=tmp_path).stdout.strip() == "False"

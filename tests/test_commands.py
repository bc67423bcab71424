"""Every command has help and stands in the docs; help is quick because it imports nothing heavy."""

import subprocess
import sys

import pytest
import typer

from kits_cascade.cli.app import app
from tests.conftest import REPOSITORY


def commands(group, prefix=""):
    for name, command in typer.main.get_command(group).commands.items() if isinstance(group, typer.Typer) else group:
        if hasattr(command, "commands"):
            yield from commands(command.commands.items(), f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ALL = dict(commands(app))


def test_the_expected_commands_are_there():
    expected = (
        "doctor phantom demo download convert stats derive-stages plan train predict evaluate rank report submission"
    )
    assert set(expected.split()) | {"models export", "models import"} <= set(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_and_option_has_help(name):
    assert ALL[name].help
    for parameter in ALL[name].params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_stands_in_the_docs(name):
    assert f"`kits-cascade {name}`" in (REPOSITORY / "docs/commands.md").read_text(encoding="utf-8")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom kits_cascade.cli.app import app\n"
        "print(sorted({'torch', 'nnunetv2', 'scipy', 'SimpleITK', 'matplotlib', 'nibabel'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True, timeout=300
    )
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["convert", "derive-stages", "plan", "train"])
def test_missing_folder_variables_are_named(name, tmp_path):
    import os

    env = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    arguments = [str(tmp_path)] if name == "convert" else []
    command = [sys.executable, "-m", "kits_cascade", name, *arguments]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, timeout=600, env=env)
    assert out.returncode == 2
    assert "nnUNet_" in out.stderr
    assert "--nnunet-dir" in out.stderr
    assert "Traceback" not in out.stderr

"""The arrows between the rooms run down only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kits_cascade"
FLOORS = {"data": 1, "training": 2, "inference": 3, "evaluation": 4, "cli": 5}
# Ground floor: all modules directly in the package. nnunet_plugin re-exports the trainers; startup is copied out.
FREE = {"nnunet_plugin", "startup"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "kits_cascade" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_down(path):
    own = path.relative_to(PACKAGE).parts[0]
    if own in {*FREE, "__init__.py", "__main__.py"}:
        return
    floor = FLOORS.get(own, 0)
    for module in imports_of(path):
        room = room_of(module)
        assert room not in FREE or own == "cli", f"{path} imports {module}"
        other = FLOORS.get(room or "", 0)
        assert other <= floor, f"{path} is on floor {floor} and imports {module} from floor {other}"


def test_ground_floor_knows_neither_torch_nor_nnunet():
    for path in PACKAGE.glob("*.py"):
        names = {module.split(".")[0] for module in imports_of(path)}
        assert not names & {"torch", "nnunetv2"}, path


def test_losses_networks_and_augmentation_know_nothing_of_nnunet():
    for name in ("losses.py", "networks.py", "augment.py"):
        path = PACKAGE / "training" / name
        if path.exists():
            assert not {m for m in imports_of(path) if m.split(".")[0] == "nnunetv2"}, path


def test_no_print_in_the_library():
    for path in PACKAGE.rglob("*.py"):
        calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path

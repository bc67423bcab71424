"""The house: which room may import which, file by file, imports inside functions counted."""

import ast
import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kits_cascade"

# The rooms, from the roof down: a room imports from itself and from rooms on lower floors. Rooms on one floor know
# nothing of each other. A new room is a line here (and in docs/design.md).
FLOORS = (
    ("cli",),
    ("service",),
    ("recipes",),
    ("report",),
    ("runs",),
    ("inference",),
    ("training",),
    ("data", "models", "evaluation", "synthetic"),
    ("volumes",),
    ("ground",),  # the modules directly in the package: pure data and plumbing
)
# What others load and our rooms never do: the package's face, `python -m`, the plugin's re-exports, the start-up line.
OUTSIDE = ("__init__.py", "__main__.py", "nnunet_plugin", "startup")
# The files that may name nnU-Net's own modules (a folder ends with a slash).
KNOWS_NNUNET = ("training/", "inference/nnunet/", "data/plans.py", "data/lean.py", "cli/doctor.py", "nnunet_plugin/")
# Plain torch, so that they can be used and tested without nnU-Net, although their room knows it.
KNOWS_NO_NNUNET = ("training/losses.py", "training/augment.py", "training/networks/")
LARGEST_SHARE = 0.20

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_names(path):
    """Every dotted name that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(path):
    """Modules of the package that a file imports: of ``from a.b import c`` a.b.c where it is a module, else a.b."""
    for name in imported_names(path):
        parts = name.split(".")
        known = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        yield from itertools.islice((module for module in known if module in FILES), 1)


def room_of(module):
    inside = FILES[module].relative_to(PACKAGE).parts
    return "outside" if inside[0] in OUTSIDE else inside[0] if len(inside) > 1 else "ground"


GRAPH = {module: set(imported_files(path)) - {module} for module, path in FILES.items()}


def is_among(path, entries):
    inside = path.relative_to(PACKAGE).as_posix()
    return any(inside.startswith(entry) if entry.endswith("/") else inside == entry for entry in entries)


def test_every_room_has_a_floor():
    assert {room_of(module) for module in FILES} - {"outside"} <= set(FLOOR_OF)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_down(module):
    own = room_of(module)
    if own == "outside":
        return
    for other in GRAPH[module]:
        there = room_of(other)
        assert there != "outside", f"{module} imports {other}, which is for those outside"
        assert there == own or FLOOR_OF[there] > FLOOR_OF[own], f"{module} imports {other} from {there}: up, or across"


def test_no_circle():
    left = {module: set(others) for module, others in GRAPH.items()}
    while True:
        free = {module for module, others in left.items() if not others & set(left)}
        if not free:
            break
        left = {module: others for module, others in left.items() if module not in free}
    assert not left, f"import each other, or what does: {', '.join(sorted(left))}"


def test_no_two_modules_of_one_name():
    stems = Counter(path.stem for path in FILES.values() if path.stem != "__init__")
    assert not [stem for stem, count in stems.items() if count > 1]


def test_ground_floor_knows_neither_torch_nor_a_library_for_images():
    heavy = {"torch", "nnunetv2", "numpy", "scipy", "nibabel", "SimpleITK"}
    for module, path in FILES.items():
        if room_of(module) == "ground":
            assert not {name.split(".")[0] for name in imported_names(path)} & heavy, path


@pytest.mark.parametrize("module", sorted(FILES))
def test_nnunet_is_known_where_it_must_be(module):
    path = FILES[module]
    names = {name for name in imported_names(path) if name.split(".")[0] == "nnunetv2"}
    assert not names or is_among(path, KNOWS_NNUNET), f"{path} imports {', '.join(sorted(names))}"
    assert not names or not is_among(path, KNOWS_NO_NNUNET), path


def test_no_room_is_too_large():
    lines = Counter()
    for module, path in FILES.items():
        lines[room_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
    room, count = max(lines.items(), key=lambda item: item[1])
    share = count / sum(lines.values())
    assert share <= LARGEST_SHARE, f"{room} has {share:.1%} of all lines"


def test_no_print_in_the_library():
    for path in FILES.values():
        calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


def test_only_the_standard_library_and_what_is_declared_is_imported():
    declared = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8").casefold()
    by_module = {
        "PIL": "pillow",
        "cc3d": "connected-components-3d",
        "_kits_cascade_startup": "kits_cascade",
        "skimage": "scikit-image",
    }
    tops = {name.split(".")[0] for name in itertools.chain(*map(imported_names, FILES.values()))}
    for name in tops - set(sys.stdlib_module_names) - {"kits_cascade"}:
        assert by_module.get(name, name).casefold() in declared, f"{name} is imported, and is not in pyproject.toml"

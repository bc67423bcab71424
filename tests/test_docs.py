"""What the documentation names is there: commands, options, files, headings, and public names."""

import ast
import re
import shlex

import pytest

import kits_cascade
from tests.conftest import REPOSITORY
from tests.test_commands import ALL

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "plans" / "README.md"]
# Options of other programs that the pages speak of.
FOREIGN = {"--c", "--val", "--shm-size", "--editable", "--force-reinstall", "--gpus", "--network"}
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]


def blocks(text, *languages):
    """Fenced blocks in one of the languages (an empty one: without a name)."""
    return [code for language, code in re.findall(r"```(\w*)\n(.*?)```", text, re.S) if language in languages]


def prose(text):
    return re.sub(r"```.*?```", "", text, flags=re.S)


def calls(text):
    """Every `kits-cascade ...` in blocks and in the text, as words."""
    joined = "\n".join(blocks(text, "", "bash")).replace("\\\n", " ")
    for line in [*joined.splitlines(), *re.findall(r"`(kits-cascade [^`]*)`", prose(text))]:
        found = re.search(r"(?:^|[\s$(])kits-cascade +([a-z][^#|;&)]*)", line)
        if found:
            yield found.group(1).strip()


def options_of(name):
    return {option for parameter in ALL[name].params for option in (*parameter.opts, *parameter.secondary_opts)}


def named(call):
    """The command that a call names, and its options."""
    words = [word.strip("[]().,:") for word in re.split(r"[\s=|]+", call)]
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in ALL), None)
    return name, [word for word in words if re.fullmatch(r"--?[a-z][a-z0-9-]*", word)]


@pytest.mark.parametrize("page", NAMES)
def test_commands_and_their_options_exist(page):
    for call in calls((REPOSITORY / page).read_text(encoding="utf-8")):
        name, options = named(call)
        assert name is not None, f"{page}: kits-cascade {call}"
        unknown = [option for option in options if option not in options_of(name)]
        assert not unknown, f"{page}: {name} has no {', '.join(unknown)} ({call})"


@pytest.mark.parametrize("page", [name for name in NAMES if "benchmarks" not in name])
def test_options_in_the_text_exist(page):
    known = set().union(*map(options_of, ALL)) | FOREIGN | {"--version", "--help"}
    for code in re.findall(r"`([^`]*)`", prose((REPOSITORY / page).read_text(encoding="utf-8"))):
        if re.match(r"(python|docker|pip|nnUNet|hf|git|make|dcmqi) ?", code):
            continue
        unknown = [word for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code) if word not in known]
        assert not unknown, f"{page}: `{code}`"


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page):
    path = REPOSITORY / page
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}"


@pytest.mark.parametrize("page", NAMES)
def test_files_in_the_text_exist(page):
    for code in re.findall(
        r"`([\w/]+/[\w/]+\.(?:py|json|md))`", prose((REPOSITORY / page).read_text(encoding="utf-8"))
    ):
        if code.split("/")[0] in {"kits_cascade", "tests", "docs", "plans", "dataset_conversion"}:
            assert (REPOSITORY / code).exists() or "NAME" in code, f"{page}: {code}"


@pytest.mark.parametrize("page", NAMES)
def test_python_in_the_docs_uses_public_names(page):
    for code in blocks((REPOSITORY / page).read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kits_cascade"):
                assert node.module == "kits_cascade", f"{page}: {node.module}"
                assert {alias.name for alias in node.names} <= set(kits_cascade.__all__)


def test_shell_in_the_docs_can_be_read():
    for page in PAGES:
        for code in blocks(page.read_text(encoding="utf-8"), "bash"):
            shlex.split(code, comments=True)

"""The shape of the house: the floors that CONTRIBUTING lists, and commands that stay light."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import prefix_rft

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/prefix_rft"
LIST = re.findall(r"^(\d) ([a-z, ]+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
FLOOR = {room.strip(): int(number) for number, rooms in LIST for room in rooms.split(",")}
PUBLIC = prefix_rft.__all__
FILES = sorted(SOURCE.rglob("*.py"))
ENTRANCES = [SOURCE / "__init__.py", SOURCE / "__main__.py"]
"""They stand in no room: what a user imports and runs."""


def module(path: Path, root: Path = SOURCE) -> str:
    """The dotted name of a file below the package's own."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module and every name in one that is imported from us, below the package's own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        yield from (n.removeprefix("prefix_rft.") for n in names if n.startswith("prefix_rft."))


def refused(room: str, names: Iterable[str]) -> list[str]:
    """The rooms that a file of ``room`` may not import: not below it, or on no floor at all."""
    others = {name.partition(".")[0] for name in names} - {room, *PUBLIC}
    return sorted(o for o in others if FLOOR.get(o, 99) >= FLOOR[room])


def edges(folder: Path) -> dict[str, set[str]]:
    """For each file of a folder and its subfolders, the files of the same folder it imports."""
    files = {f"{folder.name}.{module(p, folder)}": p for p in folder.rglob("*.py")}
    prefix = module(folder.parent) if folder.parent != SOURCE else ""
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        names = [n.removeprefix(f"{prefix}.") if prefix else n for n in imported(parsed(path))]
        # A name in a module, or a module in a package: the longest that is a file.
        targets = {n if n in files else n.rpartition(".")[0] for n in names}
        found[name] = {t for t in targets if t in files and t != name}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The files of a circle; empty where there is none."""
    left = {name: set(others) for name, others in graph.items()}
    while ground := [name for name, others in left.items() if not others]:
        for name in ground:
            del left[name]
        for others in left.values():
            others.difference_update(ground)
    return sorted(left)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_room_has_a_floor() -> None:
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms | {"benchmarks"} == FLOOR.keys()
    assert sorted(set(FLOOR.values())) == list(range(1, 9))
    assert set(SOURCE.glob("*.py")) == set(ENTRANCES)


@pytest.mark.parametrize("path", [p for p in FILES if p not in ENTRANCES], ids=module)
def test_imports_go_downward(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    assert refused(room, imported(parsed(path))) == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("core", "from prefix_rft.methods import load"),
        ("data", "import prefix_rft.rewards.pool"),
        ("report", "from prefix_rft import show"),
        ("engines", "if TYPE_CHECKING:\n    from prefix_rft.training.run import run"),
        ("runs", "def f():\n    from prefix_rft.core import Method"),
        ("checks", "from prefix_rft.nowhere import x"),
    ],
)
def test_an_import_that_is_refused(room: str, code: str) -> None:
    assert refused(room, imported(ast.parse(code)))


FOLDERS = [p for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_no_circle_of_files(folder: Path) -> None:
    assert circle(edges(folder)) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == list("abcd")


def test_benchmarks_stand_below_the_command() -> None:
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert refused("benchmarks", imported(parsed(path))) == [], path


def test_core_is_torch_and_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"torch", "prefix_rft"}
    for path in (SOURCE / "core").glob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            assert all(m.split(".")[0] in allowed for m in modules), path


def test_only_the_task_knows_its_name() -> None:
    knowing = {module(p) for p in FILES if "countdown" in p.read_text().lower()}
    outside = {name for name in knowing if not name.startswith("tasks.")}
    assert outside == {"cli.task", "cli.parser", "rewards.registry"}


@pytest.mark.parametrize(
    "code",
    ["import prefix_rft", "from prefix_rft.cli import parser; parser.parser().format_help()"],
)
def test_light_things_stay_light(code: str) -> None:
    heavy = "[m for m in ('torch', 'transformers', 'trl', 'datasets', 'rich') if m in sys.modules]"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_no_file_is_too_long() -> None:
    lengths = {module(p): len(p.read_text().splitlines()) for p in FILES}
    assert {n: x for n, x in lengths.items() if x > 350} == {}
    assert all(x <= 130 for n, x in lengths.items() if n.startswith("methods."))


LISTS = {"cli.parser.parser"}
"""Functions that are one plain list."""


def test_no_function_is_too_long() -> None:
    found = {}
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.get_docstring(node, clean=False)  # they may be as long as they need
                said = 0 if words is None else words.count("\n") + 1
                length = (node.end_lineno or 0) - node.lineno + 1 - said
                if length > 70:
                    found[f"{module(path)}.{node.name}"] = length
    assert {n: x for n, x in found.items() if n not in LISTS} == {}

"""The shape of the house: imports go downward only, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/prefix_rft"

# Each package may import from itself and from the floors below it.
FLOORS = [
    {
        "checkpoints",
        "errors",
        "findings",
        "imports",
        "phases",
        "strict_yaml",
        "support",
        "untrusted",
        "writing",
    },
    {"core"},
    {"data", "rewards", "methods", "runs", "tasks"},
    {"adapters", "engines", "models"},
    {"estimates", "memory", "decided", "progress", "recipe", "run_folder", "run_reader", "tokens"},
    {"evaluate"},
    {"eval_sets", "scores"},
    {"eval_folder", "eval_run"},
    {"eval_view"},
    {"rif"},
    {"cluster", "configure", "packages", "resolved", "resuming"},
    {"agreement", "check", "check_grading", "check_texts"},
    {"check_view", "eval_command", "inspect", "methods_view", "preflight", "report", "show"},
    {"train"},
    {"compare"},
    {"commands"},
    {"cli"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> set[str]:
    """The packages of ours that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "prefix_rft":
                names = [f"prefix_rft.{a.name}" for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("prefix_rft.")}
    return {n for n in found if n in FLOOR}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_go_downward(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for other in imports(path) - {own}:
        # Tasks are data: nothing above the command that writes them may know one.
        assert FLOOR[other] <= FLOOR[own], f"{own} imports {other}"
        assert other != "tasks" or own == "commands"


def test_core_is_torch_and_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"torch", "prefix_rft"}
    for path in (SOURCE / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            assert all(m.split(".")[0] in allowed for m in modules), path


def test_only_the_task_knows_its_name() -> None:
    knowing = {
        str(p.relative_to(SOURCE))
        for p in SOURCE.rglob("*.py")
        if "countdown" in p.read_text().lower() and "tasks" not in p.parts
    }
    assert knowing == {"cli.py", "commands.py", "rewards/registry.py"}


@pytest.mark.parametrize(
    "code", ["import prefix_rft", "from prefix_rft import cli; cli.parser().format_help()"]
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
    lengths = {p.name: len(p.read_text().splitlines()) for p in SOURCE.rglob("*.py")}
    assert {n: x for n, x in lengths.items() if x > 400} == {}
    assert all(len(p.read_text().splitlines()) <= 130 for p in (SOURCE / "methods").glob("*.py"))

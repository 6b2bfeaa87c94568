"""The second computations know neither the package nor one another."""

import ast
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HALVES = ("objective", "step")


def imported(path: Path) -> set[str]:
    """The first two parts of every module that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{a.name}" for a in node.names]
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("half", HALVES)
def test_a_half_knows_itself_alone(half: str) -> None:
    (other,) = set(HALVES) - {half}
    files = list((HERE / half).glob("*.py"))
    assert len(files) > 3
    for path in files:
        names = imported(path)
        assert f"second.{other}" not in names, path
        assert not [n for n in names if n.split(".")[0] == "prefix_rft"], path


@pytest.mark.parametrize("name", ["update", "formulas", "verl_run"])
def test_a_step_is_of_torch_and_transformers_alone(name: str) -> None:
    """So it runs beside any engine, in its environment."""
    own = {"torch", "transformers", "second"}
    found = {n.split(".")[0] for n in imported(HERE / "step" / f"{name}.py")}
    assert found & own == found - sys.stdlib_module_names

"""The shape of the TRL engine: downward imports, and nobody below a trainer has one."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import transformers.trainer
import trl.trainer.grpo_trainer
import trl.trainer.sft_trainer

ENGINES = Path(__file__).parents[3] / "src/prefix_rft/engines"
FOLDER = ENGINES / "trl"
PACKAGE = "prefix_rft.engines.trl"

RULE = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
TOP_DOWN = re.search(r"```\n(trainer, .*?)```", RULE, re.DOTALL)
assert TOP_DOWN is not None
LAYERS = [{"__init__"}, *(set(line.split(", ")) for line in TOP_DOWN[1].splitlines())][::-1]
"""From the ground. A file imports from layers below its own, or from its own folder."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

TRAINERS = {"trainer.py", "rollouts.py", "imitation.py", "pair_trainer.py"}
"""What knows TRL from within."""
EXCEPT = {"safety/checkpointing.py", "safety/run_state.py"}
"""A mixin of the trainers, and what saves the part of their memory that TRL keeps to itself."""

FILES = {str(p.relative_to(FOLDER)): p for p in sorted(FOLDER.rglob("*.py"))}
BELOW = sorted(FILES.keys() - TRAINERS - EXCEPT - {"__init__.py"})


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules(path: Path) -> Iterator[str]:
    """The modules that a file imports, those for the type checker alone among them."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports by place"
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def file_of(module: str) -> str | None:
    """The file of this folder that a module is."""
    if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
        return None
    place = module[len(PACKAGE) + 1 :].replace(".", "/")
    places = (f"{place}.py", f"{place}/__init__.py" if place else "__init__.py")
    return next((p for p in places if p in FILES), None)


def imported(name: str) -> set[str]:
    return {f for m in modules(FILES[name]) if (f := file_of(m))} - {name}


def room(name: str) -> str:
    return Path(name).parts[0].removesuffix(".py")


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downward(name: str) -> None:
    own = room(name)
    for other in imported(name):
        there = room(other)
        assert there == own or LAYER[there] < LAYER[own], f"{name} imports {other}"


@pytest.mark.parametrize("name", BELOW)
def test_nobody_below_a_trainer_has_one(name: str) -> None:
    for node in ast.walk(tree(FILES[name])):
        named = getattr(node, "arg", None) or getattr(node, "id", None)
        named = named or getattr(node, "attr", None)
        words = f"{name}:{getattr(node, 'lineno', 0)}"
        assert named != "trainer", f"{words} has a trainer"
        assert not (isinstance(named, str) and named.endswith("Trainer")), words
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a quoted annotation
            assert not re.fullmatch(r"\w*Trainer", node.value), words
    assert not {m for m in modules(FILES[name]) if m.endswith("Trainer")}


@cache
def private_names() -> frozenset[str]:
    """What TRL's trainers and the one below them keep to themselves."""
    found: set[str] = set()
    for module in (trl.trainer.grpo_trainer, trl.trainer.sft_trainer, transformers.trainer):
        text = Path(str(module.__file__)).read_text()
        for pair in re.findall(r"\bself\.(_[a-z]\w*)|\bdef (_[a-z]\w*)\(self", text):
            found |= set(pair)
    return frozenset(found - {""})


@pytest.mark.parametrize("name", sorted(FILES.keys() - TRAINERS - EXCEPT))
def test_private_names_of_trl_stand_in_few_files(name: str) -> None:
    assert {"_step", "_buffered_inputs", "_metrics", "_tr_loss"} <= private_names()
    for node in ast.walk(tree(FILES[name])):
        used = getattr(node, "attr", None)
        if isinstance(node, ast.FunctionDef):  # a hook, in a mixin
            used = node.name
        if isinstance(node, ast.Constant):  # as getattr takes it
            used = node.value
        assert used not in private_names(), f"{name}:{getattr(node, 'lineno', 0)} uses {used}"


def test_engines_do_not_import_one_another() -> None:
    names = {p.parent.name for p in ENGINES.glob("*/from_recipe.py")}
    assert {"trl", "verl"} <= names
    for own in names:
        others = tuple(f"prefix_rft.engines.{name}" for name in names - {own})
        for path in (ENGINES / own).rglob("*.py"):
            found = [m for m in modules(path) if m.startswith(others)]
            assert not found, f"{path} imports {found}"

"""Nothing is documented that is not there, and nothing is kept that only a test would call."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/prefix_rft"
FILES = sorted(SOURCE.rglob("*.py"))
USERS = [p for d in ("src", "benchmarks", "examples", "docs") for p in (ROOT / d).rglob("*.*")]
NAMED_BY_TEXT = [*USERS, ROOT / "README.md", ROOT / "pyproject.toml"]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def documented(node: ast.ClassDef) -> list[str]:
    """The names under ``Attributes:`` of a docstring."""
    text = ast.get_docstring(node) or ""
    found = re.search(r"^Attributes:\n((?:(?: {4}.*)?\n?)*)", text, re.MULTILINE)
    return re.findall(r"^ {4}(\w+):", found[1], re.MULTILINE) if found else []


def attributes(node: ast.ClassDef) -> set[str]:
    """Fields, properties, and what methods set on ``self``."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, (ast.Name, ast.Attribute)):
            found.add(getattr(part.target, "id", getattr(part.target, "attr", "")))
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found.add(part.attr)
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(part.name)
        elif isinstance(part, ast.Assign):
            found |= {t.id for t in part.targets if isinstance(t, ast.Name)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_documented_attributes_are_there(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        # A class may document what it inherits: then nothing can be said from its text alone.
        if isinstance(node, ast.ClassDef) and not node.bases:
            assert [n for n in documented(node) if n not in attributes(node)] == [], node.name


FRAGMENT = re.compile(r"^ {4}(\w+): (?:of|whose|that|as|with|to|in|from|by|on|at) ", re.MULTILINE)
"""A description that needs the name in front to be read."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_what_is_documented_has_a_whole_phrase(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            assert FRAGMENT.findall(ast.get_docstring(node) or "") == [], node.name


def test_every_public_function_is_used_by_more_than_tests() -> None:
    words = [w for p in NAMED_BY_TEXT if p.suffix in (".py", ".md", ".toml", ".yaml", ".html")
             for w in set(re.findall(r"\w+", p.read_text()))]  # fmt: skip
    texts = {p: p.read_text() for p in FILES}
    for path in FILES:
        for node in ast.parse(texts[path]).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            inside = len(re.findall(rf"\b{node.name}\b", texts[path]))
            assert inside > 1 or words.count(node.name) > 1, f"{path}: {node.name}"

"""No run of ten lines stands twice in the package."""

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/prefix_rft"
LINES = 10


def code(text: str) -> list[tuple[int, str]]:
    """Numbers and words of the lines that are neither blank, comment, import nor docstring."""
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Import, ast.ImportFrom)) or (
            is_text and isinstance(node.value.value, str)  # pyright: ignore[reportAttributeAccessIssue]
        ):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return [(n, x) for n, x in lines if x and not x.startswith("#") and n not in left_out]


def twice(files: dict[str, str]) -> list[tuple[str, ...]]:
    """The places of runs of lines that stand more than once, by their first lines."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, text in files.items():
        lines = code(text)
        for at in range(len(lines) - LINES + 1):
            run = lines[at : at + LINES]
            places[tuple(words for _, words in run)].append(f"{name}:{run[0][0]}")
    return [tuple(found) for found in places.values() if len(found) > 1]


def test_no_run_of_lines_stands_twice() -> None:
    files = {p.relative_to(SOURCE).as_posix(): p.read_text() for p in SOURCE.rglob("*.py")}
    assert twice(files) == []


def test_a_copy_is_found_whatever_stands_between_its_lines() -> None:
    body = [f"x{i} = {i}" for i in range(LINES)]
    copy = 'def f():\n    """Other words."""\n'
    copy += "\n\n    # a comment\n".join(f"    {x}" for x in body)
    assert twice({"a": "\n".join(body), "b": copy}) == [("a:1", "b:3")]
    assert twice({"a": "\n".join(body), "b": copy.replace("x4", "y4")}) == []

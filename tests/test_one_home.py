"""What is one thing stands in one place: no literal of the library's is typed twice."""

import ast
import io
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from prefix_rft.core.stream import ORIGINS
from prefix_rft.methods import load
from prefix_rft.support.columns import OURS
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError

SOURCE = Path(__file__).parents[1] / "src/prefix_rft"


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Every node of every file, with the file's place in the package."""
    return [
        (path.relative_to(SOURCE).as_posix(), node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
    ]


def constants(node: ast.AST) -> list[object]:
    elements = getattr(node, "elts", getattr(node, "keys", []))
    return [e.value for e in elements if isinstance(e, ast.Constant)]


def values(node: ast.Dict) -> list[object]:
    return [v.value for v in node.values if isinstance(v, ast.Constant)]


def test_the_origins_are_listed_once() -> None:
    # Whatever names them all in a row, keys of a dictionary apart, which hold more than a list.
    kinds = (ast.Tuple, ast.List, ast.Set)
    places = [f for f, n in nodes() if isinstance(n, kinds) and set(constants(n)) >= set(ORIGINS)]
    assert places == ["core/stream.py"]


def test_what_our_columns_begin_with_is_written_once() -> None:
    places = [f for f, n in nodes() if isinstance(n, ast.Constant) and n.value == OURS]
    assert places == ["support/columns.py"]


def test_sentences_are_printed_in_one_place() -> None:
    """Printing is left to tables and drawn texts elsewhere; both are made with rich's own types."""

    def prints_words(node: ast.AST) -> bool:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            return False
        words = [a for a in node.args if isinstance(a, (ast.Constant, ast.JoinedStr))]
        plain = any(k.arg in ("markup", "highlight") for k in node.keywords)
        return node.func.attr == "print" and bool(plain or words)

    assert {f for f, n in nodes() if prints_words(n)} == {"support/console.py"}


def calls(node: ast.AST, name: str) -> bool:
    function = getattr(node, "func", None)
    return name in (getattr(function, "id", None), getattr(function, "attr", None))


def test_functions_are_imported_by_path_in_one_place() -> None:
    assert {f for f, n in nodes() if calls(n, "import_module")} == {
        "engines/setup.py",  # the module of an engine, by its row in the table
        "support/imports.py",
    }
    # A call for its effect on where modules are looked for, its result thrown away.
    thrown = [f for f, n in nodes() if isinstance(n, ast.Expr) and calls(n.value, "load_function")]
    assert thrown == []


def test_the_numbers_of_an_evaluation_have_one_class() -> None:
    wanted = {"mean", "low", "high", "truncated"}
    classes = [
        (f, n.name)
        for f, n in nodes()
        if isinstance(n, ast.ClassDef)
        and wanted <= {getattr(x.target, "id", "") for x in n.body if isinstance(x, ast.AnnAssign)}
    ]
    assert classes == [("runs/evaluations.py", "HeldOut")]


def test_what_a_grader_is_called_with_is_made_in_one_place() -> None:
    """Which columns it may see, and how a text is put as a message."""
    users = {
        f
        for f, n in nodes()
        if isinstance(n, ast.ImportFrom) and n.module == "prefix_rft.support.columns"
    }
    assert users == {"rewards/completions.py", "data/shapes.py"}  # shapes refuses such columns
    roles = [f for f, n in nodes() if isinstance(n, ast.Dict) and "assistant" in values(n)]
    assert [f for f in roles if f.startswith(("rewards", "engines", "evaluat"))] == [
        "rewards/completions.py"
    ]


def test_the_files_of_rollouts_are_named_and_averaged_in_one_place() -> None:
    named = {f for f, n in nodes() if isinstance(n, ast.Constant) and n.value in ("step_", "kept_")}
    assert named == {"runs/rollouts.py"}

    def takes_reward(element: str, room: str) -> bool:
        # A comparison has other rows, and verdicts have a reward, too.
        key = "['reward']" in element and room != "compare"
        return key or (element.endswith(".reward") and room in ("runs", "report", "show"))

    # Whatever takes the reward of several rollouts to average it.
    averaging = [
        f
        for f, n in nodes()
        if isinstance(n, (ast.ListComp, ast.GeneratorExp))
        and takes_reward(ast.unparse(n.elt), f.partition("/")[0])
    ]
    assert averaging == ["runs/rollouts.py"]


def test_a_word_names_one_class() -> None:
    """Whoever searches for a class finds it, and no other."""
    names = [(n.name, f) for f, n in nodes() if isinstance(n, ast.ClassDef)]
    places: dict[str, set[str]] = {}
    for name, file in names:
        places.setdefault(name.lstrip("_"), set()).add(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_a_rollout_is_read_and_its_prefix_marked_in_one_place() -> None:
    """Whoever takes a field of a line checks it, and whoever splits a text marks it."""
    fields = {"completion_ids", "prefix_length", "advantage"}
    readers = {
        f
        for f, n in nodes()
        if (isinstance(n, ast.Dict) and len(fields & set(constants(n))) > 1)
        or (
            isinstance(n, ast.Subscript)
            and isinstance(n.slice, ast.Constant)
            and n.slice.value == "prefix_length"
        )
    }
    assert readers == {"runs/rollouts.py"}
    assert {f for f, n in nodes() if calls(n, "split") and len(getattr(n, "args", ())) > 3} == {
        "runs/token_texts.py"
    }


def test_a_method_beside_a_recipe_is_loaded_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "beside_a_recipe.py").write_text(
        "from dataclasses import replace\nfrom prefix_rft.methods import load\n"
        "def mine(folder='a'): return replace(load('grpo'), name=folder)\n"
    )
    # An option may have any name, that of the argument included.
    assert load("beside_a_recipe:mine", tmp_path, folder="b").name == "b"
    with pytest.raises(UserError, match="method 'beside_nothing:mine' cannot be imported"):
        load("beside_nothing:mine", tmp_path)


def test_a_sentence_is_harmless_and_whole() -> None:
    page = io.StringIO()
    say(Console(file=page, width=20), "step [red]1[/]: \x1b[2J" + "long " * 8, style="yellow")
    assert page.getvalue() == "step [red]1[/]: ⟨ESC⟩[2J" + "long " * 8 + "\n"

"""The tests of a program: pairs of input and output, or statements, taken apart for two processes.

An assertion is not run beside the program, which could read it and change what it means. Its parts
that name the program (``f(3)`` in ``assert f(3) == 9``) are evaluated where the program is; their
values, as plain data, take the parts' place in what remains, which is judged elsewhere.
"""

from __future__ import annotations

import ast
import builtins
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VALUE = "value_of"
"""The function that stands for a part in what remains of an assertion: its argument is a step."""
PARTED = (
    *(ast.Call, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.IfExp),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict),
)
"""Expressions that are taken apart where some part of them is data, none of the program's."""
LOGICAL = (ast.Compare, ast.BoolOp, ast.Starred)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Pair:
    """What a script reads, and what it must print."""

    given: str
    expected: str


@dataclass(frozen=True)
class Check:
    """What remains of an assertion.

    Attributes:
        condition: an expression in which ``value_of(N)`` is the value of step N.
        values: these steps.
        expected: where the condition is ``value_of(N) == LITERAL``: that value, in a tuple of one.
    """

    condition: str
    values: tuple[int, ...]
    expected: tuple[Any, ...] = ()


@dataclass
class Statements:
    """Statements taken apart.

    Attributes:
        steps: for the program's process: ``exec`` and a statement, or ``eval`` and an expression.
        judged: for the judge, in order: statements that only it needs, and checks.
    """

    steps: list[tuple[str, str]] = field(default_factory=list)
    judged: list[str | Check] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """The checks among what is judged."""
        return [c for c in self.judged if isinstance(c, Check)]


def read_tests(tests: Any) -> list[Pair] | Statements:
    """The tests of a row.

    Args:
        tests: statements, as a text or a list of texts; ``{"input", "output"}`` of texts, or a list
            of these, or ``{"inputs", "outputs"}`` with two lists; JSON of any of these.

    Raises:
        ValueError: something else; says what.
    """
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError):
            raise ValueError("the tests look like JSON and are none") from None
    if isinstance(tests, Mapping):
        tests = _columns(tests)
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, (list, tuple)) or not tests:
        raise ValueError("there are no tests: give a list of statements, or of input and output")
    if all(isinstance(t, str) for t in tests):
        try:
            return _take_apart(tests)
        except RecursionError:
            raise ValueError("the tests are nested too deeply") from None
    return [_pair(t) for t in tests]


def _columns(tests: Mapping[str, Any]) -> list[Any]:
    """A mapping of lists as a list of mappings."""
    if set(tests) == {"input", "output"}:
        return [tests]
    columns = [tests.get("inputs"), tests.get("outputs")]
    lists = [c for c in columns if isinstance(c, (list, tuple))]
    if set(tests) != {"inputs", "outputs"} or len(lists) != 2 or len(lists[0]) != len(lists[1]):
        raise ValueError("the tests are neither input and output, nor as many inputs as outputs")
    return [{"input": i, "output": o} for i, o in zip(*lists, strict=True)]


def _pair(test: Any) -> Pair:
    if not isinstance(test, Mapping) or set(test) != {"input", "output"}:
        raise ValueError(f"a test is neither a statement nor input and output: {test!r:.80}")
    if not isinstance(test["input"], str) or not isinstance(test["output"], str):
        raise ValueError(f"the input and output of a test are texts, got {test!r:.80}")
    return Pair(test["input"], test["output"])


# ---- statements --------------------------------------------------------------------------------


def _take_apart(texts: Sequence[str]) -> Statements:
    try:
        body = [node for text in texts for node in ast.parse(text).body]
    except (SyntaxError, ValueError, MemoryError) as error:
        raise ValueError(f"the tests are no Python: {type(error).__name__}: {error}") from None
    for node in body:
        if not isinstance(node, ast.Assert) and any(
            isinstance(n, ast.Assert) for n in ast.walk(node)
        ):
            raise ValueError(
                f"line {node.lineno} of the tests asserts within another statement, where the "
                "program could change what that means: write assertions one by one"
            )
    if not any(isinstance(node, ast.Assert) for node in body):
        raise ValueError("the tests assert nothing")
    # What the program's parts name is of its process; that makes other names so, until none is new.
    kept = {name for node in body for name in _stored(node)}
    while True:
        plan, told = _plan(body, kept)
        if not told:
            break
        kept -= told
    for check in plan.checks:
        if not check.values:
            raise ValueError(f"the test '{check.condition:.80}' names nothing of the program")
    return plan


def _plan(body: Sequence[ast.stmt], kept: set[str]) -> tuple[Statements, set[str]]:
    """The statements taken apart, and those names that were to be kept back and cannot be.

    Args:
        body: the statements.
        kept: names that are given a value in the tests, and are the judge's alone.
    """
    plan, told = Statements(), set()
    known = set(dir(builtins)) | kept
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {(a.asname or a.name).partition(".")[0] for a in node.names}
            plan.steps.append(("exec", ast.unparse(node)))
            plan.judged.append(ast.unparse(node))
        elif isinstance(node, ast.Assert):
            parts = _Parts(known - _tested_builtin(node.test, known), kept, len(plan.steps))
            condition = parts.visit(copy.deepcopy(node.test))
            plan.steps += [("eval", ast.unparse(part)) for part in parts.found]
            told |= {name for part in parts.found for name in _names(part)} & kept
            places = tuple(range(parts.first, len(plan.steps)))
            check = Check(ast.unparse(condition), places, _literal(condition))
            plan.judged.append(check)
        elif (stored := _stored(node)) and stored <= kept and _names(node) <= known:
            plan.judged.append(ast.unparse(node))
        else:
            plan.steps.append(("exec", ast.unparse(node)))
            told |= (stored | _names(node)) & kept
    return plan, told


class _Parts(ast.NodeTransformer):
    """Puts ``value_of(N)`` in the place of the parts that name the program, and collects these."""

    def __init__(self, known: set[str], kept: set[str], first: int) -> None:
        self.known, self.kept, self.first = known, kept, first
        self.found: list[ast.expr] = []

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.expr):
            return self.generic_visit(node)
        if _names(node) <= self.known:
            return node
        if isinstance(node, COMPREHENSIONS) and self._apart(node):
            node.generators[0].iter = self.visit(node.generators[0].iter)
            return node
        if self._apart(node):
            return self.generic_visit(node)
        if self._decides(node):
            raise ValueError(
                f"'{ast.unparse(node):.80}' in the tests compares within one expression, where the "
                "program could change what that means: compare its value as a whole"
            )
        self.found.append(node)
        place = ast.Constant(self.first + len(self.found) - 1)
        return ast.Call(ast.Name(VALUE, ast.Load()), [place], [])

    def _apart(self, node: ast.expr) -> bool:
        """Whether the node is taken apart: a part of it is data, and none of the program's."""
        if isinstance(node, LOGICAL) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            return True
        if isinstance(node, COMPREHENSIONS):
            compares = any(isinstance(n, ast.Compare) for n in ast.walk(node))
            return self._only_iterates(node) and (compares or self._apart(node.generators[0].iter))
        parts = list(_expressions(node))
        if isinstance(node, ast.Call):
            if self._calls_program(node):
                return False
            root = node.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id not in self.kept:
                parts.remove(node.func)  # a function, and no data
        return isinstance(node, PARTED) and any(
            _names(part) <= self.known or self._apart(part) for part in parts
        )

    def _calls_program(self, node: ast.Call) -> bool:
        return not _names(node.func) <= self.known

    def _only_iterates(self, node: ast.expr) -> bool:
        """Whether all that a comprehension has of the program is what it runs over first."""
        copied = copy.deepcopy(node)
        copied.generators[0].iter = ast.Constant(None)  # pyright: ignore[reportAttributeAccessIssue]
        return _names(copied) <= self.known

    def _decides(self, node: ast.AST) -> bool:
        """Whether a comparison of the program's values is made in its own process.

        What is handed to its functions may compare.
        """
        if isinstance(node, ast.Call) and self._calls_program(node):
            return False
        if isinstance(node, ast.Compare) and not _names(node) <= self.known:
            return True
        return any(self._decides(child) for child in ast.iter_child_nodes(node))


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            yield child.value
        elif isinstance(child, ast.expr):
            yield child


def _names(node: ast.AST) -> set[str]:
    """Names that an expression or a statement reads and does not bind itself."""
    named = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    bound = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    bound |= {n.id for n in named if not isinstance(n.ctx, ast.Load)}
    return {n.id for n in named} - bound


def _stored(node: ast.AST) -> set[str]:
    """Names that are given a value where a statement stands, not in what it has within."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    if isinstance(node, (ast.Lambda, *COMPREHENSIONS)):
        return set()
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Load) else {node.id}
    return {name for child in ast.iter_child_nodes(node) for name in _stored(child)}


def _tested_builtin(test: ast.expr, known: set[str]) -> set[str]:
    """The built-in function that a program defines anew, where a test names nothing else of it."""
    if not _names(test) <= known:
        return set()
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return {node.func.id}
    return set()


def _literal(condition: ast.expr) -> tuple[Any, ...]:
    """What ``value_of(N)`` is compared with, if that is all of the condition and a literal."""
    if not isinstance(condition, ast.Compare) or not isinstance(condition.ops[0], ast.Eq):
        return ()
    sides = [condition.left, *condition.comparators]
    literals = [side for side in sides if not _is_value(side)]
    if len(sides) != 2 or len(literals) != 1:
        return ()
    try:
        return (ast.literal_eval(literals[0]),)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ()


def _is_value(node: ast.expr) -> bool:
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return called and node.func.id == VALUE  # pyright: ignore[reportAttributeAccessIssue]

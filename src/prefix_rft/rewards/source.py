"""What decides a reward function's verdicts, as a hash: its source, and what it imports beside it.

Of a module, its whole file counts, and those of the modules that it imports from its own package or
folder; of a function of the script itself, its own source and that of the functions that it calls.
Packages that are installed apart do not count, nor files that a reward reads.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

PLAIN = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, type(None))
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
INSTALLED = ("site-packages", "dist-packages")


def hash_of_source(function: Callable[..., Any]) -> str:
    """SHA-256 of all that is known to decide what a function returns."""
    digest = hashlib.sha256()
    for part in _parts(function, set()):
        digest.update(part + b"\0")
    return digest.hexdigest()


def decided_by(reward: Callable[..., Any]) -> Any:
    """All that is known to decide what a reward function says, as plain data.

    Args:
        reward: a function, or one that is graded in processes of its own.
    """
    known = getattr(reward, "decided_by", None)
    return hash_of_source(reward) if known is None else known


def _parts(function: Any, seen: set[int]) -> Iterator[bytes]:
    function = inspect.unwrap(function)
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, partial):
        yield _text((function.args, sorted(function.keywords.items())))
        yield from _parts(function.func, seen)
        return
    if inspect.ismethod(function):
        yield from _parts(function.__self__, seen)
        function = function.__func__
    named = function if isinstance(function, (FunctionType, type)) else type(function)
    yield named.__qualname__.encode()
    module = sys.modules.get(named.__module__)
    path = getattr(module, "__file__", None)
    if path is not None and named.__module__ != "__main__":
        for file in sorted(_files(Path(path).resolve(), named.__module__)):
            yield file.read_bytes()
    elif isinstance(named, FunctionType):
        yield from _own(named, seen)
    else:
        yield _source(named, named.__qualname__)
    if named is not function:  # an object: what it holds
        held = getattr(function, "__dict__", {})
        yield _text(sorted((k, v) for k, v in held.items() if isinstance(v, PLAIN)))
    if isinstance(function, FunctionType) and function.__closure__:
        for cell in function.__closure__:
            yield from _value(cell.cell_contents, seen)


def _own(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    """A function's own source, and what it names beside itself."""
    code = function.__code__
    yield _source(function, _steps(code))
    for name in _names(code):
        if name in function.__globals__:
            value = function.__globals__[name]
            if not isinstance(value, FunctionType) or value.__module__ == function.__module__:
                yield name.encode()
                yield from _value(value, seen)


def _names(code: CodeType) -> list[str]:
    inner = [n for c in code.co_consts if isinstance(c, CodeType) for n in _names(c)]
    return [*code.co_names, *inner]


def _steps(code: CodeType) -> str:
    """What a function of which there is no source does."""
    held = [_steps(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code, code.co_names, held))


def _value(value: Any, seen: set[int]) -> Iterator[bytes]:
    if isinstance(value, (FunctionType, partial)):
        yield from _parts(value, seen)
    elif isinstance(value, PLAIN):
        yield _text(value)


def _source(thing: Any, otherwise: str) -> bytes:
    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):  # written at a prompt
        return otherwise.encode()


def _text(value: Any) -> bytes:
    return ADDRESS.sub("", repr(_ordered(value))).encode()


def _ordered(value: Any) -> Any:
    """Sets as lists: their own order is another in each process."""
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [(_ordered(k), _ordered(v)) for k, v in value.items()]
    return [_ordered(v) for v in value] if isinstance(value, (list, tuple)) else value


def _files(start: Path, module: str) -> set[Path]:
    """A module's file, and those that it imports from its own package or folder."""
    depth = module.count(".") + (start.name == "__init__.py")
    root = start.parents[depth]
    top = module.partition(".")[0] if root.name in INSTALLED else None
    found, waiting = {start}, [start]
    while waiting:
        file = waiting.pop()
        for name in _imported(file, root):
            if top is not None and name.partition(".")[0] != top:
                continue
            beside = root.joinpath(*name.split("."))
            for path in (beside.with_suffix(".py"), beside / "__init__.py"):
                if path not in found and path.is_file():
                    found.add(path)
                    waiting.append(path)
    return found


def _imported(file: Path, root: Path) -> Iterator[str]:
    """The names of modules that a file may import; some are names within modules."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # no Python source
        return
    package = file.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{a.name}" if base else a.name for a in node.names)

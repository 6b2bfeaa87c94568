"""YAML that means what it looks like: one value for each key, no number or word in disguise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

from prefix_rft.support.errors import UserError

Keys = tuple[str, ...]
"""The keys that lead to a value, from the outermost one."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads ``1e-6`` as the number that everyone means by it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)

TAG = "tag:yaml.org,2002:"
WORDS = ("yes", "no", "on", "off")
MERGE = TAG + "merge"
DEEPEST = 64


def _never(keys: Keys) -> bool:
    return False


def load(
    text: str, what: str, words_at: Callable[[Keys], bool] = _never, keys: Keys = (), line: int = 1
) -> Any:
    """The value of a YAML text.

    Refused is what YAML 1.1 reads unlike it looks: one of two equal keys, ``1:30`` (90), ``010``
    (8), ``no`` (false), ``2026-01-01`` (a date). In quotes all of them are texts.

    Args:
        text: one document.
        what: it is, for messages.
        words_at: whether yes, no, on and off are plain words as the value at some keys.
        keys: the keys that lead to the text as a whole.
        line: 0 leaves lines out of messages.

    Raises:
        UserError: it is not valid YAML, or one of the above; the message says where and the fix.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _Checker(loader, what, words_at, bool(line)).at(node, keys, ())
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}," if mark and line else ""
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{what}{where} is not valid YAML: {why}") from error
    finally:
        loader.dispose()


class _Checker:
    """Looks at the nodes of a document before values are made of them."""

    def __init__(
        self, loader: _Loader, what: str, words_at: Callable[[Keys], bool], lines: bool
    ) -> None:
        self.loader, self.what, self.words_at, self.lines = loader, what, words_at, lines

    def at(self, node: Any, keys: Keys, above: tuple[int, ...]) -> None:
        """Look at a value; ``above`` are the nodes that it is in."""
        if id(node) in above:
            self.refuse(node, "an alias must not stand inside what it means")
        if len(above) > DEEPEST:
            self.refuse(node, f"values are nested deeper than {DEEPEST}")
        above = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            self.scalar(node, keys)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.at(item, keys, above)
        else:
            self.mapping(node, keys, above)

    def mapping(self, node: Any, keys: Keys, above: tuple[int, ...]) -> None:
        """Look at keys and values."""
        lines: dict[Any, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.refuse(key, "a key must be a text")
            name = "<<"
            if key.tag != MERGE:
                self.scalar(key, ())
                name = self.loader.construct_object(key)
            if name in lines:
                first = f" (first in line {lines[name]})" if self.lines else ""
                self.refuse(key, f"the key '{key.value}' stands there twice{first}: leave one")
            lines[name] = key.start_mark.line + 1
            self.at(value, (*keys, *str(name).split(".")), above)

    def scalar(self, node: Any, keys: Keys) -> None:
        """Look at a word or a number."""
        if node.style is not None or not node.tag.startswith(TAG):
            return
        text, kind = node.value, node.tag.removeprefix(TAG)
        quoted = f'"{text}" in quotes'
        if kind == "bool" and text.lower() in WORDS:
            if self.words_at(keys):
                node.tag = TAG + "str"
                return
            means = "true" if text.lower() in ("yes", "on") else "false"
            self.refuse(node, f"YAML reads {text} as {means}: write {means}, or {quoted}")
        if kind == "timestamp":
            self.refuse(node, f"YAML reads {text} as a date: write {quoted}")
        if kind not in ("int", "float"):
            return
        digits = text.lstrip("+-")
        number = self.loader.construct_object(node)
        if ":" in digits:
            why = f"YAML reads {text} as {number}, in sixties"
            self.refuse(node, f"{why}: write the number, or {quoted}")
        if kind == "int" and re.match("0[0-9_]", digits):
            why = f"YAML reads {text} as {number}, in octal"
            self.refuse(node, f"{why}: write it without the leading 0, or {quoted}")
        if kind == "float" and not math.isfinite(number) and digits[1:2].isdigit():
            self.refuse(node, f"{text} is too large for a number: write {quoted} if it is a name")

    def refuse(self, node: Any, why: str) -> None:
        """Raise UserError."""
        where = f", line {node.start_mark.line + 1}" if self.lines else ""
        raise UserError(f"{self.what}{where}: {why}")

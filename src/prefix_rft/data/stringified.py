"""Texts that spell a list out, as a table without lists (CSV, a spreadsheet) holds it."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

MESSAGES, TEXTS, VALUES = "a list of messages", "a list of texts", "a list"

KEYS = re.compile(r"""['"](role|content|from|value)['"]\s*:""")
PAIRS = ({"role", "content"}, {"from", "value"})


def stringified(value: Any) -> str | None:
    """What a text is the text of, as JSON or Python writes it; None if it is just a text.

    A message alone counts as messages, and so does what numpy prints of an array of them.
    """
    if not isinstance(value, str):
        return None
    text = value.strip()
    if not (text.startswith(("[", "{", "array([")) and text.endswith(("]", "}", ")"))):
        return None
    parsed = _parsed(text)
    if _are_messages(parsed):
        return MESSAGES
    if parsed is None:
        printed = text.startswith(("[{", "array([{"))
        keys = set(KEYS.findall(text)) if printed else set()
        return MESSAGES if any(pair <= keys for pair in PAIRS) else None
    if not isinstance(parsed, list) or not parsed:
        return None
    return TEXTS if all(isinstance(x, str) for x in parsed) else VALUES


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
    return None


def _are_messages(value: Any) -> bool:
    if isinstance(value, dict):
        return any(pair <= value.keys() for pair in PAIRS)
    return isinstance(value, list) and bool(value) and all(map(_are_messages, value))

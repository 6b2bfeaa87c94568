"""A recipe's file as a mapping, with overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefix_rft.recipe.stages import STAGES
from prefix_rft.recipe.strict_yaml import Keys, load
from prefix_rft.support.errors import UserError

HAVE_NO = (
    *("save_strategy", "logging_strategy", "eval_strategy", "report_to"),
    "include_num_input_tokens_seen",
)
"""Keys of TRL's with a setting that is called ``no``, which YAML would read as false."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a recipe file with ``key=value`` overrides (dots reach into mappings).

    An override ``~key`` takes a key away, if it is there, so that its default holds.

    Raises:
        UserError: no such file, not YAML, not a mapping, or an override that is not ``key=value``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"recipe '{path}' does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"recipe '{path}' is not valid YAML: it is not UTF-8") from error
    data = load(text, f"recipe '{path}'", has_words)
    if not isinstance(data, dict):
        raise UserError(f"recipe '{path}' must be a mapping of keys to values")
    apply_overrides(data, overrides)
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change a recipe's mapping in place, as :func:`read_recipe` does.

    Args:
        data: the mapping.
        overrides: ``key=value`` and ``~key`` strings, in their order.

    Raises:
        UserError: an override that is neither, or goes into what is no mapping.
    """
    for text in overrides:
        if text.startswith("~"):
            _take_away(data, text[1:].split("."), text)
            continue
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise UserError(f"'{text}' is not of the form key=value")
        _assign(data, key.split("."), value_of(text), text)


def has_words(keys: Keys) -> bool:
    """Whether ``no`` and ``off`` are words that the setting at these keys has."""
    return keys[-1:] != () and (keys[-1] in HAVE_NO or "tripwires" in keys[:-1])


def value_of(override: str) -> Any:
    """The value of ``key=value``.

    Raises:
        UserError: it is not valid YAML, or YAML reads it unlike it looks.
    """
    key, _, text = override.partition("=")
    what = f"the value of '{override}'"
    return load(text, what, has_words, tuple(key.split(".")), line=0)


def _assign(data: Any, keys: list[str], value: Any, override: str) -> None:
    if keys[0] == STAGES and len(keys) > 1 and isinstance(data.get(STAGES), list):
        data, keys = _stage(data[STAGES], keys[1], override), keys[2:]
        if not keys:
            raise UserError(f"'{override}' must name a key of the stage")
    for number, key in enumerate(keys[:-1]):
        whole = ".".join(keys[number:])
        if whole in data:  # an engine's own keys may be written with their dots
            data[whole] = value
            return
        inner = data.get(key)
        if key == "method" and isinstance(inner, str):
            inner = data[key] = {"name": inner}
        if inner is None:
            inner = data[key] = {}
        if not isinstance(inner, dict):
            raise UserError(f"'{override}': '{key}' is not a mapping")
        data = inner
    data[keys[-1]] = value


def _take_away(data: Any, keys: list[str], override: str) -> None:
    if keys[0] == STAGES and len(keys) > 2 and isinstance(data.get(STAGES), list):
        data, keys = _stage(data[STAGES], keys[1], override), keys[2:]
    for number, key in enumerate(keys[:-1]):
        if (whole := ".".join(keys[number:])) in data:
            del data[whole]
            return
        if data.get(key) is None:
            return
        data = data[key]
        if not isinstance(data, dict):
            raise UserError(f"'{override}': '{key}' is not a mapping")
    data.pop(keys[-1], None)


def _stage(stages: list[Any], number: str, override: str) -> Any:
    """The stage that ``stages.NUMBER.key=value`` means."""
    if not number.isdigit() or not 1 <= int(number) <= len(stages):
        raise UserError(f"'{override}': stages are numbered from 1 to {len(stages)}")
    return stages[int(number) - 1]

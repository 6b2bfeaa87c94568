"""Which held-out problems are evaluated, with which grader."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefix_rft.core.teacher import Teacher
from prefix_rft.data import Reading, load_rows
from prefix_rft.evaluation.told import with_told
from prefix_rft.recipe.strict_yaml import load
from prefix_rft.support.errors import UserError, check_types, refuse_unknown

FORGET, RETAIN = "forget", "retain"
"""Names of sets of which a table has the accuracies of unlearning."""
NO_KEYS = ("folder", "told")
"""Fields of a set that are no key of it in a suite."""


@dataclass(frozen=True)
class EvalSet:
    """Held-out problems and their grader.

    Attributes:
        name: the set's name in tables and files.
        data: its rows, as a recipe's ``eval_data``.
        reward: its graders, as a recipe's ``reward``; the first one grades.
        columns: the names of its columns, as a recipe's.
        system_prompt: its system prompt, as a recipe's.
        max_completion_length: the longest completion in tokens; None takes that of the whole
            evaluation.
        limit: the first N problems only.
        folder: what paths are relative to.
        told: a teacher, whose prompts tell a model more than the rows ask; None for the rows' own.
    """

    name: str
    data: str | Mapping[str, Any]
    reward: Any
    columns: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None
    max_completion_length: int | None = None
    limit: int | None = None
    folder: Path = Path()
    told: Teacher | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise UserError(
                f"'{self.name}' cannot name a set of problems: give letters, digits, - and _"
            )

    @property
    def reading(self) -> Reading:
        """How its rows are read."""
        return Reading(self.columns, self.system_prompt)

    def settings(self) -> dict[str, Any]:
        """Everything that decides its samples and grades, as plain data."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NO_KEYS}
        if self.told is not None:
            own["told"] = {"column": self.told.column, "template": self.told.template}
        path = self.data if isinstance(self.data, str) else self.data.get("path")
        return {**own, "sha256": _digest(self.folder / str(path))}

    def rows(self) -> Dataset:
        """Its rows, with what a model is told of each where it is told more than they ask.

        Raises:
            DataError: a row that cannot be used.
            UserError: there is nothing to tell.
        """
        rows = load_rows(self.data, folder=self.folder, reading=self.reading, limit=self.limit)
        return rows if self.told is None else with_told(rows, self.told)


def _digest(path: Path) -> str | None:
    """A hash of a local file, or of the files in a local folder; None for what is elsewhere."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def named_set(text: str, **rest: Any) -> EvalSet:
    """The set behind ``PATH`` or ``NAME=PATH``, as a command line gives it."""
    name, equals, path = text.partition("=")
    if not equals:
        name, path = re.sub(r"[^\w.-]+", "-", Path(text).stem).strip("-.") or "data", text
    return EvalSet(name, path, **rest)


def distinct(sets: Sequence[EvalSet]) -> list[EvalSet]:
    """The sets, if their names differ.

    Raises:
        UserError: two have one name.
    """
    names = [s.name for s in sets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two sets of problems are named '{name}': give NAME=PATH")
    return list(sets)


def read_suite(path: str) -> list[EvalSet]:
    """The sets of a suite file: ``sets:``, a list of mappings with ``name``, ``data``, ``reward``.

    Raises:
        UserError: there is no such file, or it is no suite.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"suite '{path}' does not exist")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"suite '{path}' is not valid YAML: it is not UTF-8") from error
    data = load(text, f"suite '{path}'")
    entries = data.get("sets") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"suite '{path}' needs 'sets': a list of mappings with name, data, reward")
    refuse_unknown(f"key of suite '{path}'", data, ["sets"])
    kinds = {f.name: str(f.type) for f in fields(EvalSet) if f.name not in NO_KEYS}
    sets = []
    for number, entry in enumerate(entries, 1):
        what = f"key of set {number} in suite '{path}'"
        if not isinstance(entry, dict):
            raise UserError(f"set {number} in suite '{path}' must be a mapping, got {entry!r}")
        refuse_unknown(what, entry, kinds)
        check_types(what, entry, kinds)
        missing = [key for key in ("name", "data", "reward") if key not in entry]
        if missing:
            raise UserError(f"set {number} in suite '{path}' needs '{missing[0]}'")
        sets.append(EvalSet(**entry, folder=file.parent))
    return distinct(sets)

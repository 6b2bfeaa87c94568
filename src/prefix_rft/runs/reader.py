"""Read what a run has left behind: recipe, environment, metrics, rollouts, evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefix_rft.support.errors import UserError

Rollout = dict[str, Any]
"""One row as ``rollouts/step_N.jsonl`` holds it; see ``engines/rollouts.py``."""

POLICY, HYBRID, DEMONSTRATION = "on-policy", "hybrid", "demonstration"
"""Where a rollout's tokens are from, in words."""

GENERATION = re.compile(r"step_(\d+)\.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. Nothing is read before it is asked for.

    Raises:
        UserError: the folder does not exist or holds no run.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"run folder '{self.path}' does not exist")
        if not (self.path / "recipe.yaml").is_file():
            raise UserError(f"'{self.path}' is no run folder: it has no recipe.yaml")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def recipe(self) -> dict[str, Any]:
        """The resolved recipe.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / "recipe.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"'{path}' is not valid YAML") from error
        if not isinstance(data, dict):
            raise UserError(f"'{path}' must be a mapping")
        return data

    def environment(self) -> dict[str, Any]:
        """Versions, machine and git state; empty where none was written."""
        return self._json("environment.json") or {}

    def evaluations(self) -> dict[str, Any]:
        """``eval.json``: evaluations of ``base`` and ``trained``; empty where there are none."""
        return self._json("eval.json") or {}

    def _json(self, name: str) -> Any:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"'{path}' is damaged: it is no JSON") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a number that was not finite is None."""
        path = self.path / "metrics.jsonl"
        return list(read_lines(path)) if path.is_file() else []

    def generations(self) -> list[int]:
        """The steps at which rollouts were written, in order."""
        found = (GENERATION.fullmatch(p.name) for p in (self.path / "rollouts").glob("step_*"))
        # A copy by another name, like step_7.jsonl, is not read.
        return sorted(s for s in (int(m[1]) for m in found if m) if self._generation(s).is_file())

    def _generation(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.jsonl"

    def rollouts(self, step: int) -> list[Rollout]:
        """The rollouts that were written at a step, with ``kept`` where it is known.

        ``kept`` holds the places in ``completion_ids`` of the prefix tokens that the first update
        on the row has trained.

        Raises:
            UserError: a line is damaged; but what a row holds is not looked at.
        """
        rows = list(read_lines(self._generation(step)))
        path = self.path / "rollouts" / f"kept_{step:06d}.jsonl"
        if path.is_file():
            kept = {}
            for number, line in enumerate(read_lines(path), 1):
                key = identity(line)
                if key is None or not isinstance(line.get("kept"), list):
                    raise UserError(f"'{path}', line {number} is damaged: it names no kept tokens")
                kept[key] = line["kept"]
            for row in rows:
                if (key := identity(row)) in kept:
                    row["kept"] = kept[key]
        return rows


def identity(row: Rollout) -> tuple[int, int] | None:
    """Group and number, which name a row within its generation; None if it has none."""
    group, number = row.get("group"), row.get("row")
    return (group, number) if isinstance(group, int) and isinstance(number, int) else None


def origin(row: Mapping[str, Any]) -> str:
    """Where a row's tokens are from. Runs of older versions do not name whole demonstrations."""
    if row.get("demonstration"):
        return DEMONSTRATION
    return HYBRID if row["prefix_length"] else POLICY


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The mappings in a jsonl file.

    A last line that has no end yet is left out: the run is writing it, or was killed while it did.

    Raises:
        UserError: a line that is no JSON mapping.
    """
    # Only a newline ends a line: model output may hold any other separator that Unicode knows.
    # Bytes, since a line without an end may also end within a character.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"'{path}', line {number} is damaged: it is no JSON") from error
            if not isinstance(row, dict):
                raise UserError(f"'{path}', line {number} is damaged: it is no mapping")
            yield row


def flatten(data: Mapping[Any, Any], above: str = "") -> dict[str, str]:
    """Dotted keys and their values as JSON without quotes around a plain text."""
    flat: dict[str, str] = {}
    for key, value in data.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, str):
            flat[name] = value
        else:
            flat[name] = json.dumps(value, ensure_ascii=False, default=str)
    return flat

"""Read what a run has left behind: recipe, environment, metrics, rollouts, evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefix_rft.runs.evaluations import FILE as EVALUATIONS
from prefix_rft.runs.evaluations import HeldOut
from prefix_rft.runs.lines import read_lines
from prefix_rft.runs.numbers import DAMAGE, damage
from prefix_rft.runs.rollouts import ROLLOUTS, Rollout, generations, read_generation
from prefix_rft.support.errors import UserError


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

    def evaluations(self) -> dict[str, HeldOut]:
        """What ``eval.json`` holds of ``base``, ``trained`` and ``best``; empty without the file.

        Raises:
            UserError: it is damaged.
        """
        try:
            data = self._json(EVALUATIONS) or {}
            return {stage: HeldOut.read(numbers) for stage, numbers in data.items()}
        except DAMAGE as error:
            raise damaged(self.path / EVALUATIONS, error) from error

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
        return generations(self.path / ROLLOUTS)

    def rollouts(self, step: int) -> list[Rollout]:
        """The rollouts that were written at a step; see :func:`read_generation`."""
        return read_generation(self.path / ROLLOUTS, step)


def newest_run(runs: Path, name: str, command: str = "train") -> Path | None:
    """The newest run of a name: in ``name``, or in ``name-N`` with the highest number.

    Args:
        runs: the folder in which run folders are.
        name: the name that the run's recipe gives.
        command: the command that made it, which a recipe names unless it is ``train``.
    """
    folders = {}
    for path in runs.iterdir() if runs.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", path.name)
        if not (match and (path / "recipe.yaml").is_file()):
            continue
        # A recipe may be called what another one's second run is.
        recipe = RunFolder(path).recipe()
        if (recipe.get("name"), recipe.get("command", "train")) == (name, command):
            folders[int(match[1] or 1)] = path
    return folders[max(folders)] if folders else None


def damaged(path: Path, error: Exception) -> UserError:
    """The refusal of a file that holds something else than a run writes.

    Args:
        path: the file.
        error: what reading it has raised, one of ``DAMAGE``.
    """
    return UserError(f"'{path}' is damaged: it is not what a run writes ({damage(error)})")


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

"""Rollouts on disk, written and read: one jsonl file for each generation, by both engines.

Beside ``step_N.jsonl`` stands ``kept_N.jsonl``: which prefix tokens of its hybrid rows the first
update on them has trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefix_rft.runs.lines import read_lines
from prefix_rft.runs.numbers import finite
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text

ROLLOUTS = "rollouts"
"""The folder in a run's folder that holds them."""

Row = dict[str, Any]
"""A rollout as its line holds it, see :class:`Rollout`; older versions wrote less."""

POLICY, HYBRID, DEMONSTRATION = "on-policy", "hybrid", "demonstration"
"""Where a rollout's tokens are from, in words."""

WRITTEN = re.compile(r"(step|kept)_([0-9]{6,})\.jsonl")


@dataclass(frozen=True)
class Rollout:
    """What was sampled, from what, and its verdict.

    Attributes:
        step: steps of the trainer done before the first one on its rows.
        example: index in the dataset.
        group: number of its group in the generation.
        row: place in the group.
        prompt_ids: of the prompt.
        completion_ids: of the completion, prefix included.
        prefix_length: in tokens.
        demonstration: a whole demonstration; nothing was sampled.
        attempt: how often its group had been sampled before.
        prompt: as text, special tokens included.
        text: of the completion, likewise; graders see it without the tokens that end it.
        reward: None if it could not be graded.
        verdicts: of each grader, by its name.
        advantage: of the sampled tokens; None where a contrast gives it at the update.
        truncated: it ran into the length limit.
    """

    step: int
    example: int
    group: int
    row: int
    prompt_ids: list[int]
    completion_ids: list[int]
    prefix_length: int
    demonstration: bool
    attempt: int
    prompt: str
    text: str
    reward: float | None
    verdicts: Mapping[str, Mapping[str, Any]]
    advantage: float | None
    truncated: bool

    def line(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def generation_path(folder: Path, step: int) -> Path:
    """Where the rollouts that were made at a step stand."""
    return folder / f"step_{step:06d}.jsonl"


def kept_path(folder: Path, step: int) -> Path:
    """Where the kept prefix tokens of the rollouts that were made at a step stand."""
    return folder / f"kept_{step:06d}.jsonl"


def write_generation(folder: Path, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write ``step_N.jsonl`` in the folder, whole; one that is there already is replaced.

    Raises:
        UserError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(generation_path(folder, step), text)


def cut_rollouts(folder: Path, step: int, dry_run: bool = False) -> None:
    """Take away what a run has written of the optimizer steps from ``step`` on.

    Rollouts made before ``step`` stay, but later updates on them leave ``kept_N.jsonl``. Nothing is
    changed before all files have been read.

    Args:
        folder: of the rollouts.
        step: from which the run goes on.
        dry_run: only read, and see whether the files can be cut.

    Raises:
        UserError: a file is damaged.
    """
    gone, shorter = [], []
    for path in sorted(folder.glob("*.jsonl")):
        if not (name := WRITTEN.fullmatch(path.name)):
            continue
        if int(name[2]) >= step:
            gone.append(path)
        elif name[1] == "kept":
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run may have left half a line, of an update behind its last checkpoint.
            whole = [line for line in lines if line.endswith("\n")]
            try:
                before = [line for line in whole if json.loads(line)["step"] < step]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
            if len(before) < len(lines):
                shorter.append((path, "".join(before)))
    if dry_run:
        return
    for path in gone:
        path.unlink()
    for path, text in shorter:
        write_text(path, text)


def generations(folder: Path) -> list[int]:
    """The steps at which rollouts were written, in order."""
    names = (WRITTEN.fullmatch(path.name) for path in folder.glob("step_*"))
    steps = (int(name[2]) for name in names if name)
    # A copy by another name, like step_7.jsonl, is not read.
    return sorted(step for step in steps if generation_path(folder, step).is_file())


def read_generation(folder: Path, step: int) -> list[Row]:
    """The rollouts that were written at a step, with ``kept`` where it is known.

    ``kept`` holds the places in ``completion_ids`` of the prefix tokens that the first update on
    the row has trained.

    Raises:
        UserError: a line is damaged; but what a row holds is not looked at.
    """
    rows = list(read_lines(generation_path(folder, step)))
    path = kept_path(folder, step)
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


def identity(row: Row) -> tuple[int, int] | None:
    """Group and number, which name a row within its generation; None if it has none."""
    group, number = row.get("group"), row.get("row")
    return (group, number) if isinstance(group, int) and isinstance(number, int) else None


def origin(row: Mapping[str, Any]) -> str:
    """Where a row's tokens are from. Runs of older versions do not name whole demonstrations."""
    if row.get("demonstration"):
        return DEMONSTRATION
    return HYBRID if row["prefix_length"] else POLICY


def mean_reward(rows: Sequence[Mapping[str, Any]], kind: str) -> float | None:
    """Mean reward over the rows of a kind that could be graded; None where there is none.

    Args:
        rows: of one group, say.
        kind: ``on-policy``, ``hybrid`` or ``demonstration``.
    """
    rewards = [finite(row["reward"]) for row in rows if origin(row) == kind]
    graded = [r for r in rewards if r is not None]
    return sum(graded) / len(graded) if graded else None

"""Rollouts on disk, written and read: one jsonl file for each generation, by both engines.

Beside ``step_N.jsonl`` stands ``kept_N.jsonl``: which prefix tokens of its hybrid rows the first
update on them has trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefix_rft.runs.lines import read_lines
from prefix_rft.runs.numbers import DAMAGE, count, counts, damage, finite
from prefix_rft.support.errors import UserError
from prefix_rft.support.single_precision import LARGEST
from prefix_rft.support.writing import write_text

ROLLOUTS = "rollouts"
"""The folder in a run's folder that holds them."""

POLICY, HYBRID, DEMONSTRATION, GUIDED = "on-policy", "hybrid", "demonstration", "guided"
"""Where a rollout's tokens are from, in words."""

WRITTEN = re.compile(r"(step|kept)_([0-9]{6,})\.jsonl")


@dataclass(frozen=True)
class Rollout:
    """What was sampled, from what, and its verdict.

    Attributes:
        step: the trainer's steps before the first one on the rollouts of this generation.
        example: the index of its row in the dataset; None where an older version has written it.
        group: the number of its group in the generation.
        row: its place in the group.
        prompt_ids: the prompt's tokens.
        completion_ids: the completion's tokens, prefix included.
        prefix_length: the number of tokens of the prefix.
        hint_length: the number of tokens of a demonstration that its prompt holds.
        demonstration: whether it is a whole demonstration, of which nothing was sampled.
        attempt: how often its group had been sampled before.
        prompt: the prompt's text, special tokens included.
        text: the completion's text, likewise; graders see it without the tokens that end it.
        reward: its reward; None if it could not be graded.
        verdicts: each grader's verdict as plain data, by the grader's name.
        advantage: the advantage of its sampled tokens; None where a contrast gives it at the
            update.
        truncated: whether it ran into the length limit.
        images: the pictures in its prompt, by their places in the example's columns: ``image``, or
            ``images[0]``, ``images[1]``.
        guided: whether it was sampled from a teacher's prompt, which is not ``prompt``.
        kept: the places in ``completion_ids`` of the prefix tokens that the first update on it has
            trained; None where that is not recorded. It stands in a file of its own.
    """

    step: int
    example: int | None
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
    hint_length: int = 0
    images: Sequence[str] = ()
    guided: bool = False
    kept: frozenset[int] | None = None

    @classmethod
    def read(
        cls, line: Mapping[str, Any], step: int = 0, kept: frozenset[int] | None = None
    ) -> Rollout:
        """A rollout from its line, every field checked. Older versions have written fewer.

        Args:
            line: the mapping that the line holds.
            step: the step by which its file is named.
            kept: what the file beside it says on it.

        Raises:
            UserError: a field is missing or not what a run writes; the sentence's subject is the
                line, and is left out.
        """
        values = dict(OLDER)
        for name, read in FIELDS.items():
            if name not in line:
                if name not in OLDER:
                    raise UserError(f"it lacks '{name}'")
                continue
            try:
                values[name] = read(line[name])
            except (TypeError, OverflowError) as error:
                raise UserError(f"its '{name}' is not what a run writes: {error}") from error
        return cls(step=step, kept=kept, **values)

    def line(self) -> dict[str, Any]:
        """The rollout as plain data, without what stands in a file of its own."""
        line = asdict(self)
        del line["kept"]
        if not self.images:
            del line["images"]
        if not self.guided:
            del line["guided"]
        return line

    @property
    def origin(self) -> str:
        """Where its tokens are from, in one of the words above."""
        if self.demonstration:
            return DEMONSTRATION
        if self.guided:
            return GUIDED
        return HYBRID if self.prefix_length or self.hint_length else POLICY


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("not a list of texts")
    return [_text(one) for one in value]


def _number(value: Any) -> float | None:
    number = finite(value)
    if number is None and value is not None:
        raise TypeError("not finite")
    if number is not None and abs(number) > LARGEST:
        raise OverflowError("too large a number")
    return number


def _verdicts(value: Any) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise TypeError("not a mapping of graders to their verdicts")
    for verdict in value.values():
        if not all(isinstance(verdict.get(k, ""), str) for k in ("status", "detail")):
            raise TypeError("a verdict's words are no text")
        if "status" not in verdict:
            raise TypeError("a verdict has no status")
    return value


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "example": count,
    "group": count,
    "row": count,
    "prompt_ids": counts,
    "completion_ids": counts,
    "prefix_length": count,
    "demonstration": _flag,
    "attempt": count,
    "prompt": _text,
    "text": _text,
    "reward": _number,
    "verdicts": _verdicts,
    "advantage": _number,
    "truncated": _flag,
    "hint_length": count,
    "images": _texts,
    "guided": _flag,
}
"""What a line holds, and how each field is checked."""

OLDER: Mapping[str, Any] = {
    "example": None,
    "prompt_ids": [],
    "demonstration": False,
    "attempt": 0,
    "verdicts": {},
    "advantage": None,
    "truncated": False,
    "hint_length": 0,
    "images": [],
    "guided": False,
}
"""Fields that a line of an older version may lack, and what they are then."""


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
        folder: the folder of the rollouts.
        step: the step from which the run goes on.
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


def read_generation(folder: Path, step: int) -> list[Rollout]:
    """The rollouts that were written at a step, with ``kept`` where it is known.

    Raises:
        UserError: a line is damaged.
    """
    kept = _read_kept(kept_path(folder, step))
    path = generation_path(folder, step)
    rollouts = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            rollout = Rollout.read(line, step)
        except UserError as error:
            raise UserError(
                f"'{path}', line {number} is damaged: {error}; move the file away to read the "
                "others"
            ) from error
        rollouts.append(replace(rollout, kept=kept.get((rollout.group, rollout.row))))
    return rollouts


def _read_kept(path: Path) -> dict[tuple[int, int], frozenset[int]]:
    """The kept prefix tokens by group and row; none without the file."""
    kept = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else (), 1):
        try:
            kept[count(line["group"]), count(line["row"])] = frozenset(counts(line["kept"]))
        except DAMAGE as error:
            raise UserError(
                f"'{path}', line {number} is damaged: it names no kept tokens ({damage(error)})"
            ) from error
    return kept


def mean_reward(rollouts: Sequence[Rollout], origin: str) -> float | None:
    """The mean reward of the rollouts of an origin that could be graded; None without any.

    Args:
        rollouts: the rollouts of one group, say.
        origin: ``on-policy``, ``hybrid`` or ``demonstration``.
    """
    rewards = [r.reward for r in rollouts if r.origin == origin]
    graded = [r for r in rewards if r is not None]
    return sum(graded) / len(graded) if graded else None

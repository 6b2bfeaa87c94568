"""``train_data: {reasoning_gym: ...}``: which tasks, how many puzzles of each, from which seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefix_rft.data.worked import demonstration
from prefix_rft.support.errors import UserError, check_types
from prefix_rft.support.gym import NAME, puzzles_of, written

OWN = {"size": "int", "seed": "int"}
WEIGHT = "weight"


@dataclass(frozen=True)
class Task:
    """One task of a mixture.

    Attributes:
        name: reasoning-gym's name of it.
        count: how many puzzles.
        options: the task's own options.
    """

    name: str
    count: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Puzzles:
    """Puzzles of one or several tasks of reasoning-gym.

    Attributes:
        tasks: the tasks.
        seed: reasoning-gym's seed: puzzle i of a task is drawn from ``seed + i``.
    """

    tasks: tuple[Task, ...]
    seed: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Puzzles:
        """What a recipe's ``train_data`` or ``eval_data`` asks for.

        Args:
            data: ``reasoning_gym`` with a task's name, beside its options; or with a mapping of
                several names to options, ``weight`` among them. Beside it ``size`` (500 puzzles in
                all by default) and ``seed`` (0).

        Raises:
            UserError: the mapping says something else.
        """
        check_types(f"key of {NAME} data:", data, OWN)
        size, seed = data.get("size", 500), data.get("seed", 0)
        if size < 1:
            raise UserError(f"key of {NAME} data: 'size' must be at least 1, got {size}")
        asked = data[NAME]
        rest = {key: value for key, value in data.items() if key not in (NAME, *OWN)}
        if isinstance(asked, str):
            return cls((Task(asked, size, rest),), seed)
        if not isinstance(asked, Mapping) or not asked:
            raise UserError(
                f"key '{NAME}' is the name of a task, or a mapping of several to their options, "
                f"got {asked!r}"
            )
        if rest:
            key = next(iter(rest))
            raise UserError(f"'{key}' beside several tasks: give it under the task that it is for")
        options = {name: dict(value or {}) for name, value in asked.items()}
        weights = {name: own.pop(WEIGHT, 1) for name, own in options.items()}
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
                raise UserError(f"'{WEIGHT}' of {NAME} task '{name}' is a number above 0")
        counts = shares(list(weights.values()), size)
        tasks = (Task(name, n, options[name]) for name, n in zip(options, counts, strict=True))
        return cls(tuple(t for t in tasks if t.count), seed)

    @property
    def name(self) -> str:
        """What to call them in a sentence."""
        return f"{NAME} {', '.join(task.name for task in self.tasks)}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, mixed: ``question``, ``answer``, ``demonstration``, ``task``, ``puzzle``.

        Raises:
            UserError: a task or an option that does not exist, or the package is not installed.
        """
        streams = [puzzles_of(t.name, t.options, self.seed, t.count) for t in self.tasks]
        order = [i for i, task in enumerate(self.tasks) for _ in range(task.count)]
        random.Random(f"{NAME}:{self.seed}").shuffle(order)
        for i in order:
            task, puzzle = self.tasks[i], next(streams[i])
            worked = demonstration(task.name, puzzle)
            row = {
                "question": puzzle["question"],
                "demonstration": [] if worked is None else [worked],
                "task": task.name,
                "puzzle": written(task.name, task.options, puzzle),
            }
            if puzzle["answer"] is not None:  # some tasks have none, and grade what they are given
                row["answer"] = str(puzzle["answer"])
            yield row


def shares(weights: list[float], size: int) -> list[int]:
    """``size`` in whole parts as the weights have it; the rest goes to the largest remainders."""
    exact = [size * weight / sum(weights) for weight in weights]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: size - sum(counts)]:
        counts[i] += 1
    return counts


def refuse_overlap(train: Any, held_out: Any) -> None:
    """Raise UserError where two sources of puzzles are bound to have some of them in common.

    Args:
        train: a recipe's ``train_data``.
        held_out: its ``eval_data``.
    """
    if not all(isinstance(data, Mapping) and NAME in data for data in (train, held_out)):
        return
    one, other = Puzzles.of(train), Puzzles.of(held_out)
    options = {task.name: task for task in one.tasks}
    for task in other.tasks:
        twin = options.get(task.name)
        if twin is None or twin.options != task.options:
            continue
        first, last = one.seed, one.seed + twin.count - 1
        if first <= other.seed + task.count - 1 and other.seed <= last:
            raise UserError(
                f"train_data and eval_data share puzzles of {NAME} task '{task.name}': puzzle i is "
                f"drawn from seed + i, and train_data has {first} to {last}; give eval_data "
                f"seed: {last + 1} or more"
            )

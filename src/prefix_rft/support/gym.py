"""The tasks of the package reasoning-gym: generators, and graders of their own.

A puzzle travels from the data to its grader as one text, since many tasks grade by what they know
of a puzzle and not by one gold answer. JSON has no tuples and no keys but texts, and some graders
tell tuples from lists (arc_agi, rearc) or look numbers up (graph_color): both are written so that
they come back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from prefix_rft.support.errors import UserError, choose, one_line, refuse_unknown

NAME = "reasoning_gym"
SEVERAL = "composite"
"""A task of reasoning-gym that is a mixture of others."""
TUPLE, PAIRS = "__tuple__", "__pairs__"
REFUSALS = (AssertionError, TypeError, ValueError)


def library() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import reasoning_gym
        import reasoning_gym.factory
    except ImportError as error:
        raise UserError(
            f"{NAME} needs the package reasoning-gym: pip install 'prefix-rft[lab]' ({error})"
        ) from error
    return reasoning_gym


def dataset_of(task: str, options: Mapping[str, Any], seed: int, size: int) -> Any:
    """A task's dataset; its puzzle ``i`` is drawn from ``seed + i``.

    Raises:
        UserError: no such task, no such option, a value that the task refuses, or the package is
            not installed.
    """
    gym = library()
    tasks = gym.factory.DATASETS
    if task == SEVERAL:
        raise UserError(f"{NAME} task '{SEVERAL}': name its tasks, {NAME}: {{TASK: {{...}}, ...}}")
    choose(f"{NAME} task", task, [name for name in tasks if name != SEVERAL])
    names = [f.name for f in fields(tasks[task][1]) if f.name not in ("seed", "size")]
    refuse_unknown(f"option of {NAME} task '{task}'", options, names)
    try:
        return gym.create_dataset(task, **options, seed=seed, size=size)
    except REFUSALS as error:
        given = ", ".join(f"{key}: {value!r}" for key, value in options.items())
        raise UserError(
            f"{NAME} task '{task}' refuses its options ({given}): {one_line(error)}"
        ) from error


def puzzles_of(
    task: str, options: Mapping[str, Any], seed: int, size: int
) -> Iterator[dict[str, Any]]:
    """The puzzles as reasoning-gym makes them: ``question``, ``answer`` and ``metadata``.

    Raises:
        UserError: see :func:`dataset_of`; or one cannot be made.
    """
    dataset = dataset_of(task, options, seed, size)
    for index in range(size):
        try:
            yield dataset[index]
        except Exception as error:  # another package's generators
            raise UserError(
                f"{NAME} task '{task}' cannot make puzzle {index} of seed {seed}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error


def written(task: str, options: Mapping[str, Any], puzzle: Mapping[str, Any]) -> str:
    """A puzzle as a text, with the task and the options that it is graded by."""
    return json.dumps({"task": task, "options": options, "puzzle": storable(puzzle)})


def score(text: str, answer: str) -> float:
    """What the task's own grader gives an answer, from 0 to 1.

    Some graders raise at an answer that they cannot read. That is the answer's fault, and worth 0,
    where they can judge the gold answer (or none, in its place) of the same puzzle.

    Args:
        text: the puzzle, as :func:`written` has it.
        answer: the answer alone.

    Raises:
        UserError: the text is no such puzzle.
        Exception: the grader fails at the puzzle itself.
    """
    try:
        told = json.loads(text)
        task, options, puzzle = told["task"], told["options"], restored(told["puzzle"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the column 'puzzle' is what train_data: {{{NAME}: TASK}} writes, got {text!r:.60}"
        ) from error
    grader = _grader(task, json.dumps(options))
    try:
        return float(grader.score_answer(answer, puzzle))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (another package's graders, of which each raises its own)
        grader.score_answer(puzzle["answer"], puzzle)
        return 0.0


@functools.lru_cache(maxsize=128)
def _grader(task: str, options: str) -> Any:
    return dataset_of(task, json.loads(options), seed=0, size=1)


def storable(value: Any) -> Any:
    """A value that JSON can write, from which :func:`restored` makes it again."""
    if isinstance(value, tuple):
        return {TUPLE: [storable(v) for v in value]}
    if isinstance(value, list):
        return [storable(v) for v in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: storable(v) for key, v in value.items()}
        return {PAIRS: [[storable(key), storable(v)] for key, v in value.items()]}
    return value


def restored(value: Any) -> Any:
    """The value behind what :func:`storable` has made of it."""
    if isinstance(value, list):
        return [restored(v) for v in value]
    if not isinstance(value, dict):
        return value
    if list(value) == [TUPLE]:
        return tuple(restored(v) for v in value[TUPLE])
    if list(value) == [PAIRS]:
        return {restored(key): restored(v) for key, v in value[PAIRS]}
    return {key: restored(v) for key, v in value.items()}

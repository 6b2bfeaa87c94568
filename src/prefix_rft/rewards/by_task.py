"""Rows of several tasks in one run, each graded by its own task's reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from prefix_rft.rewards.registry import Entry, parse_rewards
from prefix_rft.rewards.verdict import values_of, verdict_of
from prefix_rft.support.errors import UserError, choose
from prefix_rft.support.imports import load_function

TASK = "task"
"""Column that names the task of a row."""
OF_ALL = ("weight", "timeout", "memory", "workers", "no_answer")
"""What one reward has for all of its rows."""


def by_task(
    completions: Sequence[Any],
    task: Sequence[str],
    *,
    rewards: Mapping[str, Any],
    **columns: Any,
) -> list[Any]:
    """What the reward of each row's own task says of its completion, in TRL's reward signature.

    A reward is given the columns that rows of its task have: one that is empty in all of them, as
    those of other tasks are, does not reach it.

    Args:
        completions: texts or conversations.
        task: the task of each completion.
        rewards: a reward by task, each as a recipe writes it.
        **columns: the other columns and arguments that TRL passes.

    Raises:
        UserError: a row of a task that has no reward.
    """
    answers: list[Any] = [None] * len(completions)
    for name in dict.fromkeys(task):
        choose("task of a row", name, rewards)
        own = [i for i, other in enumerate(task) if other == name]
        rows = {key: _of(values, own) for key, values in columns.items()}
        found = {
            key: values
            for key, values in rows.items()
            if not isinstance(values, list) or any(v is not None for v in values)
        }
        entry = _entry(name, rewards[name])
        function = load_function(entry.path)
        given = {key: v for key, v in found.items() if _takes(function, key)}
        returned = function(completions=_of(completions, own), **given, **entry.options)
        for i, value in zip(own, values_of(returned, len(own)), strict=True):
            answers[i] = verdict_of(value)
    return answers


def prepare(options: Mapping[str, Any]) -> None:
    """Look whether every task's reward can be used here, before any of them is.

    Args:
        options: the options of :func:`by_task`.

    Raises:
        UserError: one cannot.
    """
    rewards = options.get("rewards")
    if not isinstance(rewards, Mapping) or not rewards:
        raise UserError("reward 'by_task' needs 'rewards': a mapping of tasks to their rewards")
    for name, spec in rewards.items():
        entry = _entry(name, spec)
        function = load_function(entry.path)
        if getattr(function, "own_limits", False):
            raise UserError(
                f"task '{name}': reward '{entry.name}' starts processes of its own, so it cannot "
                "stand beside the rewards of other tasks in 'by_task'"
            )
        for option in entry.options:
            choose(
                f"option of reward '{entry.name}'", option, inspect.signature(function).parameters
            )
        if own := getattr(function, "prepare", None):
            own(entry.options)


def graders(options: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """The functions of all tasks.

    Args:
        options: the options of :func:`by_task`.
    """
    specs = options["rewards"]
    return [load_function(_entry(name, spec).path) for name, spec in specs.items()]


vars(by_task).update(prepare=prepare, graders=graders)


def united(specs: Mapping[str, Any]) -> dict[str, Any]:
    """The one reward of rows of several tasks, as a recipe writes it.

    Args:
        specs: the recipe's ``reward`` of each task.

    Raises:
        UserError: they cannot be one.
    """
    entries = {name: _only(name, spec) for name, spec in specs.items()}
    first, *others = entries
    for name in others:
        for key in OF_ALL:
            ours, theirs = getattr(entries[first], key), getattr(entries[name], key)
            if ours != theirs:
                raise UserError(
                    f"the rewards of tasks '{first}' and '{name}' differ in '{key}' ({ours!r}, "
                    f"{theirs!r}), of which a run over the rows of both has one"
                )
    shared = {key: getattr(entries[first], key) for key in OF_ALL}
    own = {name: {"name": entry.name, **entry.options} for name, entry in entries.items()}
    return {"name": "by_task", **shared, "rewards": own}


def _only(task: str, spec: Any) -> Entry:
    """The only reward of a task."""
    entries = parse_rewards(spec)
    if len(entries) != 1:
        raise UserError(f"task '{task}' has {len(entries)} rewards: 'by_task' takes one of each")
    if entries[0].whole_batch:
        raise UserError(
            f"task '{task}': a reward with whole_batch compares rows with one another, so it "
            "cannot stand beside the rewards of other tasks in 'by_task'"
        )
    return entries[0]


def _entry(task: str, spec: Any) -> Entry:
    """The reward of a task, which has a name and options of its own and nothing else."""
    entry = _only(task, spec)
    for field in fields(Entry):
        if field.name in OF_ALL and getattr(entry, field.name) != field.default:
            raise UserError(
                f"task '{task}': '{field.name}' has no effect under 'by_task': give it beside "
                "'rewards', for all of them"
            )
    return entry


def _of(values: Any, own: Sequence[int]) -> Any:
    """A column's values in some rows; what is no column stays as it is."""
    return [values[i] for i in own] if isinstance(values, (list, tuple)) else values


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a reward is given a column."""
    parameters = inspect.signature(function).parameters
    others = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return name in parameters or (others and not getattr(function, "named_only", False))

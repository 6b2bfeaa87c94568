"""Reward functions by name or import path, as a recipe writes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefix_rft.rewards.checked import checked
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.pool import Limits
from prefix_rft.rewards.verdict import NO_ANSWER_IS
from prefix_rft.support.errors import UserError, check_types, choose, nearest
from prefix_rft.support.imports import load_function

BUILT_IN = {
    "math": "prefix_rft.rewards.math:math",
    "exact": "prefix_rft.rewards.text:exact",
    "format": "prefix_rft.rewards.text:format",
    "code": "prefix_rft.rewards.code:code",
    "by_task": "prefix_rft.rewards.by_task:by_task",
    "countdown": "prefix_rft.tasks.countdown:reward",
    "reasoning_gym": "prefix_rft.rewards.gym:reasoning_gym",
}


@dataclass(frozen=True)
class Entry:
    """One reward in a recipe; keys that are not here are options of the function.

    Attributes:
        name: built-in name or ``package.module:function``.
        weight: factor in the sum of rewards.
        timeout: processor seconds for one completion; three times as long on the clock.
        memory: megabytes for one completion.
        workers: processes; by default one per core, at most 8.
        no_answer: count completions without an answer as ``wrong``, or ``exclude`` them.
        whole_batch: call it once with all completions, in the trainer's process, without limits.
        options: the function's options.
    """

    name: str
    weight: float = 1.0
    timeout: float = 5.0
    memory: int | None = 2048
    workers: int | None = None
    no_answer: str = "wrong"
    whole_batch: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The import path."""
        return BUILT_IN.get(self.name, self.name)


def parse_rewards(spec: Any) -> list[Entry]:
    """The entries behind a recipe's ``reward``: a name, a mapping, or a list of these.

    Raises:
        UserError: another kind of value, or an unknown name.
    """
    several = spec if isinstance(spec, (list, tuple)) else [] if spec is None else [spec]
    return [_entry(one) for one in several]


def _entry(one: Any) -> Entry:
    if isinstance(one, str):
        one = {"name": one}
    if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
        raise UserError(
            f"a reward is a name, package.module:function, or a mapping with 'name', got {one!r}"
        )
    own = [f.name for f in fields(Entry) if f.name != "options"]
    values = {k: v for k, v in one.items() if k in own}
    check_types(
        f"key of reward '{one['name']}':", values, {f.name: str(f.type) for f in fields(Entry)}
    )
    entry = Entry(**values, options={k: v for k, v in one.items() if k not in own})
    if ":" not in entry.name and entry.name not in BUILT_IN:
        raise UserError(
            f"unknown reward '{entry.name}': {nearest(entry.name, BUILT_IN)} "
            "(your own is named package.module:function)"
        )
    choose("value of no_answer", entry.no_answer, NO_ANSWER_IS)
    return entry


def load_rewards(spec: Any, folder: Path = Path()) -> tuple[list[Callable[..., Any]], list[float]]:
    """Reward functions with TRL's signature, and their weights.

    Args:
        spec: see :func:`parse_rewards`.
        folder: the folder where modules beside the recipe are looked for.

    Raises:
        UserError: one of them cannot be used.
    """
    entries = parse_rewards(spec)
    names = [e.name.rpartition(":")[2] for e in entries]
    if len(names) > len(set(names)):
        # TRL and the rollouts know rewards by their names.
        names = [f"{name}_{i}" for i, name in enumerate(names, 1)]
    rewards = [load_reward(e, folder, name) for e, name in zip(entries, names, strict=True)]
    return rewards, [e.weight for e in entries]


def load_reward(entry: Entry, folder: Path, name: str) -> Callable[..., Any]:
    """One reward function: in a pool of processes, or ``whole_batch`` in this one."""
    if not entry.whole_batch:
        limits = Limits(entry.timeout, entry.memory)
        return Graded(
            entry.path, name, folder, entry.options, entry.no_answer, entry.workers, limits
        )
    function = load_function(entry.path, folder)
    for option in entry.options:
        choose(f"option of reward '{entry.name}'", option, inspect.signature(function).parameters)

    bound = functools.partial(function, **entry.options) if entry.options else function
    reward: Any = checked(bound, entry.no_answer)
    reward.__name__ = name
    return reward

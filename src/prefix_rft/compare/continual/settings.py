"""The block ``continual`` of a recipe: tasks in order, the arms that go through them, measures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.arms import SPECIAL, Comparison, read_comparison
from prefix_rft.recipe.recipe import BLOCKS, CONTINUAL
from prefix_rft.recipe.stages import STAGES
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

KINDS = {"tasks": "Mapping[str, Any]", "multi_task": "bool", "base_in_max": "bool"}
"""Keys that only a sequence of tasks has."""
SHARED = ("arms", "seeds", "samples", "temperatures", "forgetting", "reference")
"""Keys that it has from a comparison."""
BASE_KEYS = ("model", "name", "runs", "seed", "engine", "resume_from_checkpoint", STAGES, *BLOCKS)
NOT_OF_A_TASK = (*BASE_KEYS, "method", "peft", "chat_template_kwargs")
NOT_OF_AN_ARM = (*BASE_KEYS, "train_data", "eval_data", "columns", "system_prompt")


@dataclass(frozen=True)
class Continual:
    """What is trained in which order, and how it is measured.

    Attributes:
        tasks: the recipe keys of each task, by name and in order.
        arms: the ways to train that are compared, each of which goes through all tasks.
        comparison: the rest of what a comparison says.
        multi_task: each arm trains once more, on the rows of all tasks at once.
        base_in_max: the base's accuracy counts as one of those that the best is taken of.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    arms: Sequence[Arm]
    comparison: Comparison
    multi_task: bool = True
    base_in_max: bool = False

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.comparison.reference


def read_continual(
    data: Mapping[str, Any], arms: Sequence[str] | None = None, seeds: int | None = None
) -> Continual:
    """The sequence that a recipe's mapping describes.

    Args:
        data: the recipe.
        arms: the names of the arms to take; all by default.
        seeds: the number of seeds in place of the recipe's.

    Raises:
        UserError: anything that is no sequence of tasks.
    """
    block = data.get(CONTINUAL)
    if STAGES in data:
        raise UserError("a sequence of tasks makes its own stages: leave out 'stages'")
    if not isinstance(block, Mapping):
        raise UserError(f"the recipe needs the key '{CONTINUAL}': a mapping with tasks and arms")
    refuse_unknown(f"key of '{CONTINUAL}'", block, (*KINDS, *SHARED))
    own = {k: v for k, v in block.items() if k in KINDS}
    check_types(f"key of '{CONTINUAL}'", own, KINDS)
    tasks = _tasks(own.pop("tasks", None))
    if not block.get("arms"):
        raise UserError(f"'{CONTINUAL}' needs 'arms': a mapping of names to what differs in each")
    shared = {k: v for k, v in block.items() if k in SHARED}
    comparison = read_comparison({**data, CONTINUAL: shared}, seeds=seeds, block=CONTINUAL)
    chosen = _chosen(comparison, arms)
    for arm in chosen.arms:
        _check_arm(arm, tasks)
    return Continual(tasks, chosen.arms, chosen, **own)


def _tasks(mapping: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(mapping, Mapping) or len(mapping) < 2:
        found = len(mapping) if isinstance(mapping, Mapping) else 0
        raise UserError(
            f"'tasks' of '{CONTINUAL}' must be a mapping of at least two names, in order, to the "
            f"keys of each task; there {'is' if found == 1 else 'are'} {found}"
        )
    for name, keys in mapping.items():
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise UserError(f"'{name}' cannot name a task: give letters, digits, - and _")
        if not isinstance(keys, Mapping):
            raise UserError(f"task '{name}' must be a mapping of recipe keys to values")
        for key in keys:
            if root_of(key) in NOT_OF_A_TASK:
                raise UserError(
                    f"task '{name}' cannot have a '{root_of(key)}' of its own: every stage starts "
                    "from the model of the one before, and arms say how it is trained"
                )
    return {str(name): dict(keys) for name, keys in mapping.items()}


def _chosen(comparison: Comparison, names: Sequence[str] | None) -> Comparison:
    """The comparison of the arms with these names; of all by default."""
    if names is None:
        return comparison
    known = [arm.name for arm in comparison.arms]
    for name in names:
        choose(f"arm of '{CONTINUAL}'", name, known)
    arms = [arm for arm in comparison.arms if arm.name in names]
    reference = comparison.reference if comparison.reference in names else arms[0].name
    return replace(comparison, arms=arms, reference=reference)


def _check_arm(arm: Arm, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for an arm that cannot go through the tasks."""
    for key in SPECIAL:
        if getattr(arm, key):
            raise UserError(
                f"arm '{arm.name}' cannot have '{key}' in a sequence of tasks: it starts from the "
                "base, and every stage from the one before"
            )
    own = {root_of(key) for key in arm.keys}
    for key in NOT_OF_AN_ARM:
        if key in own:
            raise UserError(
                f"arm '{arm.name}' cannot have '{key}' of its own: all arms start from one base "
                "and go through the same tasks"
            )
    for name, keys in tasks.items():
        for key in keys:
            if root_of(key) in own:
                raise UserError(
                    f"arm '{arm.name}' and task '{name}' both set '{root_of(key)}': one of them "
                    "would have no effect"
                )


def root_of(key: str) -> str:
    """The recipe key that a key with dots, or one to take away, is about."""
    return str(key).removeprefix("~").partition(".")[0]

"""The runs of a sequence of tasks: each stage is an arm that starts from the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.continual.settings import Continual, root_of
from prefix_rft.compare.task import ContinualTask
from prefix_rft.rewards.by_task import united
from prefix_rft.support.errors import UserError

UNION = "union.jsonl"
"""The rows of all tasks, in the folder of all runs."""
OF_ROWS = ("train_data", "eval_data", "columns", "system_prompt", "eval_problems")
"""Keys of a task that are no matter once its rows are among those of all tasks."""
STEPS, LENGTH, REWARD = "max_steps", "max_completion_length", "reward"
LEAVE_OUT = "multi_task: false leaves that run out"


def stage_name(arm: str, number: int, task: str) -> str:
    """The name of the run of an arm on the ``number``-th task, counted from 1."""
    return f"{arm}/{number}-{task}"


def multi_name(arm: str) -> str:
    """The name of the run of an arm on all tasks at once."""
    return f"{arm}/multi_task"


def stage_arms(
    continual: Continual, tasks: Sequence[ContinualTask], data: Mapping[str, Any]
) -> list[Arm]:
    """Every stage of every arm, and its run on all tasks at once.

    Args:
        continual: the sequence.
        tasks: its tasks.
        data: the recipe that all runs share.

    Raises:
        UserError: a stage has no number of steps, or tasks cannot be trained on at once.
    """
    found = []
    for arm in continual.arms:
        before, steps = None, []
        for number, task in enumerate(tasks, 1):
            steps.append(_steps(arm, task, data))
            name = stage_name(arm.name, number, task.name)
            keys = {**arm.keys, **task.keys, STEPS: steps[-1]}
            found.append(Arm(name, keys, start=before))
            before = name
        if continual.multi_task:
            keys = {**arm.keys, **_at_once(arm, tasks), STEPS: sum(steps)}
            found.append(Arm(multi_name(arm.name), keys, rows=UNION))
    return found


def _steps(arm: Arm, task: ContinualTask, data: Mapping[str, Any]) -> int:
    """The optimizer steps of a stage."""
    steps = next((d[STEPS] for d in (arm.keys, task.keys, data) if STEPS in d), None)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(
            f"arm '{arm.name}', task '{task.name}': a sequence of tasks needs max_steps, in the "
            f"recipe, the arm or the task, got {steps!r}"
        )
    return steps


def _at_once(arm: Arm, tasks: Sequence[ContinualTask]) -> dict[str, Any]:
    """Recipe keys of a run over the rows of all tasks, the arm's own aside."""
    keys: dict[str, Any] = {"train_data": UNION, "columns": {}, "system_prompt": None}
    if any(LENGTH in task.keys for task in tasks):
        keys[LENGTH] = max(task.longest or 0 for task in tasks)
    rewards = {task.name: task.recipe.reward for task in tasks}
    first, *others = rewards.values()
    if REWARD not in map(root_of, arm.keys):
        try:
            keys[REWARD] = first if all(r == first for r in others) else united(rewards)
        except UserError as error:
            raise UserError(f"{error} ({LEAVE_OUT})") from error
    for name in dict.fromkeys(key for task in tasks for key in task.keys):
        if root_of(name) in (*OF_ROWS, STEPS, LENGTH, REWARD):
            continue
        if any(name not in t.keys or t.keys[name] != tasks[0].keys.get(name) for t in tasks):
            raise UserError(
                f"tasks differ in '{name}', of which one run over the rows of all has one value: "
                f"set it in the recipe or in an arm ({LEAVE_OUT})"
            )
        keys[name] = tasks[0].keys[name]
    return keys

"""Hints in the prompts of rows: put there before TRL samples them, and not shown to graders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefix_rft.core.hint import Hint
from prefix_rft.data.render import Renderer
from prefix_rft.engines.hints import hinted
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.rollout.generation import Attempt, Inputs


def with_hints(
    inputs: Inputs, plans: Sequence[RowPlan], hint: Hint | None, renderer: Renderer
) -> Inputs:
    """The examples of rows, those with a hint in their prompts where the plan says so.

    Args:
        inputs: the examples, which stay as they are.
        plans: the plans of the rows.
        hint: how a hint is written; None where the method has none.
        renderer: how ids become texts.
    """
    if hint is None:
        return inputs
    return [
        {**row, "prompt": hinted(row["prompt"], plan.hint, hint, renderer)} if plan.hint else row
        for row, plan in zip(inputs, plans, strict=True)
    ]


def without_hints(
    attempt: Attempt | None, inputs: Any, prompts: Any
) -> tuple[list[Any], list[Any]]:
    """The examples and prompts of rows as graders see them: with the rows' own prompts.

    Args:
        attempt: the attempt at them; None in evaluation.
        inputs: the examples as TRL has them.
        prompts: the prompts as TRL has them.
    """
    rows, shown = list(inputs), list(prompts)
    planned = () if attempt is None else zip(attempt.plans, attempt.inputs, strict=True)
    for i, (plan, row) in enumerate(planned):
        if plan.hint:
            rows[i], shown[i] = row, row["prompt"]
    return rows, shown

"""Which rows of a generation batch start from which demonstration tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefix_rft.core import Method, draw_prefix
from prefix_rft.core.prefix import is_hybrid
from prefix_rft.data.demonstrations import EXAMPLE, IDS


@dataclass(frozen=True)
class RowPlan:
    """One row: its group, its place in the group, and the token ids it starts from."""

    example: int
    group: int
    row: int
    prefix: tuple[int, ...] = ()
    ratio: float | None = None


def plan_rows(
    method: Method,
    inputs: Sequence[dict[str, Any]],
    *,
    num_generations: int,
    offset: int,
    seed: int,
    step: int,
    total_steps: int,
    max_completion_length: int,
) -> list[RowPlan]:
    """Plan this process's rows, which stand at ``offset`` in the generation batch of all processes.

    The first ``num_hybrid`` rows of a group start from a demonstration if the example has one.
    """
    plans = []
    for i, example in enumerate(inputs):
        group, row = divmod(offset + i, num_generations)
        demonstrations = example[IDS]
        index = int(example[EXAMPLE])
        hybrid = is_hybrid(row, method.num_hybrid) and len(demonstrations) > 0
        if not hybrid or method.prefix is None:
            plans.append(RowPlan(index, group, row))
            continue
        draw = draw_prefix(
            method.prefix,
            [len(d) for d in demonstrations],
            seed=seed,
            step=step,
            total_steps=total_steps,
            example=index,
            row=row,
            max_length=max_completion_length,
        )
        prefix = tuple(int(t) for t in demonstrations[draw.index][: draw.length])
        plans.append(RowPlan(index, group, row, prefix, draw.ratio))
    return plans

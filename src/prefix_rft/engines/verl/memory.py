"""What a method remembers of the groups of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefix_rft.core import Method
from prefix_rft.engines.metrics import memory_metrics, store_metrics
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.verl.credit import CreditedRows
from prefix_rft.engines.verl.prompt_plan import PromptPlan


def learn(
    method: Method,
    state: MethodState,
    plans: Sequence[PromptPlan],
    keys: Sequence[str],
    rows: CreditedRows,
    responses: Sequence[list[int]],
) -> dict[str, float]:
    """Tell a planner that remembers how its groups went, and keep the rollouts that it asks for.

    Args:
        method: the method.
        state: its memory, which is changed.
        plans: the plan of each row's prompt.
        keys: the key of each row, ``UID_ROLLOUT_OUTPUT``.
        rows: the rows with their rewards.
        responses: the ids of each row.

    Returns:
        metrics of what is remembered.
    """
    planner, store = method.planner, method.planner.store
    if not planner.remembers and store is None:
        return {}
    groups: dict[int, dict[int, int]] = {}
    for i, key in enumerate(keys):
        if not rows.filler_N[i]:
            rollout = int(key.rsplit("_", 2)[1])
            groups.setdefault(int(rows.group_N[i]), {})[rollout] = i
    for row_of in groups.values():
        plan = plans[next(iter(row_of.values()))]
        if plan.asked is None or not (plan.asked.lengths or store):
            continue
        mine = [row_of[r] for r in range(plan.rollouts)]
        rewards = [float(rows.reward_N[i]) for i in mine]
        if planner.remembers:
            starts, replaced = plan.learnt([int(rows.attempt_N[i]) for i in mine])
            state.learn(planner, plan.asked, starts, rewards, replaced)
        if store is not None:
            own = [
                (tuple(responses[i]), reward > method.groups.solved_above)
                for i, reward in zip(mine, rewards, strict=True)
                if not (rows.prefix_N[i] or rows.whole_N[i] or math.isnan(reward))
            ]
            state.keep(store, plan.asked, own)
    metrics = memory_metrics(state.examples) if planner.remembers else {}
    if store is not None:
        state.bound(store)
        metrics |= store_metrics(state.traces)
    return metrics

"""What a group's rewards say: which rows are solved, how often, and what a flat group means.

Shape letters: B rows. Group ids are data, never inferred from order or text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError


def solved(reward_B: Tensor, solved_above: float) -> Tensor:
    """Rows whose reward exceeds the threshold; one without a reward is not solved."""
    return reward_B > solved_above


def solve_rate(reward_B: Tensor, group_B: Tensor, include_B: Tensor, solved_above: float) -> Tensor:
    """Share of solved rows among the included ones of the row's group, on every row of it.

    NaN where the group has no included row with a reward.
    """
    counted = include_B & ~torch.isnan(reward_B)
    _, group = torch.unique(group_B, return_inverse=True)
    n_groups = int(group.max()) + 1 if len(group) else 0

    def total(x_B: Tensor) -> Tensor:
        zero = torch.zeros(n_groups, dtype=torch.float64, device=x_B.device)
        return zero.index_add_(0, group, x_B.double())[group]

    return total(solved(reward_B, solved_above) & counted) / total(counted)


def all_wrong(rate_B: Tensor) -> Tensor:
    """Rows of groups in which no row is solved; a group without any reward is not among them."""
    return rate_B == 0.0


def all_right(rate_B: Tensor) -> Tensor:
    """Rows of groups in which every row is solved."""
    return rate_B == 1.0


def overlong_penalty(length_B: Tensor, budget: int, buffer: int, penalty: float) -> Tensor:
    """What is added to the reward of long rows: 0 up to ``budget - buffer`` tokens, then a line
    down to ``-penalty`` at the budget (DAPO's soft overlong punishment, arXiv 2503.14476).

    Raises:
        UserError: the buffer is not within the budget.
    """
    if not 0 < buffer <= budget:
        raise UserError(f"the overlong buffer must be in [1, {budget}] tokens, got {buffer}")
    excess = (length_B - (budget - buffer)).clamp(min=0, max=buffer)
    return -penalty * excess.double() / buffer

"""Group baselines over explicit group ids.

Shape letters: B rows (one rollout each). Group ids are data, never inferred from order or text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError, choose

BASELINES = ("mean", "mean_std", "leave_one_out")


def group_advantage(
    reward_B: Tensor,
    group_B: Tensor,
    include_B: Tensor | None = None,
    baseline: str = "mean",
    eps: float = 1e-6,
) -> Tensor:
    """Reward minus the baseline of the row's group.

    - ``mean``: ``R - mean`` (Dr. GRPO, arXiv 2503.20783, section 3.2).
    - ``mean_std``: ``(R - mean) / (std + eps)``, unbiased std (GRPO, arXiv 2402.03300, 4.1).
    - ``leave_one_out``: ``R - mean of the others = n/(n-1) (R - mean)`` (RLOO, arXiv 2402.14740).

    ``include_B`` says which rows form the baseline; the others are only compared with it (with
    on-policy rows alone this is LUFFY's and RL-with-SFT's split baseline). A NaN reward marks a row
    that could not be graded: it enters no baseline and its advantage is 0. A group whose baseline
    rests on the row alone gives 0, not R. A flat group gives exactly 0.

    Args:
        reward_B: rewards, NaN where ungradable.
        group_B: int64 group ids, in any order.
        include_B: bool, rows that form the baseline; all by default.
        baseline: one of ``mean``, ``mean_std``, ``leave_one_out``.
        eps: added to the std.

    Returns:
        Advantages, shape (B,), dtype of ``reward_B``.
    """
    choose("baseline", baseline, BASELINES)
    if reward_B.ndim != 1 or group_B.shape != reward_B.shape:
        raise UserError(
            "reward and group must be one-dimensional and of one length, got "
            f"{tuple(reward_B.shape)} and {tuple(group_B.shape)}"
        )
    # On the CPU in double precision: a group's rewards are few, and exactness is the point.
    device = reward_B.device
    dtype = reward_B.dtype if reward_B.is_floating_point() else torch.get_default_dtype()
    reward, group_B = reward_B.detach().cpu().double(), group_B.cpu()
    include_B = None if include_B is None else include_B.cpu()
    graded = ~torch.isnan(reward)
    if bool(torch.isinf(reward).any()):
        raise UserError("a reward is infinite; mark a row that cannot be graded with NaN")
    included = graded if include_B is None else graded & include_B
    _, group = torch.unique(group_B, return_inverse=True)
    n_groups = int(group.max()) + 1 if len(group) else 0

    def total(x_B: Tensor) -> Tensor:
        return torch.zeros(n_groups, dtype=torch.float64).index_add_(0, group, x_B)

    n = total(included.double())[group]
    # The mean is taken around the group's smallest reward, so that a flat group is exactly 0.
    lowest = torch.full((n_groups,), torch.inf, dtype=torch.float64)
    lowest = lowest.scatter_reduce(0, group, reward.where(included, torch.inf), "amin")[group]
    above = (reward - lowest).where(included, 0.0)
    centred = (reward - lowest) - total(above)[group] / n.clamp(min=1)

    if baseline == "mean_std":
        squares = total(centred.where(included, 0.0) ** 2)[group]
        centred = centred / ((squares / (n - 1).clamp(min=1)).sqrt() + eps)
    elif baseline == "leave_one_out":
        centred = torch.where(included, centred * n / (n - 1).clamp(min=1), centred)

    alone = included & (n == 1)
    usable = graded & (n > 0) & ~alone
    return centred.where(usable, 0.0).to(device, dtype)

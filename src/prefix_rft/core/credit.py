"""Which advantage each stream gives each row, and which rows a step leaves out.

Shape letters: B rows, N rows of all processes, S streams.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_rft.core import outcome
from prefix_rft.core.advantage import group_advantage
from prefix_rft.core.method import Method
from prefix_rft.core.stream import REGULARISERS


def advantages(
    method: Method,
    reward_B: Tensor,
    group_B: Tensor,
    hybrid_B: Tensor,
    demo_B: Tensor,
    guided_B: Tensor | None = None,
) -> Tensor:
    """The advantage of every stream and row, shape (S, B).

    Takes whole groups: call it where all rows of a group are known. Whole demonstrations enter a
    group's baseline only for methods that plan such rows; guided rows, which the policy did not
    sample from its own prompt, never do.
    """
    own_B = torch.ones_like(hybrid_B) if guided_B is None else ~guided_B
    sampled_B = own_B & ~demo_B
    everyone = own_B if method.rows.num_demonstrations else sampled_B
    policy_B = sampled_B & ~hybrid_B
    reward_B = reward_B if reward_B.device.type == "mps" else reward_B.double()
    graded = torch.nan_to_num(reward_B, nan=0.0)
    right = outcome.solved(reward_B, method.groups.solved_above)
    by_kind = {
        "reward": graded,
        "solved": right.to(graded),
        "unsolved": -(~right & ~torch.isnan(reward_B)).to(graded),
        "sequence": torch.ones_like(graded),  # until the contrast has spoken: with_sequence
    }
    whole = torch.zeros_like(group_B)
    for kind, groups, include in (
        ("group", group_B, everyone),
        ("sampled_group", group_B, sampled_B),
        ("policy_group", group_B, policy_B),
        ("hybrid_group", group_B, hybrid_B),
        ("batch", whole, everyone),
    ):
        if any(s.advantage == kind for s in method.streams):
            by_kind[kind] = group_advantage(reward_B, groups, include, method.baseline)
    rate_B = outcome.solve_rate(reward_B, group_B, policy_B, method.groups.solved_above)
    rows = []
    for s in method.streams:
        of = 1.0 if s.surrogate in REGULARISERS else s.advantage
        value = by_kind[of] if isinstance(of, str) else torch.full_like(graded, of)
        if s.gate is not None:
            value = value.where((rate_B > s.gate[0]) & (rate_B <= s.gate[1]), 0.0)
        rows.append(value)
    return torch.stack(rows)


def with_sequence(method: Method, advantage_SB: Tensor, sequence_B: Tensor) -> Tensor:
    """The advantages, with those of the method's contrast where a stream asks for them."""
    asks = torch.tensor([s.advantage == "sequence" for s in method.streams])
    open_SB = asks.to(advantage_SB.device)[:, None] & (advantage_SB != 0)  # a closed gate is 0
    return torch.where(open_SB, sequence_B, advantage_SB)


def dropped(
    method: Method,
    reward_B: Tensor,
    group_B: Tensor,
    demo_B: Tensor,
    guided_B: Tensor | None = None,
) -> Tensor:
    """Rows of the flat groups that the method drops, and guided ones that fail, shape (B,)."""
    rate_B = outcome.solve_rate(reward_B, group_B, ~demo_B, method.groups.solved_above)
    wrong, right = outcome.all_wrong(rate_B), outcome.all_right(rate_B)
    drop = torch.zeros_like(wrong)
    if method.groups.all_wrong in ("drop", "resample"):
        drop |= wrong
    if method.groups.all_right in ("drop", "resample"):
        drop |= right
    if guided_B is not None:
        drop |= guided_B & ~outcome.solved(reward_B, method.groups.solved_above)
    return drop


def step_credit(
    method: Method,
    reward_N: Tensor,
    group_N: Tensor,
    hybrid_N: Tensor,
    demo_N: Tensor,
    length_N: Tensor,
    budget: int,
    guided_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages (S, N) and dropped rows (N,) of the rows of a generation, whole groups of them.

    Args:
        method: the method whose credit it is.
        reward_N: the rewards as graded, NaN where a row could not be.
        group_N: group ids.
        hybrid_N: bool, rows that start from a prefix.
        demo_N: bool, rows that are a whole demonstration.
        length_N: tokens of each row's completion.
        budget: the most that there may be.
        guided_N: bool, rows that were sampled from a teacher's prompt; None for none.
    """
    priced_N = reward_N
    overlong = method.groups.overlong
    if overlong is not None and overlong.buffer:
        buffer = max(1, round(overlong.buffer * budget))
        price = outcome.overlong_penalty(length_N, budget, buffer, overlong.penalty)
        priced_N = reward_N + price.to(reward_N).where(~demo_N, 0.0)
    advantage_SN = advantages(method, priced_N, group_N, hybrid_N, demo_N, guided_N)
    return advantage_SN, dropped(method, reward_N, group_N, demo_N, guided_N)

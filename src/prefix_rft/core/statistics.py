"""Sums and counts behind a step's metrics, hybrid and on-policy rows apart; nothing has a gradient.

Shape letters: B rows, T tokens, S streams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefix_rft.core.batch import Batch
from prefix_rft.core.method import Method
from prefix_rft.core.outcome import solved
from prefix_rft.core.stream import ORIGINS
from prefix_rft.core.surrogate import count_clipped, single, teacher_gap, unheard, weight
from prefix_rft.core.targets import Targets

FIRST = 8
"""Tokens of a response whose divergence is shown apart: another opening shows there."""


@torch.no_grad()
def statistics(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> dict[str, tuple[Tensor, Tensor]]:
    """What :func:`loss` has as its ``stats``. Arguments are those of :func:`loss`."""
    logp_BT, entropy_BT = single(logp_BT), None if entropy_BT is None else single(entropy_BT)
    stats = _stats(method, batch, logp_BT, entropy_BT, targets)
    for s, stream in enumerate(method.streams):
        acts_BT = targets.acts_SBT[s]
        advantage = targets.advantage_SB[s].to(logp_BT.dtype)[:, None]
        if stream.weight is not None and not unheard(stream, batch):
            weight_BT = weight(method, stream, batch, logp_BT, entropy_BT, advantage, acts_BT)
            stats[f"{stream.name}/weight"] = (weight_BT.where(acts_BT, 0.0).sum(), acts_BT.sum())
            advantage = advantage * weight_BT if stream.weight.signed else advantage
        if stream.divergence is not None and batch.divergence_SBT is not None:
            first_BT = acts_BT & (batch.response_mask_BT.cumsum(1) <= FIRST)
            for name, where in (("divergence", acts_BT), ("divergence_first", first_BT)):
                found = batch.divergence_SBT[s].where(where, 0.0).sum()
                stats[f"{stream.name}/{name}"] = (found, where.sum())
        if stream.surrogate in ("clip", "cispo"):
            count_clipped(stats, method, stream, batch, logp_BT, advantage, acts_BT)
    return stats


@torch.no_grad()
def _stats(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and counts behind the metrics, hybrid and on-policy rows apart."""
    stats: dict[str, tuple[Tensor, Tensor]] = {}

    def add(name: str, value: Tensor, where: Tensor) -> None:
        stats[name] = (value.where(where, 0.0).sum(), where.sum())

    graded = ~torch.isnan(batch.reward_B)
    for name, rows in (
        ("policy", batch.policy_B), ("prefix", batch.hybrid_B), ("demonstration", batch.demo_B)
    ):  # fmt: skip
        add(f"{name}/reward", batch.reward_B, rows & graded)
    response = batch.response_mask_BT
    for origin in ORIGINS:
        where = batch.origin((origin,))
        add(f"{origin}/logp", logp_BT, where)
        if entropy_BT is not None:
            add(f"{origin}/entropy", entropy_BT, where)
    if entropy_BT is not None:
        add("entropy", entropy_BT, response)
    for m, teacher in enumerate(method.teachers):
        _teacher_stats(add, method, batch, m, teacher.name, logp_BT)
    if method.trains("prefix"):
        stats["prefix/kept"] = (targets.keep_BT.sum(), batch.origin(("prefix",)).sum())
    stats["prefix/token_share"] = (batch.prefix_mask_BT.sum(), response.sum())
    stats["trained/token_share"] = (targets.acts_SBT.any(0).sum(), response.sum())
    return stats


def _teacher_stats(
    add: Callable[[str, Tensor, Tensor], None],
    method: Method,
    batch: Batch,
    m: int,
    name: str,
    logp_BT: Tensor,
) -> None:
    """How far a teacher is from the policy at sampled tokens, right and wrong rows apart."""
    found = _told_gap(batch, m, logp_BT)
    if found is None or batch.taught_MB is None:
        return
    gap_BT, told_BT = found
    right_B = solved(batch.reward_B, method.groups.solved_above)
    wrong_B = ~right_B & ~batch.reward_B.isnan()
    add(f"{name}/taught", batch.taught_MB[m].to(logp_BT), batch.rows_with(("policy", "prefix")))
    add(f"{name}/gap", gap_BT, told_BT)
    add(f"{name}/gap_abs", gap_BT.abs(), told_BT)
    add(f"{name}/gap_right", gap_BT, told_BT & right_B[:, None])
    add(f"{name}/gap_wrong", gap_BT, told_BT & wrong_B[:, None])


def _told_gap(batch: Batch, m: int, logp_BT: Tensor) -> tuple[Tensor, Tensor] | None:
    """A teacher's log-probs less the policy's, and the sampled tokens of which it says something;
    None where it is not heard."""
    sampled_BT = batch.origin(("policy", "continuation"))
    gap_BT = teacher_gap(batch, m, logp_BT, sampled_BT)
    if gap_BT is None or batch.taught_MB is None:
        return None
    # A divergence's teacher scores the tokens on which it acts alone.
    return gap_BT, sampled_BT & batch.taught_MB[m][:, None] & ~gap_BT.isnan()


@torch.no_grad()
def teacher_distances(method: Method, batch: Batch, logp_BT: Tensor) -> dict[str, Tensor]:
    """What ``gap_abs`` is the mean of, token by token, by the names of the teachers.

    Args:
        method: the method with its teachers.
        batch: the rows of this process.
        logp_BT: the policy's log-probs.
    """
    found = {t.name: _told_gap(batch, m, single(logp_BT)) for m, t in enumerate(method.teachers)}
    return {name: both[0].abs()[both[1]] for name, both in found.items() if both is not None}

"""The one objective that all methods share, split so that micro-batches and ranks add up exactly.

``prepare`` looks at a whole optimizer step and fixes everything that carries no gradient:
advantages, selected tokens, and one scale per stream that holds coefficient and normaliser.
``loss`` then is a plain sum over whatever rows it is given, so the sum over micro-batches (and
processes) is the loss of the step, whatever the split. ``token_losses`` takes the same sum apart.

Shape letters: B rows, T tokens, S streams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core.batch import Batch
from prefix_rft.core.credit import advantages
from prefix_rft.core.method import Method
from prefix_rft.core.parts import DEFAULT_CONST
from prefix_rft.core.select import keep_fraction
from prefix_rft.core.stream import ORIGINS, REGULARISERS, Stream
from prefix_rft.core.surrogate import count_clipped, surrogate, weight
from prefix_rft.support.errors import UserError


@dataclass(frozen=True)
class Targets:
    """What ``prepare`` fixed for a step. Row slices of it go with row slices of the batch.

    Attributes:
        scale_S: ``c / Z`` of every stream, over the whole step; 0 for an empty stream.
        acts_SBT: bool, the tokens on which each stream acts.
        row_count_SB: counted tokens of each row for ``seq_mean_token_mean``, else 1.
        advantage_SB: advantage of every stream and row.
        keep_BT: bool, prefix tokens that keep their advantage.
    """

    scale_S: tuple[float, ...]
    acts_SBT: Tensor
    row_count_SB: Tensor
    advantage_SB: Tensor
    keep_BT: Tensor

    def part(self, rows: Tensor | slice, width: int | None = None) -> Targets:
        """The targets of some rows and positions; scales stay those of the whole step."""
        return Targets(
            self.scale_S,
            self.acts_SBT[:, rows, :width],
            self.row_count_SB[:, rows],
            self.advantage_SB[:, rows],
            self.keep_BT[rows, :width],
        )


@dataclass(frozen=True)
class LossOutput:
    """``loss`` carries the gradient; ``stats`` maps a metric to its detached (sum, count).

    Sums and counts add over micro-batches and processes; ``metrics`` divides them.
    """

    loss: Tensor
    stats: dict[str, tuple[Tensor, Tensor]]

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the metrics that have a count; one that was never observed is left out."""
        return {k: (s / n).item() for k, (s, n) in self.stats.items() if n > 0}


def selection_seed(seed: int, step: int) -> int:
    """Of the random mode of a selection, from a run's seed and the optimizer step."""
    return 1_000_003 * seed + step


def select_prefix(
    method: Method, prefix_BT: Tensor, entropy_BT: Tensor | None, seed: int
) -> Tensor:
    """Prefix tokens that keep their advantage, ranked over the rows given (or within each row).

    ``seed`` is of the random mode.
    """
    if method.selection is None or not bool(prefix_BT.any()):
        return prefix_BT
    chosen = method.selection
    if entropy_BT is None:
        raise UserError(f"method '{method.name}' selects prefix tokens by entropy, but got none")
    return keep_fraction(
        entropy_BT, prefix_BT, chosen.fraction, chosen.mode, chosen.scope == "row", seed
    )


def prepare(
    method: Method,
    batch: Batch,
    entropy_BT: Tensor | None = None,
    step: int = 0,
    total_steps: int = 1,
    *,
    advantage_SB: Tensor | None = None,
    keep_BT: Tensor | None = None,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Targets:
    """Fix advantages, selection and scales of one optimizer step.

    Args:
        method: the method, from ``prefix_rft.methods.load``.
        batch: all rows of the step that this process holds.
        entropy_BT: entropies of the policy at the response tokens, for the selection.
        step: optimizer step, for schedules.
        total_steps: steps of the run.
        advantage_SB: the advantage of each row in each stream, from :func:`advantages`, where
            groups reach beyond this batch.
        keep_BT: bool, the prefix tokens that keep their advantage, from :func:`select_prefix`,
            where the ranked pool reaches beyond this batch.
        all_sum: sums the counts over the processes that share the step.
    """
    if advantage_SB is None:
        advantage_SB = advantages(
            method, batch.reward_B, batch.group_B, batch.hybrid_B, batch.demo_B
        )
    if keep_BT is None:
        keep_BT = select_prefix(method, batch.open_prefix_BT, entropy_BT, step)

    acts_SBT = torch.stack(
        [
            _trained(method, stream, batch, keep_BT, advantage_SB[s])
            for s, stream in enumerate(method.streams)
        ]
    )
    counts = [_count(method, s, batch, a) for s, a in zip(method.streams, acts_SBT, strict=True)]
    Z_S = all_sum(torch.stack([n for n, _ in counts])).tolist()
    const = DEFAULT_CONST if method.normaliser.const is None else method.normaliser.const
    scales = []
    for stream, n in zip(method.streams, Z_S, strict=True):
        aggregation = stream.aggregation or method.normaliser.aggregation
        Z = const if aggregation == "sum" else n * const if aggregation == "sum_over_const" else n
        scales.append(stream.coefficient.over(total_steps)(step) / Z if Z else 0.0)
    row_count_SB = torch.stack([m for _, m in counts])
    return Targets(tuple(scales), acts_SBT, row_count_SB, advantage_SB, keep_BT)


def _count(method: Method, stream: Stream, batch: Batch, acts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What the stream's normaliser counts here (tokens or rows), and the tokens of each row."""
    aggregation = stream.aggregation or method.normaliser.aggregation
    if stream.counts == "trained":
        counted_BT, rows_B = acts_BT, acts_BT.any(1)
    else:
        counted_BT, rows_B = batch.origin(stream.counted), batch.rows_with(stream.counted)
    n = (counted_BT if aggregation == "token_mean" else rows_B).sum()
    if aggregation != "seq_mean_token_mean":
        return n, torch.ones_like(rows_B, dtype=torch.int64)
    # A row is averaged over its own tokens, also where the rows counted are others.
    own_BT = counted_BT | (batch.origin(stream.tokens) & ~rows_B[:, None])
    return n, own_BT.sum(1).clamp(min=1)


def _trained(
    method: Method, stream: Stream, batch: Batch, keep_BT: Tensor, advantage_B: Tensor
) -> Tensor:
    """Tokens on which the stream acts: its origins, less what has no advantage."""
    tokens = batch.origin(stream.tokens)
    if stream.surrogate in REGULARISERS:
        open_B = torch.ones_like(advantage_B, dtype=torch.bool)
        return tokens & (open_B if stream.gate is None else advantage_B != 0)[:, None]
    tokens = tokens & (keep_BT | ~batch.prefix_mask_BT) & (advantage_B != 0)[:, None]
    if method.groups.truncated == "mask":
        if batch.truncated_B is None:
            raise UserError(f"method '{method.name}' masks truncated rows, so it needs truncated_B")
        sampled = ~batch.prefix_mask_BT & ~batch.demo_mask_BT
        tokens = tokens & ~(batch.truncated_B[:, None] & sampled)
    return tokens


def loss(
    method: Method,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None = None,
    step: int = 0,
    total_steps: int = 1,
    targets: Targets | None = None,
) -> LossOutput:
    """The loss of the rows given, with gradient through ``logp_BT`` (and ``entropy_BT``).

    Without ``targets`` the batch is taken as a whole optimizer step. With the targets of a step
    (sliced to these rows) the result is these rows' share of the step's loss: shares add up.

    Args:
        method: the method, from ``prefix_rft.methods.load``.
        batch: the rows.
        logp_BT: log-probabilities of ``batch.tokens_BT`` under the policy; values outside the
            response may be anything, NaN included.
        entropy_BT: entropies at the same positions, in nats.
        step: optimizer step, for schedules.
        total_steps: steps of the run, the horizon of open schedules.
        targets: the targets of the step that these rows belong to.
    """
    if targets is None:
        targets = prepare(method, batch, entropy_BT, step, total_steps)
    return LossOutput(
        share_of_loss(method, batch, logp_BT, entropy_BT, targets),
        statistics(method, batch, logp_BT, entropy_BT, targets),
    )


def share_of_loss(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> Tensor:
    """What :func:`loss` has as its ``loss``; log-probs of tokens that no stream trains may be
    anything. Arguments are those of :func:`loss`.
    """
    logp_BT, entropy_BT = _full(logp_BT), None if entropy_BT is None else _full(entropy_BT)
    total = logp_BT.new_zeros(())
    for s in range(len(method.streams)):
        value_BT = _value(method, s, batch, logp_BT, entropy_BT, targets)
        value_B = value_BT.sum(1) / targets.row_count_SB[s]
        total = total - targets.scale_S[s] * value_B.sum()
    return total


@torch.no_grad()
def statistics(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> dict[str, tuple[Tensor, Tensor]]:
    """What :func:`loss` has as its ``stats``. Arguments are those of :func:`loss`."""
    logp_BT, entropy_BT = _full(logp_BT), None if entropy_BT is None else _full(entropy_BT)
    stats = _stats(method, batch, logp_BT, entropy_BT, targets)
    for s, stream in enumerate(method.streams):
        acts_BT = targets.acts_SBT[s]
        if stream.weight is not None:
            weight_BT = weight(stream, batch, logp_BT, entropy_BT, acts_BT)
            stats[f"{stream.name}/weight"] = (weight_BT.where(acts_BT, 0.0).sum(), acts_BT.sum())
        if stream.surrogate in ("clip", "cispo"):
            advantage_B1 = targets.advantage_SB[s].to(logp_BT.dtype)[:, None]
            count_clipped(stats, method, stream, batch, logp_BT, advantage_B1, acts_BT)
    return stats


def token_losses(
    method: Method, batch: Batch, logp_BT: Tensor, entropy_BT: Tensor | None, targets: Targets
) -> Tensor:
    """What each token adds to ``loss`` in each stream, shape (S, B, T), with its gradient.

    The sum of all is the loss; the sum of some is the part of a stream, or of tokens of an origin.
    Arguments are those of :func:`loss`.
    """
    logp_BT, entropy_BT = _full(logp_BT), None if entropy_BT is None else _full(entropy_BT)
    losses = []
    for s in range(len(method.streams)):
        value_BT = _value(method, s, batch, logp_BT, entropy_BT, targets)
        losses.append(-targets.scale_S[s] * value_BT / targets.row_count_SB[s][:, None])
    return torch.stack(losses)


def _full(x_BT: Tensor) -> Tensor:
    """At least single precision: sums over a step need more than eight bits."""
    return x_BT.float() if x_BT.dtype in (torch.bfloat16, torch.float16) else x_BT


def _value(
    method: Method,
    s: int,
    batch: Batch,
    logp_BT: Tensor,
    entropy_BT: Tensor | None,
    targets: Targets,
) -> Tensor:
    """Stream ``s`` at each token before its scale, 0 where it does not act; shape (B, T)."""
    # Padding and tokens without advantage never reach an exp: they leave before it, not after.
    stream, acts_BT = method.streams[s], targets.acts_SBT[s]
    advantage_B1 = targets.advantage_SB[s].to(logp_BT.dtype)[:, None]
    value_BT = surrogate(method, stream, batch, logp_BT, entropy_BT, advantage_B1, acts_BT)
    if stream.weight is not None:
        value_BT = value_BT * weight(stream, batch, logp_BT, entropy_BT, acts_BT)
    return value_BT.where(acts_BT, 0.0)


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
    if method.trains("prefix"):
        stats["prefix/kept"] = (targets.keep_BT.sum(), batch.origin(("prefix",)).sum())
    stats["prefix/token_share"] = (batch.prefix_mask_BT.sum(), response.sum())
    stats["trained/token_share"] = (targets.acts_SBT.any(0).sum(), response.sum())
    return stats

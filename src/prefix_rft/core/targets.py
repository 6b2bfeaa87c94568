"""What carries no gradient in an optimizer step: advantages, tokens that are trained, scales.

``prepare`` looks at a whole step and fixes all of it, so that shares of the loss add up whatever
the split into micro-batches and processes.

Shape letters: B rows, T tokens, S streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_rft.core.batch import Batch
from prefix_rft.core.credit import advantages
from prefix_rft.core.method import Method
from prefix_rft.core.parts import DEFAULT_CONST
from prefix_rft.core.schedules import Following
from prefix_rft.core.select import keep_fraction
from prefix_rft.core.stream import REGULARISERS, Stream
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
    followed: Mapping[str, Sequence[float]] | None = None,
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
        followed: what coefficients remember of the metrics that they follow, by the stream.
    """
    coefficient_S = coefficients(method, step, total_steps, followed or {})
    if advantage_SB is None:
        kinds = batch.hybrid_B, batch.demo_B, batch.guided_B
        advantage_SB = advantages(method, batch.reward_B, batch.group_B, *kinds)
    if keep_BT is None:
        keep_BT = select_prefix(method, batch.open_prefix_BT, entropy_BT, step)

    acts_SBT = torch.stack(
        [
            _trained(method, stream, batch, keep_BT, advantage_SB[s], coefficient_S[s])
            for s, stream in enumerate(method.streams)
        ]
    )
    counts = [_count(method, s, batch, a) for s, a in zip(method.streams, acts_SBT, strict=True)]
    Z_S = all_sum(torch.stack([n for n, _ in counts])).tolist()
    const = DEFAULT_CONST if method.normaliser.const is None else method.normaliser.const
    scales = []
    for stream, n, c in zip(method.streams, Z_S, coefficient_S, strict=True):
        aggregation = stream.aggregation or method.normaliser.aggregation
        Z = const if aggregation == "sum" else n * const if aggregation == "sum_over_const" else n
        scales.append(c / Z if Z else 0.0)
    row_count_SB = torch.stack([m for _, m in counts])
    return Targets(tuple(scales), acts_SBT, row_count_SB, advantage_SB, keep_BT)


def coefficients(
    method: Method, step: int, total_steps: int, followed: Mapping[str, Sequence[float]]
) -> list[float]:
    """The coefficient of each stream at a step.

    Args:
        method: the method.
        step: the optimizer step.
        total_steps: steps of the run.
        followed: what coefficients remember of the metrics that they follow, by the stream.
    """
    return [
        s.coefficient.value(followed.get(s.name, ()))
        if isinstance(s.coefficient, Following)
        else s.coefficient.over(total_steps)(step)
        for s in method.streams
    ]


def _count(method: Method, stream: Stream, batch: Batch, acts_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What the stream's normaliser counts here (tokens or rows), and the tokens of each row."""
    aggregation = stream.aggregation or method.normaliser.aggregation
    if stream.counts == "trained":
        counted_BT, rows_B = acts_BT, acts_BT.any(1)
    else:
        counted_BT = batch.origin(stream.counted) & ~_skipped(stream, batch)
        rows_B = batch.rows_with(stream.counted)
    n = (counted_BT if aggregation == "token_mean" else rows_B).sum()
    if aggregation != "seq_mean_token_mean":
        return n, torch.ones_like(rows_B, dtype=torch.int64)
    # A row is averaged over its own tokens, also where the rows counted are others.
    own_BT = counted_BT | (
        batch.origin(stream.tokens) & ~_skipped(stream, batch) & ~rows_B[:, None]
    )
    return n, own_BT.sum(1).clamp(min=1)


def _skipped(stream: Stream, batch: Batch) -> Tensor:
    """The first tokens of each response, which the stream skips."""
    return batch.response_mask_BT.cumsum(1) <= stream.skip


def _trained(
    method: Method,
    stream: Stream,
    batch: Batch,
    keep_BT: Tensor,
    advantage_B: Tensor,
    coefficient: float,
) -> Tensor:
    """Tokens on which the stream acts: its origins, less what has no advantage."""
    tokens = batch.origin(stream.tokens) & ~_skipped(stream, batch)
    if stream.teacher and coefficient == 0.0:
        return torch.zeros_like(tokens)  # its teacher was not asked
    if stream.taught or stream.divergence is not None:
        if batch.taught_MB is None:
            raise UserError(f"stream '{stream.name}' of '{method.name}' needs taught_MB")
        tokens = tokens & batch.taught_MB[method.teacher_of(stream)][:, None]
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

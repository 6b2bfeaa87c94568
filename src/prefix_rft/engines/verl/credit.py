"""From the rollouts of a step to what the update needs of each row, and to metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Method, outcome, select_prefix, step_credit
from prefix_rft.engines.metrics import group_metrics, start_metrics
from prefix_rft.engines.verl.columns import ATTEMPT, PREFIX, REWARD, WHOLE, padded
from prefix_rft.engines.verl.rollouts import VERDICTS
from prefix_rft.rewards.verdict import STATUSES


@dataclass(frozen=True)
class CreditedRows:
    """The rows of a step, those that only fill the batch among them.

    Letters: N rows, T tokens, S streams.

    Attributes:
        mask_NT: bool, response tokens.
        prefix_N: tokens of the demonstration that the row starts from.
        whole_N: bool, whole demonstrations.
        filler_N: bool, rows that fill the batch.
        reward_N: NaN where there is none.
        group_N: group ids.
        advantage_SN: the advantages in every stream.
        dropped_N: bool, rows that take no part.
        truncated_N: bool, rows that ran into the limit.
        attempt_N: how often the row had been sampled before.
        rate_N: solve rate of the sampled rows of the row's group; NaN where none has a reward.
    """

    mask_NT: Tensor
    prefix_N: Tensor
    whole_N: Tensor
    filler_N: Tensor
    reward_N: Tensor
    group_N: Tensor
    advantage_SN: Tensor
    dropped_N: Tensor
    truncated_N: Tensor
    attempt_N: Tensor
    rate_N: Tensor

    @classmethod
    def of(
        cls,
        method: Method,
        data: Any,
        tags: Sequence[Any],
        budget: int,
        eos_ids: Sequence[int],
    ) -> CreditedRows:
        """From verl's columns, once all rows have a reward or none.

        Args:
            method: the method whose rows they are.
            data: ``uid``, ``responses``, ``response_mask`` and our columns of rollouts.
            tags: verl's, of the rows.
            budget: completion budget in tokens.
            eos_ids: tokens that end a completion.
        """
        filler_N = torch.tensor([bool(t.get("is_padding", False)) for t in tags])
        mask_NT = padded(data["response_mask"]).bool()
        length_N = mask_NT.sum(1)
        prefix_N = data[PREFIX].masked_fill(filler_N, 0)
        whole_N = data[WHOLE].bool() & ~filler_N
        reward_N = data[REWARD].masked_fill(filler_N, torch.nan)
        names = [str(name) for name in list(data["uid"])]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        group_N = torch.tensor([number[name] for name in names])
        hybrid_N = (prefix_N > 0) & ~whole_N
        advantage_SN, dropped_N = step_credit(
            method, reward_N, group_N, hybrid_N, whole_N, length_N, budget
        )
        last_N = padded(data["responses"]).gather(1, length_N.clamp(min=1)[:, None] - 1)[:, 0]
        return cls(
            mask_NT,
            prefix_N,
            whole_N,
            filler_N,
            reward_N,
            group_N,
            advantage_SN,
            dropped_N | filler_N,
            ~torch.isin(last_N, torch.tensor(list(eos_ids))),
            data[ATTEMPT].masked_fill(filler_N, 0),
            outcome.solve_rate(reward_N, group_N, ~whole_N, method.groups.solved_above),
        )

    @property
    def hybrid_N(self) -> Tensor:
        """Rows that continue a prefix."""
        return (self.prefix_N > 0) & ~self.whole_N

    def keep(self, method: Method, entropy_NT: Tensor, seed: int) -> Tensor:
        """Prefix tokens that keep their advantage, ranked over all rows of the step."""
        position = torch.arange(self.mask_NT.size(1))
        prefix_NT = (position < self.prefix_N[:, None]) & self.hybrid_N[:, None] & self.mask_NT
        return select_prefix(method, prefix_NT & ~self.dropped_N[:, None], entropy_NT, seed)

    def shown(self, method: Method) -> Tensor:
        """One advantage of each token for verl's own metrics: that of the row's first stream."""
        shown_N = torch.zeros(len(self.mask_NT), dtype=torch.float64)
        for origin, rows in (
            ("policy", self.prefix_N == 0),
            ("continuation", self.hybrid_N),
            ("demonstration", self.whole_N),
        ):
            acting = [s for s, stream in enumerate(method.streams) if origin in stream.tokens]
            if acting:
                shown_N = torch.where(rows, self.advantage_SN[acting[0]], shown_N)
        return shown_N.float()[:, None] * self.mask_NT

    def metrics(self, method: Method) -> dict[str, float]:
        """What the rollouts were, with the names of the TRL engine."""
        real_N = ~self.filler_N
        metrics = {
            "groups/dropped": self.dropped_N[real_N].float().mean().item(),
            "rewards/ungraded": self.reward_N[real_N].isnan().float().mean().item(),
            "completions/clipped_ratio": self.truncated_N[real_N].float().mean().item(),
        }
        changed_N = torch.isin(self.group_N, self.group_N[self.attempt_N > 0])
        metrics |= group_metrics(method, self.rate_N[real_N], changed_N[real_N])
        graded_N = real_N & ~self.reward_N.isnan()
        if bool(graded_N.any()):
            metrics["reward"] = self.reward_N[graded_N].mean().item()
        if method.branches:
            demo_N = self.whole_N[real_N]
            metrics |= start_metrics(method, self.prefix_N[real_N], self.hybrid_N[real_N], demo_N)
        return metrics


def verdict_shares(extras: Sequence[Mapping[str, Any]], filler_N: Tensor) -> dict[str, float]:
    """The share of each status by grader, over the rows that do not only fill the batch.

    Args:
        extras: verl's ``extra_fields`` of the rows, which hold what the graders said.
        filler_N: bool, rows that fill the batch.
    """
    said = [
        json.loads((extra.get("reward_extra_info") or {}).get(VERDICTS, "{}"))
        for extra, filler in zip(extras, filler_N.tolist(), strict=True)
        if not filler
    ]
    shares: dict[str, float] = {}
    for name in dict.fromkeys(name for row in said for name in row):
        counts = Counter(row[name]["status"] for row in said if name in row)
        for status in STATUSES:
            shares[f"verdicts/{name}/{status}"] = counts[status] / counts.total()
    return shares

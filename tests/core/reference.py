"""The objective written from the formulas, one token at a time. Imports nothing of the package."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

PREFIX, SAMPLED, DEMO = "prefix", "sampled", "demo"


@dataclass
class Spec:
    """What a method is, as the papers say it; every field is one switch."""

    demo_only: bool = False
    std: bool = False
    aggregation: str = "token_mean"
    const: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    delta: float | None = None
    beta: float = 0.0
    entropy_coef: float = 0.0
    grouping: str = "one_group"
    prefix_loss: str = "clip"
    keep: float = 0.2
    low: bool = False
    per_row: bool = False
    mask_truncated: bool = False
    static: float = 0.001
    # Deliberate mistakes, for controls.
    mistakes: set[str] = field(default_factory=set)


def kinds(batch: Any) -> list[list[str | None]]:
    """The kind of each token: prefix, sampled, demo, or None."""
    out = []
    B, T = batch.tokens_BT.shape
    for b in range(B):
        row: list[str | None] = []
        for t in range(T):
            if batch.demo_mask_BT[b, t]:
                row.append(DEMO)
            elif batch.prefix_mask_BT[b, t]:
                row.append(PREFIX)
            else:
                row.append(SAMPLED if batch.response_mask_BT[b, t] else None)
        out.append(row)
    return out


def compute(spec: Spec, batch: Any, logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """The loss of a whole step."""
    kind = kinds(batch)
    B, T = batch.tokens_BT.shape
    hybrid = [PREFIX in row for row in kind]
    demo = [DEMO in row for row in kind]
    reward = batch.reward_B.tolist()
    group = batch.group_B.tolist()
    rows = [b for b in range(B) if demo[b] == spec.demo_only]

    def baseline_rows(b: int, policy_only: bool) -> list[float]:
        mates = [o for o in rows if group[o] == group[b] and not math.isnan(reward[o])]
        if policy_only or "hybrid out of the baseline" in spec.mistakes:
            mates = [o for o in mates if not hybrid[o]]
        return [reward[o] for o in mates], mates

    def advantage(b: int, policy_only: bool) -> float:
        values, mates = baseline_rows(b, policy_only)
        if math.isnan(reward[b]) or not values or mates == [b]:
            return 0.0
        a = reward[b] - sum(values) / len(values)
        if spec.std or "std" in spec.mistakes:
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
            a /= math.sqrt(variance) + 1e-6
        return a

    # selection
    scored = [(b, t) for b in rows for t in range(T) if kind[b][t] == PREFIX]
    keep = set(scored)
    if spec.prefix_loss in ("clip", "unclipped", "static"):
        keep = set()
        by_row = [[p for p in scored if p[0] == b] for b in rows]
        per_row = spec.per_row != ("selection scope" in spec.mistakes)
        for pool in by_row if per_row else [scored]:
            ranked = sorted(pool, key=lambda p: entropy[p].item() * (1 if spec.low else -1))
            keep |= set(ranked[: math.ceil(spec.keep * len(pool) - 1e-6)])

    def surrogate(b: int, t: int) -> torch.Tensor:
        lp = logp[b, t]
        if spec.demo_only:
            return lp
        prefix = kind[b][t] == PREFIX
        policy_only = spec.grouping != "one_group"
        a = advantage(b, policy_only)
        if spec.grouping == "prefix_group" and hybrid[b] and not prefix:
            a = 0.0 if math.isnan(reward[b]) else reward[b]
        if prefix:
            if (b, t) not in keep or spec.prefix_loss == "frozen":
                return torch.zeros((), dtype=lp.dtype)
            if spec.prefix_loss == "static":
                return spec.static * lp
        elif spec.mask_truncated and batch.truncated_B[b]:
            return torch.zeros((), dtype=lp.dtype)
        old = lp.detach() if batch.old_logp_BT is None else batch.old_logp_BT[b, t]
        rho = torch.exp(lp - old)
        first = (rho if spec.delta is None else rho.clamp(max=spec.delta)) * a
        unclipped = prefix and (
            spec.prefix_loss == "unclipped" or "prefix not clipped" in spec.mistakes
        )
        if not unclipped:
            first = torch.minimum(first, rho.clamp(1 - spec.epsilon, 1 + spec.epsilon_high) * a)
        return first if batch.weight_BT is None else first * batch.weight_BT[b, t]

    total = torch.zeros((), dtype=logp.dtype)
    counted = {b: [t for t in range(T) if kind[b][t] is not None] for b in rows}
    if "only kept tokens counted" in spec.mistakes:
        counted = {
            b: [t for t in ts if kind[b][t] != PREFIX or (b, t) in keep]
            for b, ts in counted.items()
        }
    n_tokens = sum(map(len, counted.values()))
    for b in rows:
        for t in range(T):
            if kind[b][t] is None:
                continue
            value = surrogate(b, t)
            if spec.beta:
                d = batch.ref_logp_BT[b, t] - logp[b, t]
                k3 = -d if "k1" in spec.mistakes else torch.exp(d) - d - 1
                value = value - spec.beta * k3
            if spec.entropy_coef:
                value = value + spec.entropy_coef * entropy[b, t]
            if spec.aggregation == "token_mean":
                value = value / n_tokens
            elif spec.aggregation == "seq_mean_token_mean":
                value = value / (len(rows) * len(counted[b]))
            else:
                value = value / (len(rows) * spec.const)
            total = total - value
    return total

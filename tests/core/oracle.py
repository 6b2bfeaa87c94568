"""A second opinion on the objective: the papers' sums, one row and one token at a time.

Sources: Prefix-RFT arXiv 2507.01679 v3 (Eq. 3, section 3, A.2), GRPO arXiv 2402.03300 (Eq. 3, 4),
Dr. GRPO arXiv 2503.20783 (section 3.2), PPO arXiv 1707.06347 (Eq. 7), dual clip arXiv 1912.09729.
Imports nothing of the package. Group statistics are exact rational numbers.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

POLICY, PREFIX, CONTINUATION, DEMO = "policy", "prefix", "continuation", "demonstration"


@dataclass
class Row:
    """One sequence; ``kind[t]`` is the origin of token t, None for prompt and padding."""

    kind: list[str | None]
    group: int
    reward: float
    is_demo: bool = False
    truncated: bool = False
    old: list[float] | None = None
    ref: list[float] | None = None
    weight: list[float] | None = None

    @property
    def hybrid(self) -> bool:
        return PREFIX in self.kind

    @property
    def graded(self) -> bool:
        return not math.isnan(self.reward)


@dataclass
class Rule:
    """The choices of a method; ``wrong`` holds deliberate mistakes, for controls."""

    imitation: bool = False
    divide_by_std: bool = False
    grouping: str = "one_group"
    prefix_loss: str = "clip"
    static_weight: float = 0.001
    keep: Fraction = Fraction(1, 5)
    keep_mode: str = "high"
    keep_scope: str = "minibatch"
    aggregation: str = "sum_over_const"
    const: float = 8192.0
    eps_low: float = 0.2
    eps_high: float = 0.2
    delta: float = math.inf
    beta: float = 0.0
    entropy_coef: float = 0.0
    mask_truncated: bool = False
    wrong: frozenset[str] = field(default_factory=frozenset)


def advantage(rule: Rule, rows: list[Row], i: int, token: str) -> float:
    """The advantage of a token of row i."""
    me = rows[i]
    if not me.graded:
        return -1.0 if "ungraded is reward -1" in rule.wrong else 0.0
    if rule.grouping == "prefix_group" and token == CONTINUATION:
        return me.reward
    mates = []
    for j, other in enumerate(rows):
        if other.group == me.group and not other.is_demo:
            if not other.graded:
                continue
            if rule.grouping != "one_group" and other.hybrid:
                continue
            if "prefix rows out of the baseline" in rule.wrong and other.hybrid:
                continue
            mates.append(j)
    if mates in ([], [i]):
        return me.reward if "a singleton keeps its reward" in rule.wrong else 0.0
    mean = sum(Fraction(rows[j].reward) for j in mates) / len(mates)
    centred = Fraction(me.reward) - mean
    if rule.divide_by_std or "std division" in rule.wrong:
        squares = sum((Fraction(rows[j].reward) - mean) ** 2 for j in mates)
        n = len(mates) if "biased std" in rule.wrong else len(mates) - 1
        return float(centred) / (math.sqrt(squares / n) + 1e-6)
    return float(centred)


def kept(rule: Rule, rows: list[Row], entropy: Tensor) -> set[tuple[int, int]]:
    """Prefix tokens that keep their advantage."""
    spots = [(i, t) for i, r in enumerate(rows) for t, k in enumerate(r.kind) if k == PREFIX]
    if rule.prefix_loss == "all" or "no selection" in rule.wrong:
        return set(spots)
    if rule.prefix_loss == "frozen":
        return set()
    by_row = (rule.keep_scope == "row") != ("selection scope swapped" in rule.wrong)
    pools = [[s for s in spots if s[0] == i] for i in range(len(rows))] if by_row else [spots]
    chosen = set()
    for pool in pools:
        pool = sorted(pool, key=lambda s: entropy[s].item(), reverse=rule.keep_mode == "high")
        if "floor instead of ceil" in rule.wrong:
            chosen.update(pool[: math.floor(rule.keep * len(pool))])
        else:
            chosen.update(pool[: math.ceil(rule.keep * len(pool))])
    return chosen


def gain(rule: Rule, rows: list[Row], i: int, t: int, logp: Tensor, keep: set) -> Tensor:
    """What maximising the objective gains at one token, without the regularisers."""
    row, token = rows[i], rows[i].kind[t]
    zero = 0.0 * logp[i, t]
    if token == DEMO:
        return logp[i, t]
    if token == PREFIX and (i, t) not in keep:
        return zero
    if token == PREFIX and rule.prefix_loss == "static":
        return rule.static_weight * logp[i, t]
    if token != PREFIX and rule.mask_truncated and row.truncated:
        return zero
    a = advantage(rule, rows, i, token)
    r = (logp[i, t] - (logp[i, t].item() if row.old is None else row.old[t])).exp()
    if token == PREFIX and "prefix denominator is one" in rule.wrong:
        r = logp[i, t].exp()
    value = r * a
    if r.item() > rule.delta and "no dual clip" not in rule.wrong:
        value = zero + rule.delta * a
    free = token == PREFIX and (rule.prefix_loss == "unclipped" or "free" in rule.wrong)
    if not free:
        inside = min(max(r.item(), 1 - rule.eps_low), 1 + rule.eps_high)
        clipped = r * a if inside == r.item() else zero + inside * a
        if clipped.item() < value.item():
            value = clipped
    return value if row.weight is None else value * row.weight[t]


def step_loss(rule: Rule, rows: list[Row], logp: Tensor, entropy: Tensor) -> Tensor:
    """The loss of a whole optimizer step, to be minimised."""
    keep = kept(rule, rows, entropy)
    mine = [i for i, r in enumerate(rows) if r.is_demo == rule.imitation]
    trained = {i: [t for t, k in enumerate(rows[i].kind) if k is not None] for i in mine}
    counted = dict(trained)
    if "only kept tokens counted" in rule.wrong:
        counted = {
            i: [t for t in ts if rows[i].kind[t] != PREFIX or (i, t) in keep]
            for i, ts in counted.items()
        }
    if "masked tokens not counted" in rule.wrong:
        counted = {i: [] if rows[i].truncated else ts for i, ts in counted.items()}
    if "ungraded rows not counted" in rule.wrong:
        mine = [i for i in mine if rows[i].graded]
    if "empty rows not counted" in rule.wrong:
        mine = [i for i in mine if counted[i]]
    all_tokens = sum(len(counted[i]) for i in mine)
    total = 0.0 * logp[0, 0].nan_to_num(0.0, 0.0, 0.0)
    for i in mine:
        row_sum = 0.0 * total
        for t in trained[i]:
            value = gain(rule, rows, i, t, logp, keep)
            if rule.beta:
                x = rows[i].ref[t] - logp[i, t]
                kl = -x if "k1" in rule.wrong else x.exp() - x - 1
                if "weight on the KL" in rule.wrong:
                    kl = kl * rows[i].weight[t]
                value = value - rule.beta * kl
            if rule.entropy_coef:
                value = value + rule.entropy_coef * entropy[i, t]
            row_sum = row_sum + value
        if rule.aggregation == "token_mean":
            total = total - row_sum / all_tokens
        elif rule.aggregation == "seq_mean_token_mean":
            total = total - row_sum / max(1, len(counted[i])) / len(mine)
        else:
            total = total - row_sum / rule.const / len(mine)
    return total

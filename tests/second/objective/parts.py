"""What formulas are written with: a step's rows, advantages, clips, normalisers, selection.

Group statistics are exact rational numbers. Sources: GRPO arXiv 2402.03300 (Eq. 3, 4), Dr. GRPO
arXiv 2503.20783 (3.2), PPO arXiv 1707.06347 (Eq. 7), dual clip arXiv 1912.09729.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from torch import Tensor

PROMPT, PREFIX, SAMPLED, DEMO, PAD = "prompt", "prefix", "sampled", "demo", "pad"
GUIDED = "guided"
POLICY, HYBRID, WHOLE = "policy row", "hybrid row", "whole demonstration"
TAUGHT = "row from a teacher's prompt"
ROLLOUTS = (POLICY, HYBRID)
ALL = (PREFIX, SAMPLED, DEMO, GUIDED)
OWN, ROLL = (SAMPLED,), (PREFIX, SAMPLED)
ROWS_OF = {PREFIX: (HYBRID,), SAMPLED: ROLLOUTS, DEMO: (WHOLE,), GUIDED: (TAUGHT,)}
"""The rows to which tokens of a kind belong; a rollout without any token is a policy row."""
Gains = dict[tuple[int, int], Tensor]


@dataclass(kw_only=True)
class Step:
    """All rows of one optimizer step; ``kind[i][t]`` says what token t of row i is.

    Attributes:
        logp: log-probabilities of the tokens, shape (B, T), anything outside the responses.
        entropy: entropies before the tokens, shape (B, T), in nats.
        old: log-probabilities under the policy that sampled; the present one if None.
        ref: log-probabilities under the reference.
        weight: a factor of the policy gradient at each token; 1 if None.
        o: options of the method, in the package's names.
        wrong: one deliberate mistake, for controls.
        out: rows that count nowhere.
        context: rows whose prefix is not trained.
        uncounted: tokens that a normaliser leaves out, which none should.
        u: the logarithm of the partition of each example, for ``discriminative``.
        teacher: log-probabilities of the tokens under a teacher.
        taught: rows that it teaches.
        q: probabilities of all tokens under the teacher, and ``p`` the policy's, at each place.
    """

    kind: list[list[str]]
    reward: list[float]
    group: list[int]
    logp: Tensor
    entropy: Tensor
    old: list[list[float]] | None = None
    ref: list[list[float]] = field(default_factory=list)
    weight: list[list[float]] | None = None
    truncated: list[bool] = field(default_factory=list)
    o: dict[str, Any] = field(default_factory=dict)
    at_step: int = 0
    wrong: str = ""
    out: frozenset[int] = frozenset()
    context: frozenset[int] = frozenset()
    uncounted: frozenset[tuple[int, int]] = frozenset()
    u: dict[int, float] = field(default_factory=dict)
    teacher: list[list[float]] = field(default_factory=list)
    taught: list[bool] = field(default_factory=list)
    p: Tensor | None = None
    q: Tensor | None = None

    def __post_init__(self) -> None:
        self.lp = [row.unbind() for row in self.logp]
        self.H = [row.unbind() for row in self.entropy]
        self.zero = 0.0 * self.logp[0, 0].nan_to_num(0.0, 0.0, 0.0)

    def row_kind(self, i: int) -> str:
        if GUIDED in self.kind[i]:
            return TAUGHT
        return WHOLE if DEMO in self.kind[i] else HYBRID if PREFIX in self.kind[i] else POLICY

    def rows(self, *kinds: str) -> list[int]:
        n = range(len(self.kind))
        return [i for i in n if self.row_kind(i) in kinds and i not in self.out]

    def mates(self, i: int, *kinds: str) -> list[int]:
        return [j for j in self.rows(*kinds) if self.group[j] == self.group[i]]

    def at(self, i: int, *kinds: str) -> list[int]:
        return [t for t, k in enumerate(self.kind[i]) if k in kinds and i not in self.out]

    def sampled(self, i: int) -> list[int]:
        """Sampled tokens that may have an advantage."""
        if self.o.get("truncated") == "mask" and self.truncated[i]:
            return []
        return self.at(i, SAMPLED)

    def graded(self, rows: Iterable[int]) -> list[int]:
        return [i for i in rows if not math.isnan(self.reward[i])]

    def groups(self) -> list[int]:
        return sorted(set(self.group))

    def rho(self, i: int, t: int) -> Tensor:
        lp = self.lp[i][t]
        return (lp - (lp.detach() if self.old is None else self.old[i][t])).exp()

    def held(self, x: Tensor) -> Tensor | float:
        """Stop-gradient, unless forgetting it is the mistake."""
        return x if self.wrong == "attached" else x.item()


def advantage(s: Step, i: int, among: list[int], std: bool = False) -> float:
    """``R_i - mean``, over ``std + 1e-6`` (unbiased) if asked; 0 if ungraded or all alone."""
    if math.isnan(s.reward[i]):
        return -1.0 if s.wrong == "ungraded is reward -1" else 0.0
    others = s.graded(among)
    if others in ([], [i]):
        return s.reward[i] if s.wrong == "a singleton keeps its reward" else 0.0
    R = [Fraction(s.reward[j]) for j in others]
    mean = sum(R) / len(R)
    A = float(Fraction(s.reward[i]) - mean)
    if std != (s.wrong == "std"):
        n = len(R) if s.wrong == "biased std" else len(R) - 1
        A /= math.sqrt(sum((r - mean) ** 2 for r in R) / n) + 1e-6
    return A


def ppo(
    s: Step,
    i: int,
    t: int,
    A: float,
    low: float = 0.2,
    high: float | None = None,
    *,
    rho: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """``min(rho A, clip(rho) A)``, with the dual clip's bound if one is given, times the weight."""
    rho = s.rho(i, t) if rho is None else rho
    low = s.o.get("epsilon", low)
    high = s.o.get("epsilon_high", low if high is None else high)
    delta = None if s.wrong == "no dual clip" else s.o.get("delta")
    value = A * (rho if delta is None else rho.clamp(max=delta))
    if clip and s.wrong != "no clip":
        clipped = A * rho.clamp(1 - low, 1 + high)
        value = clipped if clipped.item() < value.item() else value
    return value if s.weight is None else s.weight[i][t] * value


def policy_gradient(
    s: Step, std: bool, kinds: tuple[str, ...] = ROLLOUTS, rows: tuple[str, ...] = ROLLOUTS
) -> Gains:
    """PPO's clipped term of every sampled token, against rows of these kinds in its group."""
    gains: Gains = {}
    if s.wrong == "demo in the baseline":
        kinds = (*kinds, WHOLE)
    for i in s.rows(*rows):
        A = advantage(s, i, s.mates(i, *kinds), std)
        for t in s.sampled(i):
            gains[i, t] = ppo(s, i, t, A)
    return gains


def over(
    s: Step, gains: Gains, counted: tuple[str, ...], how: str, const: float = 8192.0
) -> Tensor:
    """Minus the gains over a normaliser that counts tokens of some kinds, and their rows."""
    how = s.o.get("aggregation", how)
    const = s.o.get("const", const)
    if s.wrong == "normaliser":
        how, const = ("sum_over_const", 3.0) if how == "token_mean" else ("token_mean", 1.0)
    rows = s.rows(*{row for kind in counted for row in ROWS_OF[kind]})
    tokens = {i: sum((i, t) not in s.uncounted for t in s.at(i, *counted)) for i in rows}
    total = s.zero
    for (i, t), gain in gains.items():
        # A row that is not counted is averaged over its own tokens.
        own = tokens[i] if i in tokens else len(s.at(i, s.kind[i][t]))
        Z = {
            "token_mean": float(sum(tokens.values())),
            "seq_mean_token_mean": float(len(rows) * max(1, own)),
            "sum_over_const": len(rows) * const,
            "sum": const,
        }[how]
        total = total - gain / Z
    return total


def extras(
    s: Step,
    kinds: tuple[str, ...],
    how: str,
    beta: float = 0.0,
    coef: float = 0.0,
    const: float = 8192.0,
    groups: set[int] | None = None,
    counted: tuple[str, ...] | None = None,
) -> Tensor:
    """``beta`` KL (k3, arXiv 2402.03300 Eq. 4) less ``coef`` times the entropy, in some groups."""
    beta, coef = s.o.get("beta", beta), s.o.get("entropy_coef", coef)
    gains: Gains = {}
    for i in range(len(s.kind)):
        if groups is not None and s.group[i] not in groups:
            continue
        for t in s.at(i, *kinds) if beta or coef else []:
            gains[i, t] = s.zero
            if beta:
                x = s.ref[i][t] - s.lp[i][t]
                kl = -x if s.wrong == "k1" else x.exp() - x - 1
                if s.wrong == "weight on the KL" and s.weight is not None:
                    kl = kl * s.weight[i][t]
                gains[i, t] = gains[i, t] - beta * kl
            if coef:
                gains[i, t] = gains[i, t] + coef * s.H[i][t]
    return over(s, gains, counted or kinds, how, const)


def most_uncertain(
    s: Step, pools: list[list[tuple[int, int]]], share: float, lowest: bool = False
) -> set[tuple[int, int]]:
    """Of each pool of tokens this share, rounded up, with the highest (lowest) entropies."""
    sign = 1 if lowest != (s.wrong == "lowest entropy") else -1
    chosen = set()
    for pool in pools:
        ranked = sorted(pool, key=lambda x: sign * s.H[x[0]][x[1]].item())
        n = Fraction(str(share)) * len(pool)
        floor = s.wrong == "floor instead of ceil"
        chosen.update(ranked[: math.floor(n) if floor else math.ceil(n)])
    return chosen


Formula = Callable[[Step], Tensor]
FORMULAS: dict[str, Formula] = {}
LAYOUT: dict[str, str] = {}
MISTAKES: dict[str, tuple[str, ...]] = {}


def method(layout: str, *mistakes: str) -> Callable[[Formula], Formula]:
    """Registers a formula under its own name."""

    def register(f: Formula) -> Formula:
        FORMULAS[f.__name__], LAYOUT[f.__name__] = f, layout
        MISTAKES[f.__name__] = (*mistakes, "normaliser")
        return f

    return register

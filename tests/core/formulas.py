"""Every method's loss from its published formula, one row and one token at a time.

Imports nothing of the package. Sources stand at each method; where a paper leaves a constant or a
normaliser open, it is the one that the method's docstring in the package states. ``Step.wrong``
names one deliberate mistake, for controls.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

PROMPT, PREFIX, SAMPLED, DEMO, PAD = "prompt", "prefix", "sampled", "demo", "pad"
POLICY, HYBRID, WHOLE = "policy row", "hybrid row", "whole demonstration"
ROLLOUTS = (POLICY, HYBRID)
ALL = (PREFIX, SAMPLED, DEMO)
Gains = dict[tuple[int, int], Tensor]


@dataclass
class Step:
    """All rows of one optimizer step; ``kind[i][t]`` says what token t of row i is."""

    kind: list[list[str]]
    reward: list[float]
    group: list[int]
    tokens: Tensor
    logits: Tensor
    old: list[list[float]] | None
    ref: list[list[float]]
    truncated: list[bool]
    o: dict[str, Any] = field(default_factory=dict)
    at_step: int = 0
    wrong: str = ""
    out: frozenset[int] = frozenset()
    u: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = self.logits.log_softmax(-1)
        self.logp = table.gather(-1, self.tokens[..., None])[..., 0]
        self.entropy = -(table.exp() * table).sum(-1)
        self.lp = [row.unbind() for row in self.logp]
        self.H = [row.unbind() for row in self.entropy]

    def row_kind(self, i: int) -> str:
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
    others = s.graded(among)
    if math.isnan(s.reward[i]) or others in ([], [i]):
        return 0.0
    R = [Fraction(s.reward[j]) for j in others]
    mean = sum(R) / len(R)
    A = float(Fraction(s.reward[i]) - mean)
    if std != (s.wrong == "std"):
        A /= math.sqrt(sum((r - mean) ** 2 for r in R) / (len(R) - 1)) + 1e-6
    return A


def ppo(s: Step, rho: Tensor, A: float, low: float = 0.2, high: float | None = None) -> Tensor:
    """``min(rho A, clip(rho) A)``, with the dual clip's bound if one is given."""
    low = s.o.get("epsilon", low)
    high = s.o.get("epsilon_high", low if high is None else high)
    delta = s.o.get("delta")
    free = A * (rho if delta is None else rho.clamp(max=delta))
    if s.wrong == "no clip":
        return free
    clipped = A * rho.clamp(1 - low, 1 + high)
    return clipped if clipped.item() < free.item() else free


def over(
    s: Step, gains: Gains, counted: tuple[str, ...], how: str, const: float = 8192.0
) -> Tensor:
    """Minus the gains over a normaliser that counts tokens of some kinds, and rows with them."""
    how = s.o.get("aggregation", how)
    const = s.o.get("const", const)
    if s.wrong == "normaliser":
        how, const = ("sum_over_const", 3.0) if how == "token_mean" else ("token_mean", 1.0)
    tokens = {i: len(s.at(i, *counted)) for i in range(len(s.kind))}
    rows = sum(n > 0 for n in tokens.values())
    total = 0.0 * s.logp[0, 0]
    for (i, t), gain in gains.items():
        Z = {
            "token_mean": float(sum(tokens.values())),
            "seq_mean_token_mean": float(rows * (tokens[i] or len(s.at(i, s.kind[i][t])))),
            "sum_over_const": rows * const,
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
            x = s.ref[i][t] - s.lp[i][t]
            k3 = -x if s.wrong == "k1" else x.exp() - x - 1
            gains[i, t] = coef * s.H[i][t] - beta * k3
    return over(s, gains, counted or kinds, how, const)


Formula = Callable[[Step], Tensor]
FORMULAS: dict[str, Formula] = {}
LAYOUT: dict[str, str] = {}
MISTAKES: dict[str, tuple[str, ...]] = {}


def method(layout: str, *mistakes: str) -> Callable[[Formula], Formula]:
    def register(f: Formula) -> Formula:
        FORMULAS[f.__name__], LAYOUT[f.__name__] = f, layout
        MISTAKES[f.__name__] = (*mistakes, "normaliser")
        return f

    return register


# ---- rewards alone -------------------------------------------------------------------------------

OWN, ROLL = (SAMPLED,), (PREFIX, SAMPLED)


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
            gains[i, t] = ppo(s, s.rho(i, t), A)
    return gains


@method("plain", "std", "no clip")
def grpo(s: Step) -> Tensor:
    """DeepSeekMath Eq. 3: the mean over rows of token means."""
    how = "seq_mean_token_mean"
    return over(s, policy_gradient(s, True), ROLL, how) + extras(s, ROLL, how)


@method("plain", "std", "no clip")
def dr_grpo(s: Step) -> Tensor:
    """arXiv 2503.20783, 3.2: neither std nor length."""
    how = "sum_over_const"
    return over(s, policy_gradient(s, False), ROLL, how) + extras(s, ROLL, how)


@method("plain", "std", "no clip", "symmetric clip", "flat groups kept", "flat advantages dropped")
def dapo(s: Step) -> Tensor:
    """arXiv 2503.14476 Eq. 8 and 11: groups with 0 < right < all, clip 0.2/0.28, token mean."""
    out = set()
    for g in s.groups():
        rows = s.graded([i for i in s.rows(*ROLLOUTS) if s.group[i] == g])
        right = sum(s.reward[i] > 0 for i in rows)
        flat = right in (0, len(rows))
        if s.wrong == "flat advantages dropped":
            flat = len({s.reward[i] for i in rows}) < 2
        if rows and flat and s.wrong != "flat groups kept":
            out |= {i for i, own in enumerate(s.group) if own == g}
    s.out = frozenset(out)
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        A = advantage(s, i, s.mates(i, *ROLLOUTS), True)
        for t in s.sampled(i):
            gains[i, t] = ppo(s, s.rho(i, t), A, 0.2, 0.2 if s.wrong == "symmetric clip" else 0.28)
    return over(s, gains, ROLL, "token_mean") + extras(s, ROLL, "token_mean")


@method("plain", "mean of all", "ratio")
def rloo(s: Step) -> Tensor:
    """arXiv 2402.14740, section 3: a row is one action; the others' mean is its baseline."""
    gains: Gains = {}
    for i in s.graded(s.rows(*ROLLOUTS)):
        others = [j for j in s.graded(s.mates(i, *ROLLOUTS)) if j != i]
        if s.wrong == "mean of all" and others:
            others.append(i)
        A = s.reward[i] - sum(s.reward[j] for j in others) / len(others) if others else 0.0
        for t in s.sampled(i):
            ratio = (s.o.get("ratio") == "old") != (s.wrong == "ratio")
            gains[i, t] = A * (s.rho(i, t) if ratio else s.lp[i][t])
    return over(s, gains, ROLL, "sum_over_const", 1.0) + extras(
        s, ROLL, "sum_over_const", const=1.0
    )


@method("plain", "std", "attached", "clip of PPO", "capped at 1.2")
def cispo(s: Step) -> Tensor:
    """arXiv 2506.13585 Eq. 4: ``sg(clip(rho)) A log pi``; no lower bound, at most 5."""
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        A = advantage(s, i, s.mates(i, *ROLLOUTS), True)
        for t in s.sampled(i):
            low, high = s.o.get("epsilon", 1.0), s.o.get("epsilon_high", 4.0)
            if s.wrong == "capped at 1.2":
                high = 0.2
            w = s.held(s.rho(i, t).clamp(1 - low, 1 + high))
            gains[i, t] = w * A * s.lp[i][t]
            if s.wrong == "clip of PPO":
                gains[i, t] = ppo(s, s.rho(i, t), A)
    return over(s, gains, ROLL, "token_mean") + extras(s, ROLL, "token_mean")


@method("plain", "std", "no clip", "ratio of tokens", "sum in the exponent", "clip of GRPO")
def gspo(s: Step) -> Tensor:
    """arXiv 2507.18071 Eq. 5 and 7: one ratio for a row, the geometric mean over its tokens."""
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        A = advantage(s, i, s.mates(i, *ROLLOUTS), True)
        tokens = s.sampled(i)
        logs = [
            s.lp[i][t] - (s.lp[i][t].detach() if s.old is None else s.old[i][t]) for t in tokens
        ]
        n = 1 if s.wrong == "sum in the exponent" else len(logs)
        for t in tokens:
            row = (torch.stack(logs).sum() / n).exp()
            ratio = s.rho(i, t) if s.wrong == "ratio of tokens" else row
            clip = (0.2, 0.2) if s.wrong == "clip of GRPO" else (3e-4, 4e-4)
            gains[i, t] = ppo(s, ratio, A, *clip)
    how = "seq_mean_token_mean"
    return over(s, gains, ROLL, how) + extras(s, ROLL, how)


@method("plain", "wrong rows too", "all tokens counted", "advantage")
def self_sft(s: Step) -> Tensor:
    """arXiv 2506.23508: likelihood of the solved rollouts, over their own tokens."""
    right = [i for i in s.rows(POLICY) if s.reward[i] > 0]
    if s.wrong == "wrong rows too":
        right = s.graded(s.rows(POLICY))
    if s.o.get("truncated") == "mask":  # a row that is not trained is not counted here
        right = [i for i in right if not s.truncated[i]]
    gains: Gains = {}
    for i in right:
        A = advantage(s, i, s.mates(i, POLICY)) if s.wrong == "advantage" else 1.0
        for t in s.at(i, SAMPLED):
            gains[i, t] = A * s.lp[i][t]
    if s.wrong != "all tokens counted":
        s.out = frozenset(range(len(s.kind))) - frozenset(right)
    return over(s, gains, OWN, "token_mean")


# ---- a demonstration's prefix as context ---------------------------------------------------------


def in_context(s: Step, how: str, among: str = "group", beta: float = 0.0) -> Tensor:
    """GRPO on what was sampled; the prefix is neither trained nor counted."""
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        mates = {
            "group": s.mates(i, *ROLLOUTS),
            "kind": s.mates(i, s.row_kind(i)),
            "batch": s.rows(*ROLLOUTS),
        }["group" if s.wrong == "baseline of the group" else among]
        A = advantage(s, i, mates, True)
        tokens = s.sampled(i)
        if s.wrong == "prefix trained":
            tokens = tokens + s.at(i, PREFIX)
        for t in tokens:
            gains[i, t] = ppo(s, s.rho(i, t), A)
    counted = ROLL if s.wrong == "prefix counted" else OWN
    return over(s, gains, counted, how) + extras(s, OWN, how, beta)


CONTEXT = ("std", "no clip", "prefix trained", "prefix counted")


@method("hint", *CONTEXT)
def bread(s: Step) -> Tensor:
    """arXiv 2506.17211: GRPO from the branching point."""
    return in_context(s, "seq_mean_token_mean")


@method("hint", *CONTEXT)
def adaback(s: Step) -> Tensor:
    """arXiv 2506.18110: GRPO on the rest."""
    return in_context(s, "seq_mean_token_mean")


@method("hint", *CONTEXT, "k1")
def r3(s: Step) -> Tensor:
    """arXiv 2402.05808 with groups for a critic, and KL 0.05."""
    return in_context(s, "seq_mean_token_mean", beta=0.05)


@method("half", *CONTEXT, "baseline of the group")
def pope(s: Step) -> Tensor:
    """arXiv 2601.18779: plain rows against plain ones, guided against guided."""
    return in_context(s, "seq_mean_token_mean", "kind")


@method("hint", *CONTEXT, "baseline of the group")
def questa(s: Step) -> Tensor:
    """arXiv 2507.13266 and its yaml: advantages normalised over the batch."""
    return in_context(s, "token_mean", "batch")


@method("hint", *CONTEXT, "no hint", "hint over all tokens", "k1")
def uft(s: Step) -> Tensor:
    """arXiv 2505.16984: GRPO + 0.001 NLL of the hint + 0.001 KL - 0.001 entropy, masked means."""
    hint: Gains = {}
    for i in s.rows(HYBRID):
        for t in s.at(i, PREFIX):
            hint[i, t] = (0.0 if s.wrong == "no hint" else 0.001) * s.lp[i][t]
    counted = ROLL if s.wrong == "hint over all tokens" else (PREFIX,)
    if hint:
        n = sum(len(s.at(i, *counted)) for i in s.rows(*ROLLOUTS))
        supervised = -sum(hint.values()) / n
    else:
        supervised = 0.0 * s.logp[0, 0]
    s.o = {"beta": 0.001, "entropy_coef": 0.001, **s.o}
    return in_context(s, "token_mean") + supervised


# ---- demonstrations alone ------------------------------------------------------------------------


def likelihood(s: Step, weight: Callable[[int], list[Any]], how: str = "token_mean") -> Tensor:
    """Weighted maximum likelihood of whole demonstrations."""
    gains: Gains = {}
    for i in s.rows(WHOLE):
        tokens = s.at(i, DEMO)
        for t, w in zip(tokens, weight(i), strict=True):
            gains[i, t] = w * s.lp[i][t]
    counted = ALL if s.wrong == "rollouts counted" else (DEMO,)
    return over(s, gains, counted, how)


@method("demo", "rollouts counted")
def sft(s: Step) -> Tensor:
    """Cross-entropy, the mean over all target tokens of the step."""
    return likelihood(s, lambda i: [1.0] * len(s.at(i, DEMO)))


@method("demo", "attached", "no weight", "rollouts counted")
def dft(s: Step) -> Tensor:
    """arXiv 2508.05629: ``sg(pi) log pi``."""
    power = 0.0 if s.wrong == "no weight" else 1.0
    return likelihood(s, lambda i: [s.held(s.lp[i][t].exp() ** power) for t in s.at(i, DEMO)])


@method("demo", "attached", "ratio of the sequence", "no cap")
def iw_sft(s: Step) -> Tensor:
    """arXiv 2507.12856, the authors' IwSFTLoss: ``clamp(exp(mean log pi/pi_ref), 0, 16)``."""

    def weight(i: int) -> list[Any]:
        logs = [s.lp[i][t] - s.ref[i][t] for t in s.at(i, DEMO)]
        mean = torch.stack(logs).sum() / (1 if s.wrong == "ratio of the sequence" else len(logs))
        w = (s.o.get("temperature", 1.0) * mean).exp()
        cap = math.inf if s.wrong == "no cap" else s.o.get("cap", 16.0)
        return [s.held(w.clamp(max=cap))] * len(logs)

    return likelihood(s, weight)


@method("demo", "attached", "no beta in x", "no floor")
def fdiv_sft(s: Step) -> Tensor:
    """``beta phi'(beta log pi/pi_ref)`` for phi = x, x - x^2/4 or x/(1+x); held in 0 to 16."""

    def one(i: int, t: int) -> Any:
        beta = s.o.get("beta", 1.0)
        x = (s.lp[i][t] - s.ref[i][t]) * (1.0 if s.wrong == "no beta in x" else beta)
        kind = s.o.get("divergence", "pearson")
        if kind == "squared_hellinger":
            slope = 1 / (1 + x) ** 2 if x.item() > -1 else x * 0 + math.inf
        else:
            slope = 1 - x / 2 if kind == "pearson" else 0 * x + 1
        floor = -math.inf if s.wrong == "no floor" else s.o.get("floor", 0.0)
        return s.held((beta * slope).clamp(floor, s.o.get("cap", 16.0)))

    return likelihood(s, lambda i: [one(i, t) for t in s.at(i, DEMO)])

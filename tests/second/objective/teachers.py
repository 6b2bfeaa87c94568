"""Methods with a teacher, whose log-probabilities of the sampled tokens, or of all, are given."""

import math
from typing import Any

import torch
from torch import Tensor

from second.objective.parts import (
    ALL,
    DEMO,
    GUIDED,
    ROLL,
    ROLLOUTS,
    TAUGHT,
    WHOLE,
    Gains,
    Step,
    advantage,
    extras,
    method,
    over,
    policy_gradient,
    ppo,
)

SEQUENCE = "seq_mean_token_mean"


def gap(s: Step, i: int, t: int) -> Tensor | float:
    """``log q - log p`` of a token, without gradient."""
    difference = s.teacher[i][t] - s.held(s.lp[i][t])
    return -difference if s.wrong == "direction" else difference


def distilled(s: Step) -> Gains:
    """``rho D`` of every sampled token of the rows that are taught."""
    return {
        (i, t): ppo(s, i, t, gap(s, i, t), clip=s.wrong == "clipped")  # pyright: ignore
        for i in s.rows(*ROLLOUTS)
        if s.taught[i] or s.wrong == "untaught rows"
        for t in s.sampled(i)
    }


@method("plain", "direction", "attached", "clipped", "untaught rows")
def opd(s: Step) -> Tensor:
    """The teacher's log-ratio as advantage, a ratio without a clip, mean over tokens."""
    if s.o.get("limit"):
        raise NotImplementedError
    total = over(s, distilled(s), ROLL, "token_mean") * s.o.get("coef", 1.0)
    if s.o.get("rewards"):
        total = total + over(s, policy_gradient(s, True), ROLL, "token_mean")
    return total + extras(s, ROLL, "token_mean")


@method("plain", "direction", "attached", "clipped", "untaught rows", "std")
def gats(s: Step) -> Tensor:
    """arXiv 2609.37898: GRPO + lambda OPD; before the first update lambda is 1."""
    total = over(s, policy_gradient(s, True), ROLL, SEQUENCE)
    return total + over(s, distilled(s), ROLL, SEQUENCE) + extras(s, ROLL, SEQUENCE)


@method("plain", "direction", "attached", "sign of A", "untaught rows", "one-sided", "std")
def rlsd(s: Step) -> Tensor:
    """arXiv 2604.03128, algorithm 1: ``A ((1-l) + l clip(exp(sign(A) D), .8, 1.2))``."""
    eps, start = s.o.get("eps_w", 0.2), s.o.get("credit", 0.5)
    share = start * max(0.0, 1.0 - s.at_step / s.o.get("steps", 50))
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        A = advantage(s, i, s.mates(i, *ROLLOUTS), True)
        sign = 1.0 if s.wrong == "sign of A" else (A > 0) - (A < 0)
        for t in s.sampled(i):
            w: Tensor | float = 1.0
            if s.taught[i] or s.wrong == "untaught rows":
                D = gap(s, i, t)
                w = (sign * D).exp() if isinstance(D, Tensor) else math.exp(sign * D)
                low = 0.0 if s.wrong == "one-sided" else 1.0 - eps
                w = (
                    w.clamp(low, 1.0 + eps)
                    if isinstance(w, Tensor)
                    else min(max(w, low), 1.0 + eps)
                )
            gains[i, t] = ppo(s, i, t, A * (1.0 - share + share * w), 0.2, 0.28)  # pyright: ignore
    return over(s, gains, ROLL, SEQUENCE) + extras(s, ROLL, SEQUENCE)


@method("plain", "direction", "attached", "untaught rows", "one gate a row", "std")
def sdar(s: Step) -> Tensor:
    """arXiv 2605.15155: GRPO, and .1 sigmoid(5 D) log pi, a mean over all tokens."""
    coef, beta, gains = s.o.get("coef", 0.1), s.o.get("gate_beta", 5.0), {}
    for i in s.rows(*ROLLOUTS):
        for t in s.sampled(i) if s.taught[i] or s.wrong == "untaught rows" else []:
            D = gap(s, i, s.sampled(i)[0] if s.wrong == "one gate a row" else t)
            g = (beta * D).sigmoid() if isinstance(D, Tensor) else 1 / (1 + math.exp(-beta * D))
            gains[i, t] = coef * g * s.lp[i][t]
    total = over(s, policy_gradient(s, True), ROLL, SEQUENCE) + extras(s, ROLL, SEQUENCE)
    options, s.o = s.o, {k: v for k, v in s.o.items() if k not in ("aggregation", "const")}
    total = total + over(s, gains, ROLL, "token_mean")
    s.o = options
    return total


# ---- a divergence over the vocabulary ------------------------------------------------------------


def kl(a: Tensor, b: Tensor) -> Tensor:
    """``KL(a || b)`` of two lists of probabilities, before the sum."""
    return a * (a.log() - b.log())


def distance(s: Step, i: int, t: int, own: dict[str, Any]) -> Tensor:
    """The divergence at a token; ``own`` is the method's, in the package's names."""
    assert s.p is not None
    assert s.q is not None
    o = own | (s.o.get("divergence") or {})
    p, q = s.p[i, t], s.q[i, t] if s.wrong == "attached" else s.q[i, t].detach()
    if o.get("support", "vocabulary") != "vocabulary":
        ranked = (p if o["support"] == "student" else q).detach().argsort(descending=True)
        inside, outside = ranked[: o.get("top", 100)], ranked[o.get("top", 100) :]
        p, q = (
            torch.cat([x[inside], x[outside].sum()[None]])
            if o.get("tail", True) and s.wrong != "no tail" and len(outside)
            else x[inside] / x[inside].sum()
            for x in (p, q)
        )
    alpha = o["alpha"]
    if s.wrong == "direction":
        alpha, p, q = (1.0 - alpha, p, q) if alpha in (0.0, 1.0) else (alpha, q, p)
    if alpha == 0.0:
        parts = kl(q, p)
    elif alpha == 1.0:
        parts = kl(p, q)
    else:
        m = (1.0 - alpha) * p + alpha * q
        # The limit of neither end: at 0 and 1 it would be 0.
        parts = (1.0 - alpha) * kl(p, m) + alpha * kl(q, m)
    cap = o.get("cap")
    if cap is None:
        return parts.sum()
    entry = (o.get("cap_level", "token") == "entry") != (s.wrong == "cap on the other side")
    return parts.clamp(max=cap).sum() if entry else parts.sum().clamp(max=cap)


def followed(
    s: Step, own: dict[str, Any], how: str, skip: int = 0, ratio_cap: float | None = None
) -> Tensor:
    """Minus the divergence on rows that are taught, whose tokens alone are counted."""
    kinds = {i: s.at(i, DEMO) for i in s.rows(WHOLE)} if s.o.get("num_demonstrations") else {}
    kinds |= {i: s.sampled(i) for i in s.rows(*ROLLOUTS)}
    return mean_distance(s, kinds, own, how, skip, ratio_cap)


def mean_distance(
    s: Step,
    kinds: dict[int, list[int]],
    own: dict[str, Any],
    how: str,
    skip: int = 0,
    ratio_cap: float | None = None,
) -> Tensor:
    """The mean over these places of rows, where the teacher teaches them."""
    gains: Gains = {}
    for i, places in kinds.items():
        if not s.taught[i] and s.wrong != "untaught rows":
            continue
        before = len([t for t in s.at(i, *ALL) if t < (places or [0])[0]])
        for n, t in enumerate(places, start=before):
            if n < skip and s.wrong != "nothing skipped":
                continue
            D = distance(s, i, t, own)
            if ratio_cap is not None and s.wrong != "no ratio":
                D = D * min(s.rho(i, t).item(), ratio_cap)
            gains[i, t] = -D if s.weight is None else -D * s.weight[i][t]
    rows = {i for i, _ in gains}
    how = s.o.get("aggregation", how)
    if s.wrong == "normaliser":
        how = "seq_mean_token_mean" if how == "token_mean" else "token_mean"
    total, const = s.zero, s.o.get("const", 8192.0)
    for (i, _), gain in gains.items():
        tokens = sum(j == i for j, _ in gains)
        Z = {
            "token_mean": len(gains),
            "seq_mean_token_mean": len(rows) * tokens,
            "sum_over_const": len(rows) * const,
            "sum": const,
        }[how]
        if s.wrong == "skipped tokens counted":
            Z += skip
        total = total - gain / Z
    return total


BASIC = ("plain", "attached", "untaught rows")


@method(*BASIC, "direction", "nothing skipped", "skipped tokens counted", "no ratio")
def sdft(s: Step) -> Tensor:
    """arXiv 2601.19897: KL(teacher || policy), the first three tokens out of loss and mean."""
    return followed(s, {"alpha": 0.0}, SEQUENCE, s.o.get("skip", 3), s.o.get("ratio_cap", 2.0))


@method(*BASIC, "direction")
def opsd(s: Step) -> Tensor:
    """arXiv 2601.18734, its later release: KL(teacher || policy), a mean over tokens."""
    return followed(s, {"alpha": 0.0}, "token_mean")


@method(*BASIC, "no ratio")
def sdpo(s: Step) -> Tensor:
    """arXiv 2601.20802: Jensen and Shannon's, on the policy's top tokens with a tail."""
    own = {"alpha": 0.5, "support": "student", "top": 100}
    total = followed(s, own, "token_mean", ratio_cap=s.o.get("ratio_cap", 2.0))
    if s.o.get("policy"):
        total = total + s.o["policy"] * over(s, policy_gradient(s, False), ROLL, "token_mean")
    return total


@method("guided", "attached", "untaught rows", "failed rows", "std", "on all rows")
def hdpo(s: Step) -> Tensor:
    """arXiv 2603.23871: GRPO, and JS on the teacher's top 64 of guided rows that are right."""
    own = {"alpha": 0.5, "support": "teacher", "top": 64}
    total = over(s, policy_gradient(s, True), ROLL, SEQUENCE) + extras(s, ROLL, SEQUENCE)
    right = [i for i in s.rows(TAUGHT) if s.reward[i] > 0 or s.wrong == "failed rows"]
    places = {i: s.at(i, GUIDED) for i in right if not truncated(s, i)}
    if s.wrong == "on all rows":
        places |= {i: s.sampled(i) for i in s.rows(*ROLLOUTS)}
    options, s.o = s.o, {k: v for k, v in s.o.items() if k not in ("aggregation", "const")}
    guided = s.o.get("weight", 1.0) * mean_distance(s, places, own, "token_mean")
    s.o = options
    return total + guided


def truncated(s: Step, i: int) -> bool:
    return s.o.get("truncated") == "mask" and s.truncated[i]


@method(*BASIC)
def gkd(s: Step) -> Tensor:
    """arXiv 2306.13649: Jensen and Shannon's, a mean over tokens."""
    return followed(s, {"alpha": 0.5}, "token_mean")

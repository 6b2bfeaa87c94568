"""Methods with a teacher, whose log-probabilities of the sampled tokens are given."""

import math

from torch import Tensor

from second.objective.parts import (
    ROLL,
    ROLLOUTS,
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

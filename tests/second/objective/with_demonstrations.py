"""Methods that train whole demonstrations: alone, beside rewards, or against rollouts."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from second.objective.parts import (
    ALL,
    DEMO,
    OWN,
    POLICY,
    PREFIX,
    ROLL,
    ROLLOUTS,
    SAMPLED,
    WHOLE,
    Gains,
    Step,
    advantage,
    extras,
    method,
    most_uncertain,
    over,
    policy_gradient,
    ppo,
)

CONST = "sum_over_const"


def nll(s: Step, rows: list[int]) -> Gains:
    """``log pi`` of the demonstration tokens of these rows."""
    return {(i, t): s.lp[i][t] for i in rows for t in s.at(i, DEMO)}


def times(c: float, gains: Gains) -> Gains:
    return {k: c * v for k, v in gains.items()}


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


# ---- demonstrations and rewards -----------------------------------------------------------------


@method("demo", "std", "clip", "demo out of the baseline", "denominator old", "no shaping",
        "rollouts counted alone")  # fmt: skip
def luffy(s: Step) -> Tensor:
    """arXiv 2504.14945 and its code: ``A pi/pi_old`` of rollouts without clip, ``A f(pi)`` of the
    demonstration, ``R - mean`` over both; entropy 0.001."""
    kinds = ROLLOUTS if s.wrong == "demo out of the baseline" else (*ROLLOUTS, WHOLE)
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS, WHOLE):
        A = advantage(s, i, s.mates(i, *kinds))
        for t in s.sampled(i):
            gains[i, t] = ppo(s, i, t, A) if s.wrong == "clip" else A * s.rho(i, t)
        for t in s.at(i, DEMO):
            x = s.rho(i, t) if s.wrong == "denominator old" else s.lp[i][t].exp()
            gamma = s.o.get("gamma", 0.1)
            shaped = x if gamma is None or s.wrong == "no shaping" else x / (x + gamma)
            gains[i, t] = A * shaped
    counted = ROLL if s.wrong == "rollouts counted alone" else ALL
    return over(s, gains, counted, CONST) + extras(s, ALL, CONST, coef=0.001)


@method("demo", "std", "attached", "sign of H", "demo out of the baseline", "own baseline",
        "denominator old", "no weight on right rows", "wrong rows left out")  # fmt: skip
def srft(s: Step) -> Tensor:
    """arXiv 2506.19767 v1 Eq. 5 to 13, all terms over one normaliser; H of the row."""

    def weight(i: int, t: int, scale: float, sign: float) -> Tensor | float:
        mean = torch.stack([s.H[i][u] for u in s.at(i, s.kind[i][t])]).mean()
        H = s.H[i][t] if s.o.get("entropy_level") == "token" else mean
        return s.held(scale * ((-sign if s.wrong == "sign of H" else sign) * H).exp())

    kinds = ROLLOUTS if s.wrong == "demo out of the baseline" else (*ROLLOUTS, WHOLE)
    sft: Gains = {}
    off: Gains = {}
    own: Gains = {}
    for i in s.rows(WHOLE):
        A = advantage(s, i, s.mates(i, *kinds), True)
        for t in s.at(i, DEMO):
            sft[i, t] = weight(i, t, s.o.get("sft_weight", 0.5), -1.0) * s.lp[i][t]
            r = s.rho(i, t) if s.wrong == "denominator old" else s.lp[i][t].exp()
            gamma = s.o.get("gamma")
            off[i, t] = A * (r if gamma is None else r / (r + gamma))
    for i in s.graded(s.rows(POLICY)):
        for t in s.sampled(i):
            if s.wrong == "own baseline":
                own[i, t] = advantage(s, i, s.mates(i, *kinds), True) * s.lp[i][t]
            elif s.reward[i] > 0:
                w = weight(i, t, s.o.get("positive_weight", 0.1), 1.0)
                own[i, t] = (1.0 if s.wrong == "no weight on right rows" else w) * s.lp[i][t]
            else:
                own[i, t] = (0.0 if s.wrong == "wrong rows left out" else -1.0) * s.lp[i][t]
    terms = sum(over(s, gains, ALL, CONST) for gains in (sft, off, own))
    return terms + extras(s, ALL, CONST)


@method("demo", "std", "clip", "demo in the baseline", "one normaliser", "no demonstration")
def relift(s: Step) -> Tensor:
    """arXiv 2506.07527 and its code: ``A pi/pi_old``, no std, no clip, entropy 0.001; SFT over its
    own tokens."""
    kinds = (*ROLLOUTS, WHOLE) if s.wrong == "demo in the baseline" else ROLLOUTS
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        A = advantage(s, i, s.mates(i, *kinds))
        for t in s.sampled(i):
            gains[i, t] = ppo(s, i, t, A) if s.wrong == "clip" else A * s.rho(i, t)
    sft = times(0.0 if s.wrong == "no demonstration" else 1.0, nll(s, s.rows(WHOLE)))
    rl = over(s, gains, ROLL, CONST) + extras(s, ROLL, CONST, coef=0.001)
    if s.wrong == "one normaliser":
        return rl + over(s, sft, (DEMO,), CONST)
    return rl - sum(sft.values()) / max(1, len(sft))


def switched(s: Step, rl: Gains, sft: Gains, is_rl: dict[int, bool], coef: float) -> Tensor:
    """Each group's part of one of the two losses over one normaliser; groups without any reward
    have neither. What is regularised are the rollouts that RL trains."""
    gains: Gains = {}
    for g, chosen in is_rl.items():
        losses = [rl if chosen != (s.wrong == "gate swapped") else sft]
        for loss in [rl, sft] if s.wrong == "both" else losses:
            gains.update({k: v for k, v in loss.items() if s.group[k[0]] == g})
    open_groups = {g for g, chosen in is_rl.items() if chosen}
    if s.wrong == "all rollouts regularised":
        open_groups = set(s.groups())
    more = extras(s, OWN, CONST, coef=coef, groups=open_groups, counted=ALL)
    return over(s, gains, ALL, CONST) + more


def own_rewards(s: Step) -> dict[int, list[float]]:
    """What the rollouts of each group got, where any got anything."""
    rewards: dict[int, list[float]] = {}
    for i in s.graded(s.rows(POLICY)):
        rewards.setdefault(s.group[i], []).append(s.reward[i])
    return rewards


@method("demo", "std", "clip", "gate swapped", "at the gate", "both", "demo in the baseline",
        "all rollouts regularised")  # fmt: skip
def hpt(s: Step) -> Tensor:
    """arXiv 2509.04419 and its code: accuracy > gate is RL without std and clip, else the rollouts
    give way to SFT of the demonstration; entropy 0.001."""
    rl: Gains = {}
    kinds = (POLICY, WHOLE) if s.wrong == "demo in the baseline" else (POLICY,)
    for i in s.rows(POLICY):
        A = advantage(s, i, s.mates(i, *kinds))
        for t in s.sampled(i):
            rl[i, t] = ppo(s, i, t, A) if s.wrong == "clip" else A * s.rho(i, t)
    sft = times(s.o.get("sft_coef", 1.0), nll(s, s.rows(WHOLE)))
    is_rl = {}
    for g, R in own_rewards(s).items():
        accuracy, gate = sum(r > 0 for r in R) / len(R), s.o.get("gate", 0.0)
        is_rl[g] = accuracy > gate or (s.wrong == "at the gate" and accuracy == gate)
    return switched(s, rl, sft, is_rl, 0.001)


@method("micro", "std", "clip", "attached", "no weight", "demo out of the baseline",
        "the row's advantage", "every prefix", "rollouts counted alone")  # fmt: skip
def trapo(s: Step) -> Tensor:
    """arXiv 2512.17636's code: ``A pi/pi_old`` of what is sampled, ``R - mean`` over all rows;
    ``sg(min(pi/0.1, 1)) log pi`` of demonstrations and prefixes, where they count; entropy 0.001.
    """
    kinds = ROLLOUTS if s.wrong == "demo out of the baseline" else (*ROLLOUTS, WHOLE)
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS, WHOLE):
        A = advantage(s, i, s.mates(i, *kinds))
        for t in s.sampled(i):
            gains[i, t] = ppo(s, i, t, A) if s.wrong == "clip" else A * s.rho(i, t)
        shut = i in s.context and s.wrong != "every prefix"
        for t in [] if shut else s.at(i, PREFIX, DEMO):
            p = s.lp[i][t].exp()
            W = (p / s.o.get("at", 0.1)).clamp(max=1.0)
            gain = s.lp[i][t] if s.wrong == "no weight" else s.held(W) * s.lp[i][t]
            gains[i, t] = A * gain if s.wrong == "the row's advantage" else gain
    counted = ROLL if s.wrong == "rollouts counted alone" else ALL
    return over(s, gains, counted, CONST) + extras(s, ALL, CONST, coef=0.001)


@method("demo", "std", "no clip", "gate swapped", "both", "demo in the baseline", "gate on the sum")
def superrl(s: Step) -> Tensor:
    """arXiv 2506.01096: ``(1-c) L_SFT + c L_PG``, ``c = 1[max R > 0]``."""
    rl = policy_gradient(s, True, (POLICY,), (POLICY,))
    sft = times(s.o.get("sft_coef", 1.0), nll(s, s.rows(WHOLE)))
    on_sum = s.wrong == "gate on the sum"
    is_rl = {g: sum(R) > 1.0 if on_sum else max(R) > 0 for g, R in own_rewards(s).items()}
    return switched(s, rl, sft, is_rl, 0.0)


@method("demo", "std", "no clip", "attached", "phi is p", "shares swapped", "demo in the baseline",
        "one normaliser")  # fmt: skip
def chord(s: Step) -> Tensor:
    """arXiv 2508.11408: ``(1-mu) L_GRPO + mu L_SFT``, phi = sg(p(1-p)), each its own token mean."""
    phi = s.o.get("phi", True)
    mu = s.o.get("mu", 0.1)
    if not phi and "mu" not in s.o:  # CHORD-mu: a cosine from 0.9 to 0.05 in 200 steps
        mu = 0.05 + 0.85 * (1 + math.cos(math.pi * min(s.at_step, 200) / 200)) / 2
    if s.wrong == "shares swapped":
        mu = 1 - mu
    sft = nll(s, s.rows(WHOLE))
    if phi:
        for (i, t), lp in sft.items():
            p = lp.exp()
            sft[i, t] = s.held(p if s.wrong == "phi is p" else p * (1 - p)) * lp
    rl, how = policy_gradient(s, True, ROLLOUTS), "token_mean"
    if s.wrong == "one normaliser":
        return over(s, {**times(1 - mu, rl), **times(mu, sft)}, ALL, how)
    return (1 - mu) * over(s, rl, OWN, how) + mu * over(s, sft, (DEMO,), how) + extras(s, OWN, how)


@method("demo", "std", "no clip", "demo in the baseline", "own normalisers")
def rl_sft(s: Step) -> Tensor:
    """'RL w/ SFT loss' of arXiv 2504.14945: baseline of the rollouts alone; one normaliser."""
    rl = policy_gradient(s, False, (POLICY,), (POLICY,))
    sft = times(s.o.get("sft_coef", 1.0), nll(s, s.rows(WHOLE)))
    more = extras(s, ROLL, CONST)
    if s.wrong == "own normalisers":
        return over(s, rl, ROLL, CONST) + over(s, sft, (DEMO,), CONST) + more
    return over(s, {**rl, **sft}, ALL, CONST) + more


@method("demo", "std", "no clip", "all tokens", "lowest entropy", "ranked together",
        "kept alone counted", "demo in the baseline")  # fmt: skip
def mifo(s: Step) -> Tensor:
    """arXiv 2510.04454: GRPO; SFT on the 20 % of each demonstration with the highest entropy."""
    sft = nll(s, s.rows(WHOLE))
    pools = [[k for k in sft if k[0] == i] for i in s.rows(WHOLE)]
    if s.wrong == "ranked together":
        pools = [list(sft)]
    share = 1.0 if s.wrong == "all tokens" else s.o.get("entropy_keep", 0.2)
    keep = most_uncertain(s, pools, share)
    n = len(keep) if s.wrong == "kept alone counted" else len(sft)
    how = "token_mean"
    rl = over(s, policy_gradient(s, True), ROLL, how) + extras(s, ROLL, how)
    return rl - sum(sft[k] for k in keep) / max(1, n)


# ---- contrasts -----------------------------------------------------------------------------------


def pairs(s: Step) -> list[tuple[int, int, list[int]]]:
    """(group, demonstration, negatives) of each group that has both."""
    found = []
    for g in s.groups():
        demos = [i for i in s.rows(WHOLE) if s.group[i] == g]
        negatives = [i for i in s.rows(POLICY) if s.group[i] == g]
        if demos and negatives:
            found.append((g, demos[0], negatives))
    return found


def of_row(s: Step, i: int) -> tuple[Tensor, float, int]:
    """Sum of log-probs, the reference's sum, and length of a row."""
    tokens = s.at(i, DEMO, SAMPLED)
    sums = torch.stack([s.lp[i][t] for t in tokens]).sum(), sum(s.ref[i][t] for t in tokens)
    return *sums, len(tokens)


@method("contrast", "attached", "u stays", "no reference", "sum of negatives", "demo alone")
def discriminative(s: Step) -> Tensor:
    """arXiv 2502.18679: ``-log pi(y) + (1/B) sum_j sg(exp(s_j - u)) log pi(y_j)``, the mean over
    demonstrations; ``u <- log((1-gamma) e^u + gamma mean_j e^s_j)`` of each example."""
    averaged = s.o.get("averaged", False)
    tau, gamma = (0.3, 0.9) if averaged else (1.0, 0.85)
    tau, gamma = s.o.get("tau", tau), s.o.get("gamma", gamma)
    total = s.zero
    for g, y, negatives in pairs(s):
        seq, score = {}, {}
        for i in (y, *negatives):
            logp, ref, n = of_row(s, i)
            seq[i] = logp / n if averaged else logp
            score[i] = seq[i] / tau - (0.0 if averaged or s.wrong == "no reference" else ref)
        B = len(negatives)
        wbar = sum(math.exp(score[j].item()) for j in negatives) / B
        u = math.log((1 - gamma) * math.exp(s.u.get(g, 0.0)) + gamma * wbar)
        if s.wrong == "u stays":
            u = s.u.get(g, 0.0)
        s.u[g] = u
        total = total - seq[y]
        for j in negatives if s.wrong != "demo alone" else []:
            total = total + s.held((score[j] - u).exp()) * seq[j] / (
                1 if s.wrong == "sum of negatives" else B
            )
    return total / (1.3 if s.wrong == "normaliser" else 1.0) / len(s.rows(WHOLE))


@method("contrast", "hinge", "no reference", "mean over tokens", "pairs summed")
def irft(s: Step) -> Tensor:
    """arXiv 2405.17888 (one stage: SPIN): ``-log sigmoid(beta [log pi/pi_k (y) - log pi/pi_k
    (y')])``, literally; the mean over pairs, then over demonstrations."""
    beta = s.o.get("beta_contrast", 0.1)
    total = s.zero
    for _, y, negatives in pairs(s):
        gain = {}
        for i in (y, *negatives):
            logp, ref, n = of_row(s, i)
            gain[i] = logp - (0.0 if s.wrong == "no reference" else ref)
            if s.wrong == "mean over tokens":
                gain[i] = gain[i] / n
        for j in negatives:
            d = beta * (gain[y] - gain[j])
            one = (1 - d).relu() if s.wrong == "hinge" else -torch.nn.functional.logsigmoid(d)
            total = total + one / (1 if s.wrong == "pairs summed" else len(negatives))
    return total / (1.3 if s.wrong == "normaliser" else 1.0) / len(s.rows(WHOLE))

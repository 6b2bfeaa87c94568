"""More of ``formulas``: demonstrations and rewards in one loss, and contrasts; and random steps.

Imports nothing of the package.
"""

import math
import random

import torch
from formulas import (
    ALL,
    DEMO,
    HYBRID,
    OWN,
    PAD,
    POLICY,
    PREFIX,
    PROMPT,
    ROLL,
    ROLLOUTS,
    SAMPLED,
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
from torch import Tensor

CONST = "sum_over_const"


def nll(s: Step, rows: list[int]) -> Gains:
    """``log pi`` of the demonstration tokens of these rows."""
    return {(i, t): s.lp[i][t] for i in rows for t in s.at(i, DEMO)}


def times(c: float, gains: Gains) -> Gains:
    return {k: c * v for k, v in gains.items()}


@method("one", "std", "no clip", "hybrid out of the baseline", "denominator 1", "no selection",
        "lowest entropy", "prefix frozen", "only kept counted")  # fmt: skip
def prefix_rft(s: Step) -> Tensor:
    """arXiv 2507.01679 v3 Eq. 3: one ratio and one advantage for prefix and continuation; of the
    prefix tokens of the step only the 20 % with the highest entropy (section 3)."""
    pool = [(i, t) for i in s.rows(HYBRID) for t in s.at(i, PREFIX)]
    sign = 1 if s.wrong == "lowest entropy" else -1
    pool.sort(key=lambda x: sign * s.H[x[0]][x[1]].item())
    keep = set(pool[: math.ceil(0.2 * len(pool) - 1e-9)])
    if s.wrong == "no selection":
        keep = set(pool)
    if s.wrong == "prefix frozen":
        keep = set()
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        kinds = (POLICY,) if s.wrong == "hybrid out of the baseline" else ROLLOUTS
        A = advantage(s, i, s.mates(i, *kinds))
        for t in s.sampled(i) + [t for t in s.at(i, PREFIX) if (i, t) in keep]:
            one = s.wrong == "denominator 1" and s.kind[i][t] == PREFIX
            gains[i, t] = ppo(s, s.lp[i][t].exp() if one else s.rho(i, t), A)
    counted = OWN if s.wrong == "only kept counted" else ROLL
    return over(s, gains, counted, "token_mean" if counted == OWN else CONST) + extras(
        s, ROLL, CONST
    )


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
            gains[i, t] = ppo(s, s.rho(i, t), A) if s.wrong == "clip" else A * s.rho(i, t)
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
            gains[i, t] = ppo(s, s.rho(i, t), A) if s.wrong == "clip" else A * s.rho(i, t)
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
            rl[i, t] = ppo(s, s.rho(i, t), A) if s.wrong == "clip" else A * s.rho(i, t)
    sft = times(s.o.get("sft_coef", 1.0), nll(s, s.rows(WHOLE)))
    is_rl = {}
    for g, R in own_rewards(s).items():
        accuracy, gate = sum(r > 0 for r in R) / len(R), s.o.get("gate", 0.0)
        is_rl[g] = accuracy > gate or (s.wrong == "at the gate" and accuracy == gate)
    return switched(s, rl, sft, is_rl, 0.001)


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
    sft, keep = nll(s, s.rows(WHOLE)), set()
    pools = [[k for k in sft if k[0] == i] for i in s.rows(WHOLE)]
    for pool in [list(sft)] if s.wrong == "ranked together" else pools:
        sign = 1 if s.wrong == "lowest entropy" else -1
        ranked = sorted(pool, key=lambda x: sign * s.H[x[0]][x[1]].item())
        share = 1.0 if s.wrong == "all tokens" else s.o.get("entropy_keep", 0.2)
        keep |= set(ranked[: math.ceil(share * len(pool) - 1e-9)])
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
    total = 0.0 * s.logp[0, 0]
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
    total = 0.0 * s.logp[0, 0]
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


# ---- random steps --------------------------------------------------------------------------------

NAN = float("nan")
REWARDS = (
    [1.0, 0.0, 0.0, 0.0],  # right at a rate of 1/4
    [1.0, 0.5, 1.0],  # all right, not flat
    [0.0, 0.0, 0.0],
    [1.0, NAN, 0.0, 0.5],
    [1.0],  # alone
    [-1.0, 0.0, -0.5],  # all wrong, not flat
    [1.0, 1.0],
    [NAN, NAN],
)
DEMOS = {
    "demo": {0: 1, 1: 1, 2: 1, 3: 2, 5: 1, 7: 1, 8: 1},  # not 4 and 6; 8 has nothing else
    "contrast": {0: 1, 1: 1, 2: 1, 3: 1, 5: 1, 8: 1},
    "everything": {0: 1, 1: 1, 2: 1, 3: 2, 5: 1, 7: 1, 8: 1},
}
WITH_PREFIX = {
    "one": {0: 1, 1: 1, 2: 1, 3: 1, 5: 1},
    "half": {0: 2, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1},
    "hint": {0: 4, 1: 3, 2: 3, 3: 4, 4: 1},
    "everything": {0: 2, 1: 1, 3: 2, 5: 2},
}


def make(layout: str, seed: int, old: bool = True, square: bool = False) -> Step:
    """Rows of ragged lengths in shuffled groups, some with a prompt token inside the tensors.

    ``square`` pads them until there are as many positions as rows.
    """
    rng = random.Random(f"{layout}:{seed}")
    rows: list[tuple[list[str], float, int]] = []
    for g, rewards in enumerate([*REWARDS, []]):
        hybrid = WITH_PREFIX.get(layout, {}).get(g, 0)
        length = rng.randint(1, 4)  # a group shares its hint
        for n, reward in enumerate(rewards):
            prefix = [PREFIX] * length if n < hybrid else []
            rows.append(([*prefix, *[SAMPLED] * rng.randint(1, 5)], reward, g))
        for _ in range(DEMOS.get(layout, {}).get(g, 0)):
            reward = rng.choice([1.0, 1.0, 0.5, NAN]) if g else 1.0
            rows.append(([DEMO] * rng.randint(2, 9), reward, g))
    rng.shuffle(rows)
    kinds = [[PROMPT] * (rng.random() < 0.3) + kind for kind, _, _ in rows]
    T = len(kinds) if square else max(map(len, kinds))
    kinds = [row + [PAD] * (T - len(row)) for row in kinds]
    dice = torch.Generator().manual_seed(seed)
    B = len(rows)
    logits = 1.5 * torch.randn(B, T, 7, generator=dice, dtype=torch.float64)
    tokens = torch.randint(0, 7, (B, T), generator=dice)
    noise = torch.randn(2, B, T, generator=dice, dtype=torch.float64)
    step = Step(
        kinds,
        [reward for _, reward, _ in rows],
        [3 * g - 2 for _, _, g in rows],
        tokens,
        logits.requires_grad_(),
        None,
        [],
        [rng.random() < 0.3 for _ in rows],
    )
    logp = step.logp.detach()
    step.ref = (logp + 0.5 * noise[0]).tolist()
    step.old = (logp + 0.3 * noise[1]).tolist() if old else None
    return step

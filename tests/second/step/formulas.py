"""Every method's loss of a training step. A formula takes its constants as keyword arguments: a
control gives it a wrong one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from second.step.update import (
    ALL,
    ROLLOUT,
    Row,
    Update,
    advantage,
    per,
    ppo,
    priced,
    row_means,
    selected,
    tokens,
    total,
)

# ---- demonstrations and rewards ------------------------------------------------------------------


def luffy(
    u: Update,
    gamma: float = 0.1,
    base: Sequence[str] = ALL,
    entropy: float = 1e-3,
    cut: Sequence[str] = (),
    buffer: int = 0,
    eos: int = 1,
) -> Tensor:
    """A pi/pi_old on rollouts, A pi/(pi + gamma) on demonstrations, one baseline, no std; rows of
    the kinds ``cut`` have no gain if they ran into the limit."""
    gains = []
    for i, row in enumerate(u.rows):
        mates = [priced(m, u.const, buffer) for m in u.mates(i, *base)]
        A, p = advantage(priced(row, u.const, buffer), mates), u.lp[i].exp()
        if row.kind in cut and row.completion[-1] != eos:
            A = 0.0
        gains.append(A * (p / (p + gamma) if row.whole else u.ratio(i)) + entropy * u.H[i])
    return per(len(u.rows) * u.const, gains)


def trapo(
    u: Update,
    at: float = 0.1,
    base: Sequence[str] = ALL,
    entropy: float = 1e-3,
    context: Sequence[int] = (4,),
    detach: bool = True,
) -> Tensor:
    """min(p/.1, 1) log pi of what is given of demonstrations, but for the prefixes of rows in these
    places; A pi/pi_old of the rest, one baseline, no std."""
    gains = []
    for i, row in enumerate(u.rows):
        A = advantage(row, u.mates(i, *base))
        p = u.lp[i].detach().exp() if detach else u.lp[i].exp()
        given = (p / at).clamp(max=1.0) * u.lp[i] * (row.whole or row.place not in context)
        n = len(row.completion) if row.whole else row.prefix
        gains.append(torch.cat([given[:n], (A * u.ratio(i))[n:]]) + entropy * u.H[i])
    return per(len(u.rows) * u.const, gains)


def srft(u: Update, sign: float = -1.0, scale: float = 0.1, detach: bool = True) -> Tensor:
    """0.5 exp(-H) SFT + A pi of demonstrations; 0.1 exp(H) log pi of right rows, - of wrong."""
    gains = []
    for i, row in enumerate(u.rows):
        H = u.H[i].mean().detach() if detach else u.H[i].mean()
        if row.whole:
            A = advantage(row, u.mates(i, *ALL), "std")
            gains.append(0.5 * (sign * H).exp() * u.lp[i] + A * u.lp[i].exp())
        elif not math.isnan(row.reward):
            gains.append((scale * H.exp() if row.reward > 0 else -1.0) * u.lp[i])
    return per(len(u.rows) * u.const, gains)


def hpt(u: Update, gate: float = 0.0, entropy: float = 1e-3, count: Sequence[str] = ALL) -> Tensor:
    """A pi/pi_old and entropy where rollouts of the prompt are solved, else log pi of the
    demonstration."""
    gains = []
    for i, row in enumerate(u.rows):
        solves = u.rate(i, "own") > gate
        if row.whole and not solves:
            gains.append(u.lp[i])
        elif not row.whole and solves:
            gains.append(advantage(row, u.mates(i, "own")) * u.ratio(i) + entropy * u.H[i])
    return per(len(u.of(*count)) * u.const, gains)


def superrl(u: Update, how: str = "std", both: bool = False) -> Tensor:
    """PPO where a rollout of the prompt is rewarded, log pi of the demonstration where none is."""
    gains = []
    for i, row in enumerate(u.rows):
        solves = u.rate(i, "own") > 0
        if row.whole and (both or not solves):
            gains.append(u.lp[i])
        elif not row.whole and solves:
            gains.append(ppo(u.ratio(i), advantage(row, u.mates(i, "own"), how)))
    return per(len(u.rows) * u.const, gains)


def rl_sft(u: Update, base: Sequence[str] = ("own",), weight: float = 1.0) -> Tensor:
    """PPO with R - mean over rollouts alone, plus log pi of demonstrations."""
    gains = [
        weight * u.lp[i] if row.whole else ppo(u.ratio(i), advantage(row, u.mates(i, *base)))
        for i, row in enumerate(u.rows)
    ]
    return per(len(u.rows) * u.const, gains)


def chord(
    u: Update,
    mu: float = 0.1,
    detach: bool = True,
    base: Sequence[str] = ROLLOUT,
    end: float | None = None,
) -> Tensor:
    """(1 - mu) PPO + mu p(1-p) log pi, each a mean over its own tokens; with ``end`` mu goes there
    in a straight line, and the factor p(1-p) is not there."""
    mu = mu if end is None else mu + (end - mu) * u.step / u.total
    own, demos = u.of(*ROLLOUT), u.of("demo")
    rl = [ppo(u.ratio(i), advantage(u.rows[i], u.mates(i, *base), "std")) for i in own]
    sft = []
    for i in demos:
        p = u.lp[i].detach().exp() if detach else u.lp[i].exp()
        sft.append((p * (1 - p) if end is None else 1.0) * u.lp[i])
    return (1 - mu) * per(tokens(u, own), rl) + mu * per(tokens(u, demos), sft)


def after_prefix(u: Update, how: str, base: Callable[[int], Sequence[Row]]) -> list[Tensor]:
    """PPO on the sampled tokens of each rollout: what a prefix is context of."""
    return [
        ppo(u.ratio(i)[u.rows[i].prefix :], advantage(u.rows[i], base(i), how))
        for i in u.of(*ROLLOUT)
    ]


def uft(u: Update, hint: float = 1e-3, beta: float = 1e-3, entropy: float = 1e-3) -> Tensor:
    """PPO behind a hint, log pi of the hint, k3 to the reference, entropy; token means."""
    rl = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT))
    for n, i in enumerate(u.of(*ROLLOUT)):
        k = u.rows[i].prefix
        rl[n] = rl[n] - beta * u.kl(i)[k:] + entropy * u.H[i][k:]
    hints = [u.lp[i][: u.rows[i].prefix] for i in u.of("hybrid")]
    return per(sum(map(len, rl)), rl) + hint * per(sum(map(len, hints)), hints)


def relift(u: Update, entropy: float = 1e-3, how: str = "mean") -> Tensor:
    """A pi/pi_old; in a step of demonstrations the mean of -log pi over its tokens."""
    demos = u.of("demo")
    if demos:
        assert len(demos) == len(u.rows)
        return per(tokens(u, demos), [u.lp[i] for i in demos])
    gains = [
        advantage(row, u.mates(i, *ROLLOUT), how) * u.ratio(i) + entropy * u.H[i]
        for i, row in enumerate(u.rows)
    ]
    return per(len(u.rows) * u.const, gains)


def mifo(u: Update, keep: float = 0.2, lowest: bool = False) -> Tensor:
    """PPO, token mean; in a step of demonstrations log pi of each row's most uncertain fifth."""
    demos = u.of("demo")
    if not demos:
        return grpo(u, "token_mean")
    gains = []
    for i in demos:
        n = math.ceil(keep * len(u.lp[i]) - 1e-9)
        gains.append(u.lp[i][u.H[i].argsort(descending=not lowest)[:n]])
    return per(tokens(u, demos), gains)


def bread(u: Update, how: str = "std", skip: bool = True) -> Tensor:
    """GRPO on what follows the prefix: mean over rows of means over sampled tokens."""
    if not skip:
        return grpo(u)
    return row_means(after_prefix(u, how, lambda i: u.mates(i, *ROLLOUT)))


def control(u: Update, how: str = "mean") -> Tensor:
    """Dr. GRPO on what follows the prefix: token sums over rows and the budget."""
    gains = after_prefix(u, how, lambda i: u.mates(i, *ROLLOUT))
    return per(len(u.rows) * u.const, gains)


def prefixrl(u: Update, how: str = "mean") -> Tensor:
    """REINFORCE with the group's mean on what follows the prefix; token mean."""
    gains = after_prefix(u, how, lambda i: u.mates(i, *ROLLOUT))
    return per(sum(map(len, gains)), gains)


def r3(u: Update, beta: float = 0.05) -> Tensor:
    """GRPO behind a state of the demonstration, and k3 to the reference."""
    gains = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT))
    for n, i in enumerate(u.of(*ROLLOUT)):
        gains[n] = gains[n] - beta * u.kl(i)[u.rows[i].prefix :]
    return row_means(gains)


def questa(u: Update, grouped: bool = False) -> Tensor:
    """PPO behind a hint, against all rollouts of the generation; token mean."""
    everyone = [r for r in u.generation if r.kind in ROLLOUT]
    gains = after_prefix(u, "std", lambda i: u.mates(i, *ROLLOUT) if grouped else everyone)
    return per(sum(map(len, gains)), gains)


def pope(u: Update, joint: bool = False) -> Tensor:
    """GRPO, guided rows against guided ones and plain rows against plain ones."""
    return row_means(
        after_prefix(u, "std", lambda i: u.mates(i, *(ROLLOUT if joint else (u.rows[i].kind,))))
    )


def prefix_rft_parts(
    u: Update,
    fraction: float = 0.2,
    beta: float = 0.0,
    entropy: float = 0.0,
    keep: set[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """PPO with R - mean on everything, of the prefix tokens of the step the most uncertain (or
    those in ``keep``), k3 to the reference, and entropy: the loss by what it is of."""
    keep = selected(u.rows, u.H, fraction) if keep is None else keep
    gains: dict[str, list[Tensor]] = {
        name: [] for name in ("policy", "continuation", "prefix", "kl", "entropy")
    }
    for i in u.of(*ROLLOUT):
        gain = ppo(u.ratio(i), advantage(u.rows[i], u.mates(i, *ROLLOUT)))
        gain = gain if u.weight is None else u.weight[i] * gain
        n = u.rows[i].prefix
        gains["continuation" if n else "policy"].append(gain[n:])
        gains["prefix"].append(gain[[t for t in range(n) if (i, t) in keep]])
        if beta:
            gains["kl"].append(-beta * u.kl(i))
        if entropy:
            gains["entropy"].append(entropy * u.H[i])
    return {name: per(len(u.of(*ROLLOUT)) * u.const, x) for name, x in gains.items()}


def prefix_rft(u: Update, fraction: float = 0.2, **how: Any) -> Tensor:
    """The sum of its parts."""
    return total(list(prefix_rft_parts(u, fraction, **how).values()))


# ---- rewards alone -------------------------------------------------------------------------------


def grpo(u: Update, over: str = "row_means", how: str = "std") -> Tensor:
    """PPO with (R - mean)/std; groups that the caller left out of ``u`` count nowhere."""
    rows = u.of(*ROLLOUT)
    gains = [ppo(u.ratio(i), advantage(u.rows[i], u.mates(i, *ROLLOUT), how)) for i in rows]
    return row_means(gains) if over == "row_means" else per(tokens(u, rows), gains)


def dapo(u: Update, high: float = 0.28, buffer: int = 5, flat_count: bool = False) -> Tensor:
    """Upper clip 0.28, token mean without flat groups, long rows pay up to 1."""

    rows = [i for i in u.of(*ROLLOUT) if u.rate(i, *ROLLOUT) not in (0.0, 1.0)]
    gains = []
    for i in rows:
        mates = [priced(m, u.const, buffer) for m in u.mates(i, *ROLLOUT)]
        A = advantage(priced(u.rows[i], u.const, buffer), mates, "std")
        gains.append(ppo(u.ratio(i), A, high=high))
    return per(tokens(u, u.of(*ROLLOUT) if flat_count else rows), gains)


def rloo(u: Update, how: str = "others") -> Tensor:
    """A log pi(y), the sum over a row; the mean of the rows."""
    gains = [advantage(r, u.mates(i, *ROLLOUT), how) * u.lp[i] for i, r in enumerate(u.rows)]
    return per(len(u.rows), gains)


def cispo(u: Update, low: float = 1.0, high: float = 4.0, detach: bool = True) -> Tensor:
    """The clipped ratio, without gradient, times A log pi."""
    gains = []
    for i, row in enumerate(u.rows):
        held = (u.ratio(i).detach() if detach else u.ratio(i)).clamp(1 - low, 1 + high)
        gains.append(held * advantage(row, u.mates(i, *ROLLOUT), "std") * u.lp[i])
    return per(tokens(u, range(len(u.rows))), gains)


def gspo(u: Update, low: float = 3e-4, high: float = 4e-4, whole: bool = True) -> Tensor:
    """One ratio for a row, the geometric mean; the mean of the rows."""
    gains = []
    for i, row in enumerate(u.rows):
        log_ratio = u.lp[i] - u.old[i]
        s = (log_ratio.mean() if whole else log_ratio).exp()
        gains.append(ppo(s, advantage(row, u.mates(i, *ROLLOUT), "std"), low, high))
    return row_means(gains)


def self_sft(u: Update, count_all: bool = False) -> Tensor:
    """-log pi of the solved rollouts, the mean of their tokens."""
    right = [i for i, r in enumerate(u.rows) if r.reward > 0]
    count = range(len(u.rows)) if count_all else right
    return per(tokens(u, count), [u.lp[i] for i in right])


# ---- demonstrations alone ------------------------------------------------------------------------


def sft(u: Update) -> Tensor:
    """-log pi, the mean of the step's tokens."""
    return per(sum(map(len, u.lp)), u.lp)


def dft(u: Update, detach: bool = True) -> Tensor:
    """Times the token's own probability."""
    return per(sum(map(len, u.lp)), [(x.detach() if detach else x).exp() * x for x in u.lp])


def iw_sft(u: Update, cap: float = 16.0, per_token: bool = False) -> Tensor:
    """Times the exponentiated mean log ratio to the first policy, at most 16."""
    gains = []
    for x, ref in zip(u.lp, u.ref, strict=True):
        d = x.detach() - ref
        gains.append((d if per_token else d.mean()).exp().clamp(max=cap) * x)
    return per(sum(map(len, u.lp)), gains)


def fdiv_sft(u: Update, floor: float = 0.0, slope: float = 0.5) -> Tensor:
    """Pearson: times 1 - x/2, x the token's log ratio to the first policy."""
    gains = []
    for x, ref in zip(u.lp, u.ref, strict=True):
        gains.append((1 - slope * (x.detach() - ref)).clamp(min=floor, max=16.0) * x)
    return per(sum(map(len, u.lp)), gains)


def contrasts(u: Update) -> list[tuple[int, list[int]]]:
    """Each demonstration with the negatives of its group."""
    return [
        (i, [j for j in u.of("own") if u.rows[j].group == u.rows[i].group]) for i in u.of("demo")
    ]


def discriminative(
    u: Update,
    memory: dict[int, float],
    gamma: float = 0.85,
    tau: float = 1.0,
    averaged: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """-log pi(y) + 1/B sum_j sg(e^(s_j - u)) log pi(y_j); ``memory`` holds and gets each u."""

    def whole(x: Tensor) -> Tensor:
        return x.mean() if averaged else x.sum()

    pairs = contrasts(u)
    losses = []
    for i, negatives in pairs:
        s = torch.stack([whole(u.lp[j].double()) / tau for j in negatives]).detach()
        if not averaged:
            s = s - torch.stack([u.ref[j].double().sum() for j in negatives])
        example = u.rows[i].example
        partition = (1 - gamma) * math.exp(memory.get(example, 0.0)) + gamma * s.exp().mean().item()
        memory[example] = math.log(partition)
        pull = (s - memory[example]).exp() / len(negatives) * scale
        losses.append(
            -whole(u.lp[i])
            + sum(c.item() * whole(u.lp[j]) for c, j in zip(pull, negatives, strict=True))
        )
    return total(losses) / len(pairs) if pairs else total([])


def irft(u: Update, beta: float = 0.1) -> Tensor:
    """-log sigmoid(beta [gain of y - gain of y_j]), mean over pairs and prompts; gain over ref."""
    pairs = contrasts(u)
    losses = []
    for i, negatives in pairs:
        gain = (u.lp[i] - u.ref[i]).sum()
        margins = [gain - (u.lp[j] - u.ref[j]).sum() for j in negatives]
        losses.append(-logsigmoid(beta * torch.stack(margins)).mean())
    return total(losses) / len(pairs) if pairs else total([])

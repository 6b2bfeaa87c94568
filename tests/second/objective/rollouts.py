"""Methods that train rollouts alone: from the prompt, or behind a demonstration's prefix."""

import torch
from torch import Tensor

from second.objective.parts import (
    ALL,
    HYBRID,
    OWN,
    POLICY,
    PREFIX,
    ROLL,
    ROLLOUTS,
    SAMPLED,
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

# ---- rewards alone -------------------------------------------------------------------------------


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
            gains[i, t] = ppo(s, i, t, A, 0.2, 0.2 if s.wrong == "symmetric clip" else 0.28)
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
                gains[i, t] = ppo(s, i, t, A)
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
            gains[i, t] = ppo(s, i, t, A, *clip, rho=ratio)
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


def in_context(
    s: Step, how: str, among: str = "group", beta: float = 0.0, std: bool = True
) -> Tensor:
    """GRPO on what was sampled; the prefix is neither trained nor counted."""
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        mates = {
            "group": s.mates(i, *ROLLOUTS),
            "kind": s.mates(i, s.row_kind(i)),
            "batch": s.rows(*ROLLOUTS),
        }["group" if s.wrong == "baseline of the group" else among]
        A = advantage(s, i, mates, std)
        tokens = s.sampled(i)
        if s.wrong == "prefix trained":
            tokens = tokens + s.at(i, PREFIX)
        for t in tokens:
            gains[i, t] = ppo(s, i, t, A)
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


@method("hint", *CONTEXT)
def adaprefix(s: Step) -> Tensor:
    """arXiv 2607.07674: GRPO on the rest."""
    return in_context(s, "seq_mean_token_mean")


@method("hint", *CONTEXT[:-1])  # a constant divides: what is counted does not show
def control(s: Step) -> Tensor:
    """Dr. GRPO, arXiv 2503.20783, on the rest."""
    return in_context(s, "sum_over_const", std=False)


@method("hint", *CONTEXT[:-1])
def pass_rate(s: Step) -> Tensor:
    """arXiv 2605.05112: REINFORCE with the group's mean on the rest, whoever wrote the prefix."""
    return in_context(s, "sum_over_const", std=False)


@method("hint", *CONTEXT)
def prefixrl(s: Step) -> Tensor:
    """arXiv 2601.18795: REINFORCE with the group's mean on the rest."""
    return in_context(s, "token_mean", std=False)


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
        supervised = s.zero
    s.o = {"beta": 0.001, "entropy_coef": 0.001, **s.o}
    return in_context(s, "token_mean") + supervised


# ---- a demonstration's prefix that is trained ----------------------------------------------------


def kept(s: Step) -> set[tuple[int, int]]:
    """The prefix tokens that may have a gain."""
    rows = [[(i, t) for t in s.at(i, PREFIX)] for i in s.rows(HYBRID)]
    every = [token for row in rows for token in row]
    loss = s.o.get("prefix_loss", "clip")
    if loss == "frozen" or s.wrong == "prefix frozen":
        return set()
    if loss == "all" or s.wrong == "no selection":
        return set(every)
    by_row = (s.o.get("entropy_scope") == "row") != (s.wrong == "selection scope swapped")
    lowest = s.o.get("entropy_mode") == "low"
    return most_uncertain(s, rows if by_row else [every], s.o.get("entropy_keep", 0.2), lowest)


def of_prefix_rft(s: Step, i: int, kind: str) -> float:
    """The advantage of a row's tokens of a kind: against all rollouts of the group, or against the
    rows without prefix; the authors' ``prefix_group`` gives continuations the reward itself."""
    how = s.o.get("advantage", "one_group")
    apart = how != "one_group" or s.wrong == "hybrid out of the baseline"
    if how == "prefix_group" and kind == SAMPLED and s.row_kind(i) == HYBRID and s.graded([i]):
        return s.reward[i]
    return advantage(s, i, s.mates(i, *((POLICY,) if apart else ROLLOUTS)))


def miscounted(s: Step, keep: set[tuple[int, int]]) -> None:
    """What a normaliser could wrongly leave out."""
    rows, tokens = range(len(s.kind)), set()
    if s.wrong == "only kept counted":
        tokens = {(i, t) for i in rows for t in s.at(i, PREFIX)} - keep
    if s.wrong == "masked tokens not counted":
        tokens = {(i, t) for i in rows if s.truncated[i] for t in s.at(i, *ROLL)}
    s.uncounted = frozenset(tokens)
    if s.wrong == "ungraded rows not counted":
        s.out = frozenset(rows) - frozenset(s.graded(rows))
    if s.wrong == "empty rows not counted":
        s.out = frozenset(i for i in rows if not s.at(i, *ALL))


@method("one", "std", "no clip", "hybrid out of the baseline", "denominator 1", "no selection",
        "lowest entropy", "prefix frozen", "only kept counted", "prefix not clipped",
        "selection scope swapped", "floor instead of ceil")  # fmt: skip
def prefix_rft(s: Step) -> Tensor:
    """arXiv 2507.01679 v3 Eq. 3: one ratio and one advantage for prefix and continuation; of the
    prefix tokens of the step only the 20 % with the highest entropy (section 3)."""
    loss, keep = s.o.get("prefix_loss", "clip"), kept(s)
    miscounted(s, keep)
    clip = loss != "unclipped" and s.wrong != "prefix not clipped"
    gains: Gains = {}
    for i in s.rows(*ROLLOUTS):
        for t in s.sampled(i):
            gains[i, t] = ppo(s, i, t, of_prefix_rft(s, i, SAMPLED))
        for t in (t for t in s.at(i, PREFIX) if (i, t) in keep):
            rho = s.lp[i][t].exp() if s.wrong == "denominator 1" else None
            gains[i, t] = ppo(s, i, t, of_prefix_rft(s, i, PREFIX), rho=rho, clip=clip)
            if loss == "static":  # likelihood: neither ratio nor weight
                gains[i, t] = s.o.get("static_weight", 0.001) * s.lp[i][t]
    how = "sum_over_const"
    return over(s, gains, ROLL, how) + extras(s, ROLL, how)

"""Methods with a teacher once more: what it says of a step's rows, and their losses with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from second.step import trl_run
from second.step.update import Row, Update, advantage, per, ppo, row_means
from tiny import make_tokenizer

Told = Sequence[Tensor | None]
"""What a teacher says of each row; None where it does not teach it."""


def grpo(u: Update, told: Told) -> Tensor:
    return row_means(
        [ppo(u.ratio(i), advantage(r, u.mates(i, "own"), "std")) for i, r in enumerate(u.rows)]
    )


def opd(u: Update, told: Told, sign: float = 1.0, detach: bool = True) -> Tensor:
    gains = []
    for i, q in enumerate(told):
        p = u.lp[i].detach() if detach else u.lp[i]
        gains.append(0.0 * u.lp[i] if q is None else u.ratio(i) * sign * (q - p))
    return per(sum(len(r.completion) for r in u.rows), gains)


def gats(u: Update, told: Told) -> Tensor:
    """Before the first update its coefficient is 1."""
    return grpo(u, told) + row_means(
        [
            0.0 * u.lp[i] if q is None else u.ratio(i) * (q - u.lp[i].detach())
            for i, q in enumerate(told)
        ]
    )


def rlsd(u: Update, told: Told, share: float = 0.5, sign: float = 1.0) -> Tensor:
    gains = []
    for i, row in enumerate(u.rows):
        A, q = advantage(row, u.mates(i, "own"), "std"), told[i]
        w = torch.ones_like(u.lp[i])
        if q is not None:
            w = (sign * math.copysign(1.0, A) * (q - u.lp[i].detach())).exp().clamp(0.8, 1.2)
        A_t = A * (1 - share + share * w.detach())
        gains.append(torch.minimum(u.ratio(i) * A_t, u.ratio(i).clamp(0.8, 1.28) * A_t))
    return row_means(gains)


def sdar(u: Update, told: Told) -> Tensor:
    gates = [
        0.0 * u.lp[i] if q is None else (5 * (q - u.lp[i].detach())).sigmoid() * u.lp[i]
        for i, q in enumerate(told)
    ]
    return grpo(u, told) + 0.1 * per(sum(len(r.completion) for r in u.rows), gates)


FORMULAS: dict[str, Callable[..., Tensor]] = {"opd": opd, "gats": gats, "rlsd": rlsd, "sdar": sdar}


def asked(row: Row, source: Dataset, context: str, generation: Sequence[Row]) -> list[int] | None:
    """The ids of a teacher's prompt, as the test writes it."""
    tokenizer, example = make_tokenizer(), source[row.example]
    if context == "none":
        return row.prompt
    if context == "answer":
        text = example["answer"]
    elif context == "demonstration":
        if not example["demonstration"]:
            return None
        text = example["demonstration"][0]
    else:  # the first solved other row
        group = sorted((r for r in generation if r.group == row.group), key=lambda r: r.place)
        mates = [r for r in group if r.place != row.place and r.reward > 0]
        if not mates:
            return None
        text = tokenizer.decode([i for i in mates[0].completion if i > trl_run.EOS])
    return tokenizer(f"a:{text};{example['prompt']}")["input_ids"]


def weights_at(records: Sequence[Any], n: int, kind: str) -> dict[str, Tensor]:
    """The weights of a teacher in step n, from those of the policy before each step."""
    if kind == "live":
        return records[n].weights
    if kind == "snapshot":  # every 2
        return records[n - n % 2].weights
    if kind == "ema":  # a quarter of the policy, before each update but the first
        kept = records[0].weights
        for record in records[1 : n + 1]:
            kept = {k: 0.75 * v + 0.25 * record.weights[k] for k, v in kept.items()}
        return kept
    return records[0].weights


def told_of(source: Dataset, records: Sequence[Any], n: int, kind: str, context: str) -> Told:
    rows, generation = records[n].rows, records[n].generation
    prompts = [asked(r, source, context, generation) for r in rows]
    behind = [
        replace(r, prompt=r.prompt if p is None else p) for r, p in zip(rows, prompts, strict=True)
    ]
    said = trl_run.scores(weights_at(records, n, kind), behind)[0]
    return [None if p is None else q for p, q in zip(prompts, said, strict=True)]


# ---- divergences over the vocabulary -------------------------------------------------------------


def table(model: Any, row: Row) -> Tensor:
    """Log-probs of all words at each place of the completion."""
    logits = model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0].float()
    return logits.log_softmax(-1)[len(row.prompt) - 1 : -1]


def tables_of(source: Dataset, records: Sequence[Any], n: int, kind: str, context: str) -> Told:
    """The same under a teacher, for each row; None where it does not teach it."""
    model, generation = (
        trl_run.model_of(weights_at(records, n, kind)),
        records[n].generation,
    )
    found: list[Tensor | None] = []
    for row in records[n].rows:
        prompt = asked(row, source, context, generation)
        with torch.no_grad():
            found.append(None if prompt is None else table(model, replace(row, prompt=prompt)))
    return found


def between(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """The divergence at each place, from two tables of log-probs."""
    if alpha in (0.0, 1.0):
        a, b = (q, p) if alpha == 0.0 else (p, q)
        return (a.exp() * (a - b)).sum(-1)
    m = ((1 - alpha) * p.exp() + alpha * q.exp()).log()
    return (1 - alpha) * (p.exp() * (p - m)).sum(-1) + alpha * (q.exp() * (q - m)).sum(-1)


def top_with_tail(p: Tensor, q: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Both tables on the likeliest words of the first, and the rest as one."""
    ids = p.detach().topk(top, -1).indices
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, True)
    return tuple(  # pyright: ignore[reportReturnType]
        torch.cat([x.gather(-1, ids), x.exp().where(~inside, 0.0).sum(-1, keepdim=True).log()], -1)
        for x in (p, q)
    )


def divergence(
    u: Update,
    told: Told,
    how: str,
    alpha: float,
    skip: int = 0,
    top: int | None = None,
    cap: float | None = None,
    shift: int = 0,
) -> Tensor:
    """Minus nothing: a mean over taught tokens, or over taught rows of their means."""
    each = []
    for i, (row, q) in enumerate(zip(u.rows, told, strict=True)):
        if q is None or len(row.completion) <= skip:
            continue
        p, q = table(u.model, row), q.roll(shift, 0)
        D = between(*(top_with_tail(p, q, top) if top else (p, q)), alpha)
        if cap is not None:
            D = D * u.ratio(i).detach().clamp(max=cap)
        each.append(D[skip:])
    if not each:
        return 0.0 * u.lp[0].sum()
    return (
        torch.cat(each).mean() if how == "tokens" else torch.stack([x.mean() for x in each]).mean()
    )


DIVERGENCES: dict[str, dict[str, Any]] = {
    "sdft": {"how": "rows", "alpha": 0.0, "skip": 3, "cap": 2.0},
    "opsd": {"how": "tokens", "alpha": 0.0},
    "sdpo": {"how": "tokens", "alpha": 0.5, "top": 5, "cap": 2.0},
    "gkd": {"how": "tokens", "alpha": 0.5},
}
"""What each method is here; of ``sdpo`` the top tokens are five."""

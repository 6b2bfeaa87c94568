"""Steps of ragged rows, with rubbish wherever nothing may be read."""

import random
from typing import Any

import torch
from batches import batch_of
from torch import Tensor

from second.objective import Step
from second.objective.parts import DEMO, PAD, PREFIX, PROMPT, SAMPLED

NAN, INF = float("nan"), float("inf")
V = 7
GROUPS = (7, -3, 10**12)
RUBBISH = (NAN, INF, -INF, 1e300)


def make_rows(seed: int, B: int = 12, T: int = 9, hybrid: bool = True, demo: bool = True) -> dict:
    """Ragged rows of interleaved groups: plain, hybrid, whole demonstrations, one of them empty."""
    rng = random.Random(seed)
    rows: dict[str, list] = {"kind": [], "group": [], "reward": [], "truncated": []}
    for i in range(B):
        prompt, n = rng.randint(0, 2), rng.randint(2, T - 2)
        if i == 4:
            n = 0  # a rollout whose every token was masked out: still a rollout
        role = rng.random()
        if i in (1, 5):
            role = 0.1
        is_demo = demo and role > 0.85 and i != 4
        cut = rng.randint(1, max(1, n - 1)) if hybrid and role < 0.3 and n else 0
        body = [DEMO] * n if is_demo else [PREFIX] * cut + [SAMPLED] * (n - cut)
        rows["kind"].append([PROMPT] * prompt + body + [PAD] * (T - prompt - n))
        rows["group"].append(rng.choice(GROUPS))
        unknown = i == 6 or (i == 5 and seed % 2)
        rows["reward"].append(NAN if unknown else rng.choice((0.0, 0.1, 0.5, 1.0)))
        rows["truncated"].append(rng.random() < 0.3)
    return rows


def poisoned(values: Tensor, kind: list[list[str]], seed: int) -> Tensor:
    """The values, with NaN, infinities and huge numbers at prompts and padding."""
    rng, out = random.Random(seed), values.clone()
    for i, row in enumerate(kind):
        for t, k in enumerate(row):
            if k in (PROMPT, PAD):
                out[i, t] = rng.choice(RUBBISH)
    return out


def make(seed: int, *, old: bool = True, weight: bool = True, **kw: Any) -> tuple:
    """A step, a batch of it for the package, and a small policy's parameters and outputs."""
    rows = make_rows(seed, **kw)
    kind = rows["kind"]
    B, T = len(kind), len(kind[0])
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (B, T), generator=g)
    theta = torch.randn(V, V, generator=g, dtype=torch.float64, requires_grad=True)
    logp, entropy = policy(theta, tokens)
    noise = 0.35 * torch.randn(2, B, T, generator=g, dtype=torch.float64)
    weights = poisoned(0.5 + torch.rand(B, T, generator=g, dtype=torch.float64), kind, seed + 1)
    olds = poisoned(logp.detach() + noise[0], kind, seed + 2)
    refs = poisoned(logp.detach() + noise[1], kind, seed + 3)
    step = Step(
        **rows,
        logp=logp,
        entropy=entropy,
        old=olds.tolist() if old else None,
        ref=refs.tolist(),
        weight=weights.tolist() if weight else None,
    )
    return step, batch_of(step, tokens_BT=tokens), theta, logp, entropy


def policy(theta: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A bigram model, through log_softmax; fixed offsets keep any two entropies apart."""
    g = torch.Generator().manual_seed(99)
    offsets = torch.randn(*tokens.shape, V, generator=g, dtype=torch.float64) / 3
    table = (theta[torch.roll(tokens, 1, 1)] + offsets).log_softmax(-1)
    return table.gather(-1, tokens[..., None])[..., 0], -(table.exp() * table).sum(-1)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()

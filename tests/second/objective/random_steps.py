"""Random steps for formulas: rows of every kind in groups of every outcome."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from second.objective.parts import DEMO, GUIDED, PAD, PREFIX, PROMPT, SAMPLED, Step

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
    "micro": {0: 1, 2: 1, 3: 1, 5: 1, 7: 1, 8: 1},
}
WITH_PREFIX = {
    "one": {0: 1, 1: 1, 2: 1, 3: 1, 5: 1},
    "half": {0: 2, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1},
    "hint": {0: 4, 1: 3, 2: 3, 3: 4, 4: 1},
    "everything": {0: 2, 1: 1, 3: 2, 5: 2},
    "micro": {0: 2, 1: 1, 2: 3, 3: 3, 5: 2},
}
TAUGHT = {"guided": {0: 1, 1: 3, 3: 2, 5: 3}}
"""Rows of groups, their last ones, that were sampled from a teacher's prompt; a row for which there
is no such prompt stays as it was."""
CONTEXT = {"micro": (0, 3)}
"""Groups in which the first row's prefix is not trained."""


@dataclass(kw_only=True)
class RandomStep(Step):
    """A step whose log-probs and entropies come from logits of shape (B, T, V)."""

    tokens: Tensor
    logits: Tensor
    taught_logits: Tensor
    """The teacher's: the policy's own and more, so that it has a gradient to leave out."""


def make(layout: str, seed: int, old: bool = True, square: bool = False) -> RandomStep:
    """Rows of ragged lengths in shuffled groups, some with a prompt token inside the tensors.

    ``square`` pads them until there are as many positions as rows.
    """
    rng = random.Random(f"{layout}:{seed}")
    rows: list[tuple[list[str], float, int, bool]] = []
    for g, rewards in enumerate([*REWARDS, []]):
        hybrid = WITH_PREFIX.get(layout, {}).get(g, 0)
        length = rng.randint(1, 4)  # a group shares its hint
        for n, reward in enumerate(rewards):
            prefix = [PREFIX] * length if n < hybrid else []
            shut = n == 0 and g in CONTEXT.get(layout, ())
            guided = n >= len(rewards) - TAUGHT.get(layout, {}).get(g, 0)
            sampled = GUIDED if guided else SAMPLED
            rows.append(([*prefix, *[sampled] * rng.randint(1, 5)], reward, g, shut))
        for _ in range(DEMOS.get(layout, {}).get(g, 0)):
            reward = rng.choice([1.0, 1.0, 0.5, NAN]) if g else 1.0
            rows.append(([DEMO] * rng.randint(2, 9), reward, g, False))
    rng.shuffle(rows)
    kinds = [[PROMPT] * (rng.random() < 0.3) + kind for kind, *_ in rows]
    T = len(kinds) if square else max(map(len, kinds))
    kinds = [row + [PAD] * (T - len(row)) for row in kinds]
    dice = torch.Generator().manual_seed(seed)
    B = len(rows)
    logits = 1.5 * torch.randn(B, T, 7, generator=dice, dtype=torch.float64)
    tokens = torch.randint(0, 7, (B, T), generator=dice)
    noise = torch.randn(2, B, T, generator=dice, dtype=torch.float64)
    logits.requires_grad_()
    table = logits.log_softmax(-1)
    logp = table.gather(-1, tokens[..., None])[..., 0]
    known = logp.detach()
    more = torch.randn(B, T, 7, generator=torch.Generator().manual_seed(seed + 99))
    taught_logits = logits + 1.2 * more.double()
    told = known + 0.8 * torch.randn(B, T, generator=dice, dtype=torch.float64)
    return RandomStep(
        kind=kinds,
        reward=[reward for _, reward, _, _ in rows],
        group=[3 * g - 2 for _, _, g, _ in rows],
        context=frozenset(i for i, row in enumerate(rows) if row[3]),
        logp=logp,
        entropy=-(table.exp() * table).sum(-1),
        old=(known + 0.3 * noise[1]).tolist() if old else None,
        ref=(known + 0.5 * noise[0]).tolist(),
        truncated=[rng.random() < 0.3 for _ in rows],
        teacher=told.tolist(),
        taught=[rng.random() < 0.7 for _ in rows],
        p=table.exp(),
        q=taught_logits.softmax(-1),
        tokens=tokens,
        logits=logits,
        taught_logits=taught_logits,
    )

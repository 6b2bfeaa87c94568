"""A step of verl's trainer, computed again in plain torch from what was sampled.

Imports nothing of the package. Rows are unpadded, one forward each; processes and micro-batches do
not exist here, only the rows of each update.
"""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

WEIGHT_DECAY, EPS, MAX_NORM = 0.01, 1e-4, 1.0
CONST = 48.0
CLIP = 0.2
KEEP = 0.2


@dataclass
class Row:
    """One rollout."""

    prompt: list[int]
    response: list[int]
    prefix: int
    whole: bool
    group: str
    reward: float
    old: Tensor
    ref: Tensor
    weight: Tensor
    advantage: float = 0.0


def forward(model: Any, row: Row) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies at the tokens of the response."""
    ids = torch.tensor([row.prompt + row.response])
    law = torch.log_softmax(model(ids).logits[0, len(row.prompt) - 1 : -1].float(), -1)
    logp = law.gather(1, torch.tensor(row.response)[:, None])[:, 0]
    return logp, -(law.exp() * law).sum(-1)


def highest(rows: Sequence[Row], entropies: Sequence[Tensor], keep: float) -> set[tuple[int, int]]:
    """This share of the prefix tokens, those with the highest entropies, as row and place."""
    pool = sorted(
        (-float(h[t]), i, t)
        for i, (r, h) in enumerate(zip(rows, entropies, strict=True))
        for t in range(0 if r.whole else r.prefix)
    )
    return {(i, t) for _, i, t in pool[: math.ceil(keep * len(pool) - 1e-6)]}


def prefix_rft(model: Any, rows: Sequence[Row], keep: float = KEEP) -> Tensor:
    """Eq. 3 of arXiv 2507.01679 with Dr. GRPO's normaliser, over the rows of one update."""
    with torch.no_grad():
        kept = highest(rows, [forward(model, r)[1] for r in rows], keep)
    total = torch.zeros(())
    for i, row in enumerate(rows):
        logp, _ = forward(model, row)
        for t in range(len(row.response)):
            if t < row.prefix and (i, t) not in kept:
                continue
            ratio = (logp[t] - row.old[t]).exp()
            held = ratio.clamp(1 - CLIP, 1 + CLIP)
            value = torch.minimum(ratio * row.advantage, held * row.advantage)
            total = total + row.weight[t] * value
    return -total / (len(rows) * CONST)


def with_kl(model: Any, rows: Sequence[Row]) -> Tensor:
    """Prefix-RFT and ``0.1 (exp(d) - d - 1)``, ``d = ref - logp``, on all tokens of each row."""
    total = torch.zeros(())
    for row in rows:
        d = row.ref - forward(model, row)[0]
        total = total + (d.exp() - d - 1).sum()
    return prefix_rft(model, rows) + 0.1 * total / (len(rows) * CONST)


def luffy(model: Any, rows: Sequence[Row]) -> Tensor:
    """arXiv 2504.14945: unclipped ratios on rollouts, ``A p/(p + 0.1)`` on the demonstration."""
    total = torch.zeros(())
    for row in rows:
        logp, entropy = forward(model, row)
        if row.whole:
            p = logp.exp()
            total = total + (row.advantage * p / (p + 0.1)).sum()
        else:
            total = total + (row.advantage * (logp - row.old).exp()).sum()
        total = total + 0.001 * entropy.sum()
    return -total / (len(rows) * CONST)


def chord(model: Any, rows: Sequence[Row]) -> Tensor:
    """arXiv 2508.11408, phi, with verl's token mean: 0.9 GRPO + 0.1 SFT weighted by ``p(1-p)``."""
    sampled, imitated = torch.zeros(()), torch.zeros(())
    for row in rows:
        logp, _ = forward(model, row)
        if row.whole:
            p = logp.detach().exp()
            imitated = imitated + (p * (1 - p) * logp).sum()
        else:
            ratio = (logp - row.old).exp()
            held = ratio.clamp(1 - CLIP, 1 + CLIP)
            sampled = sampled + torch.minimum(ratio * row.advantage, held * row.advantage).sum()
    tokens = [sum(len(r.response) for r in rows if r.whole == w) for w in (False, True)]
    return -(0.9 * sampled / max(tokens[0], 1) + 0.1 * imitated / max(tokens[1], 1))


def centred(scores: Sequence[float]) -> list[float]:
    """Rewards of a group minus their mean."""
    return [x - sum(scores) / len(scores) for x in scores]


def standardised(scores: Sequence[float]) -> list[float]:
    """The same, over their standard deviation."""
    if len(scores) == 1:
        return [0.0]
    from_mean = centred(scores)
    spread = math.sqrt(sum(x * x for x in from_mean) / (len(scores) - 1))
    return [x / (spread + 1e-6) for x in from_mean]


@dataclass(frozen=True)
class Recipe:
    """A method as it is computed here.

    Attributes:
        loss: of the rows of one update.
        advantages: of the rewards of a group.
        of_demonstrations: a whole demonstration is among those rewards.
    """

    loss: Callable[[Any, Sequence[Row]], Tensor]
    advantages: Callable[[Sequence[float]], list[float]] = centred
    of_demonstrations: bool = True


PREFIX_RFT, WITH_KL, LUFFY = Recipe(prefix_rft), Recipe(with_kl), Recipe(luffy)
KEEPS_HALF = Recipe(partial(prefix_rft, keep=0.5))
CHORD = Recipe(chord, standardised, of_demonstrations=False)


class Again:
    """A run of verl's, beside it."""

    def __init__(
        self, task: Path, folder: Path, recipe: Recipe, learning_rate: float = 1e-3
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.model = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, eps=EPS
        )
        self.base = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(task / "base")
        lines = (task / "train.jsonl").read_text().splitlines()
        texts = [json.loads(x)["demonstration"] for x in lines]
        texts = [t if isinstance(t, str) else t[0] for t in texts]
        self.demonstrations = [
            [*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for t in texts
        ]

    def weights_apart(self, version: int) -> float:
        """How far the weights are from those that verl sent to its sampler."""
        sent = torch.load(self.folder / f"look/weights_{version}.pt", weights_only=True)
        own = self.model.state_dict()
        return max(float((own[k] - v).abs().max()) for k, v in sent.items())

    def drawn_by(self, version: int, row: Row) -> Tensor:
        """Log-probs under the weights that the sampler had."""
        sampler = copy.deepcopy(self.base)
        sent = torch.load(self.folder / f"look/weights_{version}.pt", weights_only=True)
        sampler.load_state_dict(sent, strict=False)
        with torch.no_grad():
            return forward(sampler, row)[0]

    def rows(self, batch: dict[str, Any], model: Any) -> list[Row]:
        """What verl handed to its actor, with what a model makes of it; checked on the way."""
        rows = []
        for i in range(len(batch["keys"])):
            ids = [int(t) for t in batch["responses"][i]]
            prefix = int(batch["prefix_rft_prefix_length"][i])
            row = Row(
                [int(t) for t in batch["prompts"][i]],
                ids,
                prefix,
                bool(batch["prefix_rft_whole"][i]),
                batch["keys"][i].rsplit("_", 2)[0],
                float(batch["prefix_rft_reward"][i]),
                torch.empty(0),
                torch.empty(0),
                torch.ones(len(ids)),
            )
            if batch["padding"][i]:
                rows.append(row)
                continue
            demonstration = self.demonstrations[int(batch["index"][i])]
            assert ids[:prefix] == demonstration[:prefix]
            assert not row.whole or ids == demonstration
            assert row.whole or prefix < len(demonstration)
            with torch.no_grad():
                row.old, entropy = forward(model, row)
                row.ref, _ = forward(self.base, row)
            known = {"old_log_probs": row.old, "entropy": entropy, "ref_log_prob": row.ref}
            for name, value in known.items():
                if name in batch:
                    torch.testing.assert_close(batch[name][i].float(), value, atol=1e-5, rtol=1e-5)
            if "rollout_is_weights" in batch:
                drawn = batch["rollout_log_probs"][i].float()
                row.weight = (row.old - drawn).exp().clamp(max=2.0)
                row.weight[:prefix] = 1.0
            rows.append(row)
        for group in {r.group for r in rows}:
            of = self.recipe.of_demonstrations
            mine = [r for r in rows if r.group == group and (of or not r.whole)]
            for row, advantage in zip(
                mine, self.recipe.advantages([r.reward for r in mine]), strict=True
            ):
                row.advantage = advantage
        for i, row in enumerate(rows):
            if not batch["padding"][i] and (self.recipe.of_demonstrations or not row.whole):
                given = batch["prefix_rft_advantage"][i][0]
                torch.testing.assert_close(float(given), row.advantage, atol=1e-9, rtol=0)
        return rows

    def step(
        self, step: int, ranks: int, updates: int, parts: int = 1
    ) -> tuple[list[Row], float, float]:
        """The updates of a step; its rows, and means of loss and gradient norm over the updates.

        Args:
            step: verl's number of it.
            ranks: processes.
            updates: of each batch.
            parts: batches of the step; all have their log-probs from the weights it began with.
        """
        # From the very weights, which have been seen to agree: rounding must not add up over steps.
        sent = torch.load(self.folder / f"look/weights_{step - 1}.pt", weights_only=True)
        self.model.load_state_dict(sent, strict=False)
        first = copy.deepcopy(self.model)
        real, losses, norms = [], [], []
        for part in range(parts):
            name = f"batch_{step}_{part}" if part else f"batch_{step}"
            batch = torch.load(self.folder / f"look/{name}.pt", weights_only=False)
            rows = self.rows(batch, first)
            share = len(rows) // ranks
            size = share // updates
            for u in range(updates):
                at = [r * share + u * size + i for r in range(ranks) for i in range(size)]
                self.optimizer.zero_grad()
                mine = [rows[i] for i in at if not batch["padding"][i]]
                loss = self.recipe.loss(self.model, mine)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
                norms.append(float(norm))
                self.optimizer.step()
                losses.append(float(loss.detach()))
            real += [r for i, r in enumerate(rows) if not batch["padding"][i]]
        return real, sum(losses) / len(losses), sum(norms) / len(norms)

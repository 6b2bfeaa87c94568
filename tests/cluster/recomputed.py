"""A step of verl's trainer, computed again in plain torch from what was sampled.

Imports nothing of the package. Rows are unpadded, one forward each; processes and micro-batches do
not exist here, only the rows of each update.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

LEARNING_RATE, WEIGHT_DECAY, EPS, MAX_NORM = 1e-3, 0.01, 1e-4, 1.0
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
    advantage: float = 0.0


def forward(model: Any, row: Row) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies at the tokens of the response."""
    ids = torch.tensor([row.prompt + row.response])
    law = torch.log_softmax(model(ids).logits[0, len(row.prompt) - 1 : -1].float(), -1)
    logp = law.gather(1, torch.tensor(row.response)[:, None])[:, 0]
    return logp, -(law.exp() * law).sum(-1)


def prefix_rft(model: Any, rows: Sequence[Row]) -> Tensor:
    """Eq. 3 of arXiv 2507.01679 with Dr. GRPO's normaliser, over the rows of one update."""
    with torch.no_grad():
        now = [forward(model, r)[1] for r in rows]
    pool = sorted(
        (-float(h[t]), i, t)
        for i, (r, h) in enumerate(zip(rows, now, strict=True))
        for t in range(0 if r.whole else r.prefix)
    )
    kept = {(i, t) for _, i, t in pool[: math.ceil(KEEP * len(pool) - 1e-6)]}
    total = torch.zeros(())
    for i, row in enumerate(rows):
        logp, _ = forward(model, row)
        for t in range(len(row.response)):
            if t < row.prefix and (i, t) not in kept:
                continue
            ratio = (logp[t] - row.old[t]).exp()
            held = ratio.clamp(1 - CLIP, 1 + CLIP)
            total = total + torch.minimum(ratio * row.advantage, held * row.advantage)
    return -total / (len(rows) * CONST)


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


Loss = Callable[[Any, Sequence[Row]], Tensor]


class Again:
    """A run of verl's, beside it."""

    def __init__(
        self, task: Path, folder: Path, loss: Callable[[Any, Sequence[Row]], Tensor]
    ) -> None:
        self.folder, self.loss = folder, loss
        self.model = AutoModelForCausalLM.from_pretrained(task / "base", dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=EPS
        )
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

    def rows(self, batch: dict[str, Any]) -> list[Row]:
        """What verl handed to its actor, with what this model makes of it; checked on the way."""
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
            )
            if batch["padding"][i]:
                rows.append(row)
                continue
            demonstration = self.demonstrations[int(batch["index"][i])]
            assert ids[:prefix] == demonstration[:prefix]
            assert not row.whole or ids == demonstration
            assert row.whole or prefix < len(demonstration)
            with torch.no_grad():
                row.old, entropy = forward(self.model, row)
            for name, value in (("old_log_probs", row.old), ("entropy", entropy)):
                torch.testing.assert_close(batch[name][i].float(), value, atol=1e-5, rtol=1e-5)
            rows.append(row)
        for row in rows:
            scores = [r.reward for r in rows if r.group == row.group]
            row.advantage = row.reward - sum(scores) / len(scores)
        for i, row in enumerate(rows):
            if not batch["padding"][i]:
                given = batch["prefix_rft_advantage"][i][0]
                torch.testing.assert_close(float(given), row.advantage, atol=1e-9, rtol=0)
        return rows

    def step(self, step: int, ranks: int, updates: int) -> tuple[list[Row], float, float]:
        """The updates of a step; its rows, and means of loss and gradient norm over the updates."""
        batch = torch.load(self.folder / f"look/batch_{step}.pt", weights_only=False)
        rows = self.rows(batch)
        share = len(rows) // ranks
        size = share // updates
        losses, norms = [], []
        for u in range(updates):
            at = [r * share + u * size + i for r in range(ranks) for i in range(size)]
            self.optimizer.zero_grad()
            loss = self.loss(self.model, [rows[i] for i in at if not batch["padding"][i]])
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)))
            self.optimizer.step()
            losses.append(float(loss.detach()))
        real = [r for i, r in enumerate(rows) if not batch["padding"][i]]
        return real, sum(losses) / updates, sum(norms) / updates

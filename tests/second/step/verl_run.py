"""A step of verl's trainer, computed again in plain torch from what was sampled.

Processes and micro-batches do not exist here, only the rows of each update.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from second.step import formulas, update
from second.step.update import ALL, ROLLOUT, Update, score

WEIGHT_DECAY, EPS, MAX_NORM = 0.01, 1e-4, 1.0
CONST = 48.0  # the completion budget of these runs


@dataclass
class Row(update.Row):
    """A row with what the models of its step make of it."""

    old: Tensor = field(default_factory=lambda: torch.empty(0))
    ref: Tensor = field(default_factory=lambda: torch.empty(0))
    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    advantage: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A method as it is computed here.

    Attributes:
        formula: the loss of an update.
        how: what becomes of a group's rewards, as ``update.advantage`` has it.
        base: kinds of rows that are compared with one another.
    """

    formula: Callable[[Update], Tensor]
    how: str = "mean"
    base: tuple[str, ...] = ALL


PREFIX_RFT, LUFFY = Recipe(formulas.prefix_rft), Recipe(formulas.luffy)
WITH_KL = Recipe(partial(formulas.prefix_rft, beta=0.1))
KEEPS_HALF = Recipe(partial(formulas.prefix_rft, fraction=0.5))
TRAPO = Recipe(partial(formulas.trapo, context=(1,)))
CHORD = Recipe(formulas.chord, "std", ROLLOUT)


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
            return score(sampler, row)[0]

    def rows(self, batch: dict[str, Any], model: Any) -> list[Row]:
        """What verl handed to its actor, with what a model makes of it; checked on the way."""
        rows = []
        for i in range(len(batch["keys"])):
            ids = [int(t) for t in batch["responses"][i]]
            prefix = int(batch["prefix_rft_prefix_length"][i])
            row = Row(
                prompt=[int(t) for t in batch["prompts"][i]],
                completion=ids,
                prefix=prefix,
                whole=bool(batch["prefix_rft_whole"][i]),
                reward=float(batch["prefix_rft_reward"][i]),
                group=batch["keys"][i].rsplit("_", 2)[0],
                weight=torch.ones(len(ids)),
                place=int(batch["keys"][i].rsplit("_", 2)[1]),
            )
            if batch["padding"][i]:
                rows.append(row)
                continue
            demonstration = self.demonstrations[int(batch["index"][i])]
            assert ids[:prefix] == demonstration[:prefix]
            assert not row.whole or ids == demonstration
            assert row.whole or prefix < len(demonstration)
            with torch.no_grad():
                row.old, entropy = score(model, row)
                row.ref, _ = score(self.base, row)
            known = {"old_log_probs": row.old, "entropy": entropy, "ref_log_prob": row.ref}
            for name, value in known.items():
                if name in batch:
                    torch.testing.assert_close(batch[name][i].float(), value, atol=1e-5, rtol=1e-5)
            if "rollout_is_weights" in batch:
                drawn = batch["rollout_log_probs"][i].float()
                row.weight = (row.old - drawn).exp().clamp(max=2.0)
                row.weight[:prefix] = 1.0
            rows.append(row)
        for i, row in enumerate(rows):
            mates = [r for r in rows if r.group == row.group and r.kind in self.recipe.base]
            row.advantage = update.advantage(row, mates, self.recipe.how)
            if not batch["padding"][i] and row.kind in self.recipe.base:
                given = batch["prefix_rft_advantage"][i][0]
                torch.testing.assert_close(float(given), row.advantage, atol=1e-9, rtol=0)
        return rows

    def as_read(self, mine: Sequence[Row], rows: Sequence[Row]) -> Update:
        """Some of a batch's rows as formulas read them."""
        return Update(
            self.model,
            mine,
            rows,
            const=CONST,
            old=lambda: [r.old for r in mine],
            ref=lambda: [r.ref for r in mine],
            weight=[r.weight for r in mine],
        )

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
                loss = self.recipe.formula(self.as_read(mine, rows))
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
                norms.append(float(norm))
                self.optimizer.step()
                losses.append(float(loss.detach()))
            real += [r for i, r in enumerate(rows) if not batch["padding"][i]]
        return real, sum(losses) / len(losses), sum(norms) / len(norms)

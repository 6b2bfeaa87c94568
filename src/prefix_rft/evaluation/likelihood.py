"""How likely the demonstrations are under a model, before any of them is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prefix_rft.data.render import Renderer, end_of_text_ids


@dataclass(frozen=True)
class Likelihood:
    """Of some demonstrations under a model, their end included.

    Attributes:
        demonstrations: how many were read.
        tokens: theirs in all.
        per_token: mean log-likelihood of a token in nats.
        whole: mean log-likelihood of a demonstration in nats.
    """

    demonstrations: int
    tokens: int
    per_token: float
    whole: float

    @property
    def perplexity(self) -> float:
        """Of a token: exp of the mean negative log-likelihood."""
        return math.exp(-self.per_token)


@torch.no_grad()
def likelihood(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], template: Any = None
) -> Likelihood | None:
    """The likelihood of every demonstration of some rows behind its prompt.

    Args:
        model: causal language model; its mode is left as it was.
        tokenizer: its tokenizer.
        rows: with ``prompt`` and a list of texts as ``demonstration``.
        template: arguments for the chat template.

    Returns:
        None where no row has a demonstration.
    """
    render = Renderer(
        tokenizer, end_of_text_ids(tokenizer, model.generation_config), template or {}
    )
    was_training, sums = model.training, []
    model.eval()
    tokens = 0
    try:
        for row in rows:
            prompt = render.prompt(row["prompt"])
            texts = row["demonstration"]
            for ids in render.demonstrations(texts, not isinstance(row["prompt"], str)):
                ids_1T = torch.tensor([[*prompt, *ids]], device=model.device)
                # Of the prompt's last token and of all but the last of the demonstration.
                logits_TV = model(ids_1T, logits_to_keep=len(ids) + 1).logits[0, :-1]
                target_T = ids_1T[0, len(prompt) :]
                sums.append(-cross_entropy(logits_TV.float(), target_T, reduction="sum").item())
                tokens += len(ids)
    finally:
        model.train(was_training)
    if not sums:
        return None
    return Likelihood(len(sums), tokens, sum(sums) / tokens, sum(sums) / len(sums))

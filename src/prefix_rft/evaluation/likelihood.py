"""How likely the demonstrations are under a model, before any of them is learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prefix_rft.data.pictures import asked
from prefix_rft.data.render import Renderer, end_of_text_ids
from prefix_rft.engines.pictures import inputs_of


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


Pair = tuple[Any, Sequence[int]]
"""A prompt, its pictures in it, and the ids of a demonstration with its end."""


@torch.no_grad()
def log_likelihoods(model: Any, render: Renderer, pairs: Sequence[Pair]) -> list[float]:
    """The log-likelihood in nats of each demonstration behind its prompt.

    One at a time and without logits of the prompt, so that no more than a demonstration's logits
    are held. The model's mode is left as it was.

    Args:
        model: causal language model.
        render: how prompts become ids.
        pairs: prompts and demonstrations.
    """
    was_training, found = model.training, []
    model.eval()
    try:
        for prompt, ids in pairs:
            inputs, start = inputs_of(render, prompt, ids, model.device)
            # Of the prompt's last token, and of all but the last of the demonstration.
            logits_TV = model(**inputs, logits_to_keep=len(ids) + 1).logits[0, :-1]
            targets_T = inputs["input_ids"][0, start:]
            loss = cross_entropy(logits_TV.float(), targets_T, reduction="sum")
            found.append(-loss.item())
    finally:
        model.train(was_training)
    return found


def likelihood(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], template: Any = None
) -> Likelihood | None:
    """The likelihood of every demonstration of some rows.

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        rows: the rows, with ``prompt`` and a list of texts as ``demonstration``.
        template: arguments for the chat template.

    Returns:
        None where no row has a demonstration.
    """
    render = Renderer(
        tokenizer, end_of_text_ids(tokenizer, model.generation_config), template or {}
    )
    pairs = [
        (asked(row), ids)
        for row in rows
        for ids in render.demonstrations(row["demonstration"], not isinstance(row["prompt"], str))
    ]
    if not pairs:
        return None
    sums, tokens = log_likelihoods(model, render, pairs), sum(len(ids) for _, ids in pairs)
    return Likelihood(len(sums), tokens, sum(sums) / tokens, sum(sums) / len(sums))

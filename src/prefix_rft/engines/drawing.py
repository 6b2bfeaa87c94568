"""Draw the next token of each row from a model's logits, and say how likely it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

FREE = -1
"""In place of a token's id: the row samples there."""
NEAR = 2**18
"""Logits to draw from at once on a CPU; a megabyte is about what its cache holds."""


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw a token. ``temperature`` 0 takes the likeliest one."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None

    def warpers(self) -> LogitsProcessorList:
        """transformers' own warpers, in the order ``generate`` applies them."""
        chain: list[Any] = []
        if self.temperature not in (0.0, 1.0):
            chain.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chain.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            chain.append(MinPLogitsWarper(self.min_p))
        return LogitsProcessorList(chain)


def choose(
    logits_BV: Tensor,
    forced_B: Tensor,
    uniform_B: Tensor | None,
    settings: SamplingSettings,
    warp: Any,
    scored: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next token of each row, whether its logits are finite, and its scores if asked for.

    Scores are log-prob and entropy of softmax(logits / temperature), shape (2, B).

    Args:
        logits_BV: the model's.
        forced_B: the tokens of prefixes, ``FREE`` where a row samples.
        uniform_B: numbers in [0, 1) that decide; None for torch's global random state.
        settings: how to draw.
        warp: the settings' own ``warpers()``.
        scored: they are asked for.
    """
    if settings.temperature == 0.0:
        uniform_B = None
    elif uniform_B is None:
        # One for each row, where multinomial would draw one for each token of the vocabulary.
        uniform_B = torch.rand(len(logits_BV), dtype=_wide(logits_BV), device=logits_BV.device)
    tokens, defined, scores = [], [], []
    together = _together(logits_BV)
    for first in range(0, len(logits_BV), together):
        part = slice(first, first + together)
        logits = logits_BV[part].float()
        fine = logits.amax(-1).isfinite()
        # On a GPU, drawing from what is no distribution would end the process without a word.
        logits = logits.where(fine[:, None], 0.0)
        token = _draw(warp, logits, None if uniform_B is None else uniform_B[part])
        token = token.where(forced_B[part] == FREE, forced_B[part])
        tokens.append(token)
        defined.append(fine)
        if scored:
            scores.append(_scores(logits, token, settings.temperature))
    return torch.cat(tokens), torch.cat(defined), torch.cat(scores, 1) if scored else None


def _together(logits_BV: Tensor) -> int:
    """Rows to draw for at once: on a CPU, so few that what is computed stays near it."""
    rows, vocabulary = logits_BV.shape
    return max(1, NEAR // vocabulary) if logits_BV.device.type == "cpu" else rows


def _wide(x: Tensor) -> torch.dtype:
    """Double precision, where the device has it: the law is to hold for rare tokens too."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _draw(warp: Any, logits_BV: Tensor, uniform_B: Tensor | None) -> Tensor:
    """A token of each row: where its distribution function passes the number, or the likeliest."""
    if uniform_B is None:
        return logits_BV.argmax(-1)
    # None of the warpers in use reads the ids.
    no_ids: Any = None
    below_BV = warp(no_ids, logits_BV).softmax(-1).to(_wide(logits_BV)).cumsum_(-1)
    point_B1 = uniform_B.to(below_BV)[:, None] * below_BV[:, -1:]
    token_B = torch.searchsorted(below_BV, point_B1, right=True)[:, 0]
    return token_B.clamp(max=logits_BV.size(-1) - 1)


def _scores(logits_BV: Tensor, token_B: Tensor, temperature: float) -> Tensor:
    """Log-probs of the tokens, and entropies in nats of what they are drawn from; shape (2, B)."""
    logp_BV = (logits_BV / temperature).log_softmax(-1)
    logp_B = logp_BV.gather(1, token_B[:, None])[:, 0]
    # An impossible token adds 0, not 0 times infinity.
    finite_BV = logp_BV.clamp(min=torch.finfo(logp_BV.dtype).min)
    return torch.stack([logp_B, -logp_BV.exp_().mul_(finite_BV).sum(-1)])

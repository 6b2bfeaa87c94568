"""What a step on one demonstration does to the likelihood of another: influence to first order.

One step of gradient ascent with rate eta on the mean log-prob of ``u`` changes that of ``v`` by

    d log pi(v) = eta grad log pi(v) . grad log pi(u) + O(eta^2)

the empirical neural tangent kernel of the two (arXiv 2506.23508, section on learning dynamics, as
second-hand texts have it; the formula is the Taylor expansion). Its sign says whether ``v`` is
learnt or forgotten along with ``u``.

Letters of shapes: V rows that are looked at, U rows that would be trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prefix_rft.data import DataError
from prefix_rft.data.pictures import asked
from prefix_rft.data.render import Renderer
from prefix_rft.engines.pictures import inputs_of
from prefix_rft.evaluation.likelihood import Pair


@dataclass(frozen=True)
class Influence:
    """Of rows that would be trained on, on rows that are looked at.

    Attributes:
        dot_VU: dot products of the gradients of mean log-probs, float64.
        probe_norm_V: norms of the gradients of the rows looked at.
        train_norm_U: norms of the others.
        probe_logp_V: their mean log-probs of a token in nats.
        train_logp_U: those of the others.
        probe_tokens_V: tokens of each demonstration that is looked at.
        train_tokens_U: those of the others.
    """

    dot_VU: Tensor
    probe_norm_V: Tensor
    train_norm_U: Tensor
    probe_logp_V: Tensor
    train_logp_U: Tensor
    probe_tokens_V: Tensor
    train_tokens_U: Tensor

    @property
    def cosine_VU(self) -> Tensor:
        """Cosines of the same gradients; 0 where one of them is 0."""
        sizes = self.probe_norm_V[:, None] * self.train_norm_U
        return torch.where(sizes > 0, self.dot_VU / sizes.clamp(min=1e-300), 0.0)

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of a token of the rows looked at, and of a token of those to train on."""
        return (
            _perplexity(self.probe_logp_V, self.probe_tokens_V),
            _perplexity(self.train_logp_U, self.train_tokens_U),
        )


def _perplexity(logp: Tensor, tokens: Tensor) -> float:
    return float((-(logp * tokens).sum() / tokens.sum()).exp())


def pairs_of(rows: Sequence[Any], render: Renderer, what: str) -> list[Pair]:
    """The first demonstration of each row that has one, behind its prompt.

    Args:
        rows: the rows, with ``prompt`` and a list of texts as ``demonstration``.
        render: how texts become ids.
        what: the rows are, for a message.

    Raises:
        DataError: no row has a demonstration.
    """
    found = []
    for row in rows:
        texts = row["demonstration"][:1]
        ids = render.demonstrations(texts, not isinstance(row["prompt"], str))
        found += [(asked(row), one) for one in ids]
    if not found:
        raise DataError(f"no row of {what} has a demonstration, and influence is that of one")
    return found


def influence(
    model: Any,
    render: Renderer,
    probe: Sequence[Pair],
    train: Sequence[Pair],
    tick: Callable[[int], None] = lambda done: None,
) -> Influence:
    """Dot products of the gradients of every probe with those of every row to train on.

    Gradients of the probes are held, in float32: as many numbers as the model has weights that
    train, for each. Dropout is off, and the model's mode is left as it was.

    Args:
        model: causal language model.
        render: how prompts become ids.
        probe: prompts and demonstrations that are looked at.
        train: prompts and demonstrations that would be trained on.
        tick: called with how many gradients are done.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    done, kept, dots = 0, [], []
    probes, trains = [], []
    for row in _gradients(model, render, probe, weights):
        kept.append(row.gradient)
        probes.append(row)
        tick(done := done + 1)
    for row in _gradients(model, render, train, weights):
        dots.append([_dot(one, row.gradient) for one in kept])
        trains.append(row)
        tick(done := done + 1)
    return Influence(
        torch.tensor(dots, dtype=torch.float64).T.contiguous(),
        *(torch.tensor([r.norm for r in rows], dtype=torch.float64) for rows in (probes, trains)),
        *(torch.tensor([r.logp for r in rows], dtype=torch.float64) for rows in (probes, trains)),
        *(torch.tensor([r.tokens for r in rows]) for rows in (probes, trains)),
    )


@dataclass(frozen=True)
class _Gradient:
    gradient: list[Tensor]
    norm: float
    logp: float
    tokens: int


def _gradients(
    model: Any, render: Renderer, pairs: Sequence[Pair], weights: Sequence[Tensor]
) -> Iterator[_Gradient]:
    """The gradient of each demonstration's mean log-prob."""
    was_training = model.training
    model.eval()
    try:
        for prompt, ids in pairs:
            inputs, start = inputs_of(render, prompt, ids, model.device)
            first = max(1, start)  # nothing predicts the first token of all
            logits = model(**inputs).logits[0, first - 1 : -1]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logp = -cross_entropy(logits, inputs["input_ids"][0, first:])
            found = torch.autograd.grad(logp, weights, allow_unused=True)
            gradient = [
                torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)
            ]
            wide = torch.promote_types(gradient[0].dtype, torch.float32)
            gradient = [g.to(wide) for g in gradient]
            yield _Gradient(gradient, _dot(gradient, gradient) ** 0.5, logp.item(), len(logits))
    finally:
        model.train(was_training)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = zip(one, other, strict=True)
    return sum(torch.dot(a.flatten().double(), b.flatten().double()).item() for a, b in pairs)

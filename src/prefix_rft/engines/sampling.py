"""Sample continuations with a transformers causal model, without work for rows that are done.

Against ``model.generate``: each distinct prompt is prefilled once however many rows start from it,
a row leaves the batch when it ends, and every row has its own budget. The law of each token is the
same: softmax of logits after temperature, top-k, top-p and min-p.

A prefix is fed token by token while the other rows sample. All rows then stand at the same place
behind their prompts: nothing is padded to the longest prefix, and a hybrid row costs what any row
of its length costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prefix_rft.engines.cached_model import CachedModel, base_of, supported
from prefix_rft.engines.cast_once import cast_once
from prefix_rft.engines.drawing import FREE, SamplingSettings, choose
from prefix_rft.engines.nonfinite import first_bad, weights
from prefix_rft.engines.pictures import reads_pictures, together
from prefix_rft.support.errors import RunError

__all__ = [
    "SamplingSettings",
    "Scored",
    "generate",
    "no_law_of_its_own",
    "sample",
    "sample_scored",
    "supported",
    "uniforms_of",
]


@contextmanager
def no_law_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Inside, ``model.generate`` follows what it is asked for alone.

    transformers fills what a caller leaves open from the model's ``generation_config``: a
    repetition penalty, suppressed tokens, beams, a shortest length, and so on.
    """
    base = base_of(model)
    config = base.generation_config
    kept = {k: getattr(config, k, None) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    base.generation_config = GenerationConfig(**kept)
    try:
        yield
    finally:
        base.generation_config = config


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budget: int,
    settings: SamplingSettings,
    asked: Mapping[str, Any] | None = None,
    pictures: Sequence[Mapping[str, Tensor]] = (),
) -> list[list[int]]:
    """What :func:`sample` does, with ``model.generate``, for models that it does not serve.

    Args:
        model: causal language model in eval mode; may be a PEFT model.
        prompts: token ids that each row starts from, none of them empty.
        budget: the most tokens that a row may sample.
        settings: how to draw a token.
        asked: more of transformers' settings, such as ``repetition_penalty``.
        pictures: what belongs to the pictures of each prompt, see ``pictures.prompt_inputs``; none
            by default.
    """
    device = next(model.parameters()).device
    ids, mask = _left_pad(prompts, settings.pad_token_id, device)
    shown = {k: v.to(device) for k, v in together(pictures, [0] * len(pictures)).items()}
    options: dict[str, Any] = {"do_sample": settings.temperature > 0.0}
    if settings.temperature > 0.0:
        options |= {
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
        }
    options |= {
        "max_new_tokens": budget,
        "eos_token_id": list(settings.eos_token_ids),
        "pad_token_id": settings.pad_token_id,
        "disable_compile": True,
        **no_picture_tokens(model),
        **(asked or {}),
    }
    with no_law_of_its_own(model), cast_once(model):
        sequences: Any = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(**options),
            **shown,
        )
    rows = sequences[:, ids.size(1) :].tolist()

    def end(row: list[int]) -> int:
        return next((i + 1 for i, t in enumerate(row) if t in settings.eos_token_ids), len(row))

    return [row[: end(row)] for row in rows]


def no_picture_tokens(model: PreTrainedModel) -> dict[str, Any]:
    """The setting of transformers with which no token is sampled that stands for a picture."""
    config = base_of(model).config
    return {"suppress_tokens": [config.image_token_id]} if reads_pictures(config) else {}


@dataclass(frozen=True)
class Scored:
    """Sampled rows, and what the policy says of every token behind their prompts.

    Its law is softmax(logits / temperature) over the whole vocabulary, whatever top-k, top-p and
    min-p keep from being drawn.

    Attributes:
        ids: the sampled token ids of each row, EOS included.
        logp_BT: log-probs of prefix and sampled tokens, float32; NaN behind a row's last one.
        entropy_BT: entropies in nats at the same places, alike.
    """

    ids: list[list[int]]
    logp_BT: Tensor
    entropy_BT: Tensor

    def placed(self, rows: Sequence[int], of: int) -> Tensor:
        """Log-probs and entropies at these places among more rows; NaN in the others.

        Args:
            rows: the places of the rows.
            of: how many rows there are.

        Returns:
            Shape (2, of, T).
        """
        scores_2BT = torch.stack([self.logp_BT, self.entropy_BT])
        placed = scores_2BT.new_full((2, of, scores_2BT.size(2)), torch.nan)
        placed[:, rows] = scores_2BT
        return placed


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    settings: SamplingSettings,
    prefixes: Sequence[Sequence[int]] | None = None,
    uniforms: Tensor | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """One continuation for each prompt and prefix: the sampled token ids, EOS included.

    Args:
        model: causal language model in eval mode; may be a PEFT model.
        prompts: token ids that each row starts from, none of them empty.
        budgets: the most tokens that each row may sample, at least 1.
        settings: how to draw a token.
        prefixes: token ids between a row's prompt and what it samples; none by default.
        uniforms: numbers in [0, 1) that decide the draws, by row and place behind the prompt, so
            that a row's draws do not depend on the rows beside it; by default torch's global
            random state decides.
        tick: called before each token with the number of rows that have ended.

    Raises:
        RunError: the logits of a row are not finite.
    """
    prefixes = [()] * len(prompts) if prefixes is None else prefixes
    with cast_once(model):
        steps = list(_tokens(model, prompts, budgets, settings, prefixes, uniforms, tick, False))
    return _sampled_ids(steps, prefixes)


def sample_scored(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    settings: SamplingSettings,
    prefixes: Sequence[Sequence[int]] | None = None,
    uniforms: Tensor | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Scored:
    """What :func:`sample` draws, with log-probs and entropies of the policy.

    Raises:
        RunError: the logits of a row are not finite.
        ValueError: the temperature is 0, at which nothing has an entropy.
    """
    if settings.temperature == 0.0:
        raise ValueError("log-probs and entropies need a temperature above 0")
    prefixes = [()] * len(prompts) if prefixes is None else prefixes
    with cast_once(model):
        steps = list(_tokens(model, prompts, budgets, settings, prefixes, uniforms, tick, True))
    scores_2BT = torch.full((2, len(prompts), len(steps)), torch.nan, device=steps[0].rows.device)
    for t, step in enumerate(steps):
        assert step.scores_2B is not None  # noqa: S101  (asked for)
        scores_2BT[:, step.rows, t] = step.scores_2B
    return Scored(_sampled_ids(steps, prefixes), *scores_2BT)


@dataclass(frozen=True)
class _Column:
    """The tokens at one place behind the prompts, of the rows that go so far."""

    rows: Tensor
    token_B: Tensor
    scores_2B: Tensor | None


def _sampled_ids(steps: Sequence[_Column], prefixes: Sequence[Sequence[int]]) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in prefixes]
    for step in steps:
        for row, token in zip(step.rows.tolist(), step.token_B.tolist(), strict=True):
            written[row].append(token)
    return [ids[len(p) :] for ids, p in zip(written, prefixes, strict=True)]


@torch.no_grad()
def _tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    settings: SamplingSettings,
    prefixes: Sequence[Sequence[int]],
    uniforms: Tensor | None,
    tick: Callable[[int], None],
    scored: bool,
) -> Iterator[_Column]:
    """Prefixes and what is sampled, token by token; see :func:`sample`."""
    distinct: dict[tuple[int, ...], int] = {}
    source = [distinct.setdefault(tuple(p), len(distinct)) for p in prompts]
    device = next(model.parameters()).device
    rows = torch.arange(len(prompts), device=device)
    lengths = [len(p) for p in prefixes]
    forced, _ = _left_pad([list(p)[::-1] for p in prefixes], FREE, device)
    forced = forced.flip(1)  # right-padded, one column for each step
    left = torch.tensor(budgets, device=device) + torch.tensor(lengths, device=device)
    eos = torch.tensor(settings.eos_token_ids, device=device)
    warp: Any = settings.warpers()

    ids, mask = _left_pad(list(distinct), settings.pad_token_id, device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    longest = mask.size(1) + max(b + n for b, n in zip(budgets, lengths, strict=True))
    forward = CachedModel(model, longest)
    logits = forward(ids, mask, position)
    select = torch.tensor(source, device=device)
    forward.repeat(select)
    logits, mask, position = logits[select], mask[select], position[select, -1:]

    for step in count():
        tick(len(prompts) - len(rows))
        here = forced[:, step] if step < forced.size(1) else torch.full_like(rows, FREE)
        at = None if uniforms is None else uniforms[rows.to(uniforms.device), step]
        token, defined, scores = choose(logits, here, at, settings, warp, scored)
        yield _Column(rows, token, scores)
        left = left - 1
        alive = (left > 0) & ~(torch.isin(token, eos) & (here == FREE))
        some, every, fine = torch.stack([alive.any(), alive.all(), defined.all()]).tolist()
        if not fine:
            raise _undefined(model, step, int(rows[~defined][0]))
        if not some:
            return
        if not every:
            keep = forward.keep(alive)
            rows, left, token = rows[keep], left[keep], token[keep]
            forced, mask, position = forced[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        logits = forward(token[:, None], mask, position)


def _undefined(model: PreTrainedModel, step: int, row: int) -> RunError:
    name = first_bad(weights(model))
    cause = f"the weight {name} is not finite" if name else "its weights are finite"
    return RunError(
        f"the model has no probabilities for token {step + 1} behind prompt {row + 1} of a batch: "
        f"its logits are not finite, and {cause}"
    )


def _left_pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(r)) + list(r) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def uniforms_of(keys: Sequence[str], length: int) -> Tensor:
    """``length`` uniform numbers in [0, 1) for each row, a function of its key; shape (rows, T)."""
    rows = []
    for key in keys:
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        rows.append(torch.rand(length, generator=generator))
    return torch.stack(rows)

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
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefix_rft.engines.nonfinite import first_bad, weights
from prefix_rft.support.errors import RunError


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


def supported(model: PreTrainedModel) -> bool:
    """Whether the model keeps its past in key/value caches whose rows can be selected.

    Recurrent and linear-attention layers do not; for these models use ``model.generate``.
    """
    config = _base(model).config
    if config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return False
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False  # its virtual tokens stand in front of what ``generate`` is given
    return all(hasattr(x, "batch_select_indices") for x in DynamicCache(config=config).layers)


def _base(model: PreTrainedModel) -> Any:
    peft: Any = model
    return peft.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def no_law_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Inside, ``model.generate`` follows what it is asked for alone.

    transformers fills what a caller leaves open from the model's ``generation_config``: a
    repetition penalty, suppressed tokens, beams, a shortest length, and so on.
    """
    base = _base(model)
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
) -> list[list[int]]:
    """What :func:`sample` does, with ``model.generate``, for models that it does not serve.

    ``asked`` are more of transformers' settings, such as ``repetition_penalty``.
    """
    ids, mask = _left_pad(prompts, settings.pad_token_id, next(model.parameters()).device)
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
        **(asked or {}),
    }
    with no_law_of_its_own(model):
        sequences: Any = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids, attention_mask=mask, generation_config=GenerationConfig(**options)
        )
    rows = sequences[:, ids.size(1) :].tolist()

    def end(row: list[int]) -> int:
        return next((i + 1 for i, t in enumerate(row) if t in settings.eos_token_ids), len(row))

    return [row[: end(row)] for row in rows]


@torch.no_grad()
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
    distinct: dict[tuple[int, ...], int] = {}
    source = [distinct.setdefault(tuple(p), len(distinct)) for p in prompts]
    device = next(model.parameters()).device
    rows = torch.arange(len(prompts), device=device)
    prefix_lengths = torch.tensor([len(p) for p in prefixes], device=device)
    forced, _ = _left_pad([list(p)[::-1] for p in prefixes], settings.pad_token_id, device)
    forced = forced.flip(1)  # right-padded, one column for each step
    left = torch.tensor(budgets, device=device) + prefix_lengths
    eos = torch.tensor(settings.eos_token_ids, device=device)
    warp: Any = settings.warpers()

    ids, mask = _left_pad(list(distinct), settings.pad_token_id, device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    forward = _CachedModel(model)
    logits = forward(ids, mask, position)
    select = torch.tensor(source, device=device)
    forward.keep(select)
    logits, mask, position = logits[select], mask[select], position[select, -1:]

    steps: list[tuple[Tensor, Tensor]] = []
    while True:
        tick(len(prompts) - len(rows))
        logits = logits.float()
        # On a GPU, drawing from what is no distribution would end the process without a word.
        defined = logits.amax(-1).isfinite()
        logits = logits.where(defined[:, None], 0.0)
        step = len(steps)
        at = None if uniforms is None else uniforms[rows.to(uniforms.device), step]
        token = _draw(warp, logits, settings.temperature, at)
        sampled_here = prefix_lengths <= step
        if step < forced.size(1):
            token = torch.where(sampled_here, token, forced[:, step])
        steps.append((rows, token))
        left = left - 1
        alive = (left > 0) & ~(torch.isin(token, eos) & sampled_here)
        some, every, fine = torch.stack([alive.any(), alive.all(), defined.all()]).tolist()
        if not fine:
            raise _undefined(model, step, int(rows[~defined][0]))
        if not some:
            break
        if not every:
            keep = alive.nonzero()[:, 0]
            forward.keep(keep)
            rows, left, token = rows[keep], left[keep], token[keep]
            prefix_lengths, forced = prefix_lengths[keep], forced[keep]
            mask, position = mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        logits = forward(token[:, None], mask, position)

    written: list[list[int]] = [[] for _ in prompts]
    for at, token in steps:
        for row, t in zip(at.tolist(), token.tolist(), strict=True):
            written[row].append(t)
    return [ids[len(p) :] for ids, p in zip(written, prefixes, strict=True)]


def _undefined(model: PreTrainedModel, step: int, row: int) -> RunError:
    name = first_bad(weights(model))
    cause = f"the weight {name} is not finite" if name else "its weights are finite"
    return RunError(
        f"the model has no probabilities for token {step + 1} behind prompt {row + 1} of a batch: "
        f"its logits are not finite, and {cause}"
    )


class _CachedModel:
    """The model with its cache: logits of the last position."""

    def __init__(self, model: PreTrainedModel) -> None:
        base = _base(model)
        names = inspect.signature(base.forward).parameters
        self.model = model
        self.takes_position = "position_ids" in names
        self.takes_logits_to_keep = "logits_to_keep" in names
        self.cache = DynamicCache(config=base.config)
        # A mixture of experts would compute its balancing loss, and on the wrong mask.
        self.extra = {"output_router_logits": False} if "output_router_logits" in names else {}

    def __call__(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        extra: dict[str, Any] = dict(self.extra)
        if self.takes_position:
            extra["position_ids"] = position
        if self.takes_logits_to_keep:
            extra["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **extra
        )
        return output.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Keep (and repeat) these rows of the cache."""
        self.cache.batch_select_indices(rows)


def _left_pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(r)) + list(r) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _draw(warp: Any, logits: Tensor, temperature: float, uniform_B: Tensor | None = None) -> Tensor:
    if temperature == 0.0:
        return logits.argmax(-1)
    # None of the warpers in use reads the ids.
    no_ids: Any = None
    probability_BV = warp(no_ids, logits).softmax(-1)
    if uniform_B is None:
        return torch.multinomial(probability_BV, 1)[:, 0]
    # The inverse of the distribution function, in double precision where the device has it.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    below_BV = probability_BV.to(wide).cumsum(-1)
    point_B1 = uniform_B.to(below_BV)[:, None] * below_BV[:, -1:]
    token_B = torch.searchsorted(below_BV, point_B1, right=True)[:, 0]
    return token_B.clamp(max=logits.size(-1) - 1)


def uniforms_of(keys: Sequence[str], length: int) -> Tensor:
    """``length`` uniform numbers in [0, 1) for each row, a function of its key; shape (rows, T)."""
    rows = []
    for key in keys:
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        rows.append(torch.rand(length, generator=generator))
    return torch.stack(rows)

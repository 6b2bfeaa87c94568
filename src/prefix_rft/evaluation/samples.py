"""Sample k answers to each held-out problem and say how often they are right. Never a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prefix_rft.data.render import Renderer, end_of_text_ids
from prefix_rft.engines.pictures import prompt_inputs
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.sampling import (
    SamplingSettings,
    generate,
    sample,
    supported,
    uniforms_of,
)
from prefix_rft.evaluation.told import prompts_of
from prefix_rft.rewards import checked, grade_texts, visible
from prefix_rft.rewards.verdict import CORRECT, NO_ANSWER, Verdict
from prefix_rft.support.errors import UserError


def reward_of(verdict: Verdict) -> float | None:
    """Without an answer a problem is not solved: 0. None where it could not be graded."""
    return 0.0 if verdict.status == NO_ANSWER else verdict.reward


@dataclass(frozen=True)
class Sample:
    """One sampled answer and what the grader said.

    Attributes:
        text: the text as it was graded.
        tokens: sampled, EOS included.
        truncated: it ran into the length limit.
        verdict: the verdict on it.
    """

    text: str
    tokens: int
    truncated: bool
    verdict: Verdict

    @property
    def correct(self) -> bool:
        """Whether the problem is solved by it."""
        return self.verdict.status == CORRECT

    @property
    def reward(self) -> float | None:
        """See :func:`reward_of`."""
        return reward_of(self.verdict)


@dataclass(frozen=True)
class Request:
    """How to sample.

    Attributes:
        samples: k of each problem.
        temperature: 0 is greedy.
        max_completion_length: the longest completion in tokens.
        seed: the seed of the samples. A sample is a function of the seed, the problem's number and
            its own; not of the batch, as far as the model's arithmetic is not (models without a
            cache whose rows can be selected are sampled batch by batch).
        batch_size: rows sampled at once.
        template_kwargs: arguments for the chat template, such as ``enable_thinking``.
    """

    samples: int = 4
    temperature: float = 1.0
    max_completion_length: int = 256
    seed: int = 0
    batch_size: int = 64
    template_kwargs: Mapping[str, Any] | None = None

    @property
    def together(self) -> int:
        """Problems that are sampled, graded and stored together."""
        return max(1, self.batch_size // self.samples)


def sample_and_grade(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Callable[..., Any],
    request: Request,
    numbers: Sequence[int] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[list[list[Sample]]]:
    """Sampled and graded answers to the rows' prompts, some problems at a time, in their order.

    Args:
        model: causal language model; its mode and the global random state are left as they were.
        tokenizer: its tokenizer.
        rows: dataset with ``prompt`` and the columns that the reward wants.
        reward: function with TRL's signature.
        request: how to sample.
        numbers: the numbers of the rows, which decide their samples; by default 0, 1, 2, ...
        tick: called now and then with how many problems are sampled, in samples of their number.

    Yields:
        for each of the next problems its k samples.

    Raises:
        UserError: there is no row, or one that is too long for the model.
    """
    reward, k = checked(reward), request.samples
    render = renderer_of(model, tokenizer, request)
    for part, sampled in drawn(model, render, rows, request, numbers, tick):
        graded = _grade(render, part, reward, sampled, k)
        yield [graded[i : i + k] for i in range(0, len(graded), k)]


def renderer_of(model: Any, tokenizer: Any, request: Request) -> Renderer:
    """How prompts and completions of a model become ids and texts.

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        request: how it is sampled.
    """
    ends = end_of_text_ids(tokenizer, model.generation_config)
    return Renderer(tokenizer, ends, request.template_kwargs or {})


def drawn(
    model: Any,
    render: Renderer,
    rows: Dataset,
    request: Request,
    numbers: Sequence[int] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[Dataset, list[list[int]]]]:
    """Sampled completions of the rows' prompts, some rows at a time, in their order; no grades.

    Args:
        model: causal language model; its mode and the global random state are left as they were.
        render: how its prompts become ids.
        rows: dataset with ``prompt``.
        request: how to sample.
        numbers: the numbers of the rows, which decide their samples; by default 0, 1, 2, ...
        tick: called now and then with how many rows are sampled, in samples of their number.

    Yields:
        the next rows, and the ids of k completions of each, those of a row beside one another.

    Raises:
        UserError: there is no row, or one that is too long for the model.
    """
    if not len(rows):
        raise UserError("there is no problem to evaluate on")
    lengths = (len(render.prompt(prompt)) for prompt in prompts_of(rows))
    refuse_too_long(model, lengths, request.max_completion_length)
    k = request.samples
    numbers = range(len(rows)) if numbers is None else numbers
    for places in _parts(len(rows), request):
        start, part = places[0], rows.select(places)
        prompts = [shown for p in prompts_of(part) for shown in repeat(prompt_inputs(render, p), k)]
        keys = [key_of(request, numbers[row], i) for row in places for i in range(k)]
        further = lambda ended, before=start * k: tick((before + ended) // k)  # noqa: E731
        sampled = sampled_behind(model, render, prompts, keys, request, further)
        tick(start + len(part))
        yield part, sampled


def key_of(request: Request, number: int, sample: int) -> str:
    """What decides a sample: whatever is sampled by the same key gets the same random numbers.

    Args:
        request: how to sample.
        number: the row's number.
        sample: the number of the sample among the row's own.
    """
    return f"{request.seed}:{number}:{sample}"


def sampled_behind(
    model: Any,
    render: Renderer,
    prompts: Sequence[tuple[list[int], dict[str, Tensor]]],
    keys: Sequence[str],
    request: Request,
    tick: Callable[[int], None] = lambda ended: None,
) -> list[list[int]]:
    """Ids of one completion behind each of some prompts.

    Args:
        model: causal language model; its mode and the global random state are left as they were.
        render: how its prompts become ids.
        prompts: for each its ids, and what the model is given of its pictures.
        keys: what decides each completion, from :func:`key_of`.
        request: how to sample.
        tick: called now and then with how many have ended.
    """
    sampled: list[list[int]] = []
    for batch in _batches(len(prompts), request):
        further = lambda ended, before=batch.start: tick(before + ended)  # noqa: E731
        sampled += _draw(model, render, prompts[batch], keys[batch], request, further)
    return sampled


def _parts(rows: int, request: Request) -> Iterator[range]:
    """The rows that are sampled and graded together."""
    for start in range(0, rows, request.together):
        yield range(start, min(start + request.together, rows))


def _batches(rows: int, request: Request) -> Iterator[slice]:
    """The rows of a part, each as often as it is sampled, that are sampled at once."""
    for at in range(0, rows, request.batch_size):
        yield slice(at, at + request.batch_size)


def prefilled(prompts: Sequence[Sequence[int]], request: Request) -> int:
    """Prompt tokens that :func:`sample_and_grade` reads: in each batch, a distinct prompt once.

    Of models that are sampled with ``generate`` as many are counted, as in training.

    Args:
        prompts: token ids of each row's prompt.
        request: how the rows are sampled.
    """
    total = 0
    for part in _parts(len(prompts), request):
        ids = [tuple(prompts[row]) for row in part for _ in range(request.samples)]
        total += sum(len(p) for batch in _batches(len(ids), request) for p in set(ids[batch]))
    return total


@torch.no_grad()
def _draw(
    model: Any,
    render: Renderer,
    prompts: Sequence[tuple[list[int], dict[str, Tensor]]],
    keys: Sequence[str],
    request: Request,
    tick: Callable[[int], None],
) -> list[list[int]]:
    """The sampled ids of some rows, from ids and pictures of their prompts."""
    ids, pictures = [p for p, _ in prompts], [shown for _, shown in prompts]
    pad: Any = render.tokenizer.pad_token_id
    settings = SamplingSettings(render.eos_ids, pad, request.temperature)
    budget = request.max_completion_length
    was_training = model.training
    model.eval()
    try:
        if supported(model):
            uniforms = uniforms_of(keys, budget) if request.temperature > 0 else None
            budgets = [budget] * len(ids)
            return sample(model, ids, budgets, settings, uniforms=uniforms, tick=tick)
        with torch.random.fork_rng():
            torch.manual_seed(int(uniforms_of(keys[:1], 1).item() * 2**24))
            return generate(model, ids, budget, settings, pictures=pictures)
    finally:
        model.train(was_training)


def _grade(
    render: Renderer,
    rows: Dataset,
    reward: Callable[..., Any],
    sampled: list[list[int]],
    k: int,
) -> list[Sample]:
    columns = rows.select_columns(visible(rows.column_names))  # ours may be long, and cost reading
    return graded(render, [dict(row) for row in columns for _ in range(k)], reward, sampled)


def graded(
    render: Renderer,
    rows: Sequence[Mapping[str, Any]],
    reward: Callable[..., Any],
    sampled: Sequence[list[int]],
) -> list[Sample]:
    """Sampled completions with verdicts on them.

    Args:
        render: how ids become the texts that graders see.
        rows: the columns of each one's row.
        reward: a reward function that was checked.
        sampled: the completions' ids.
    """
    texts = render.completions(sampled)
    verdicts = grade_texts(reward, rows, texts, sampled)
    return [
        Sample(text, len(ids), ids[-1] not in render.eos_ids, verdict)
        for text, ids, verdict in zip(texts, sampled, verdicts, strict=True)
    ]


def mean_reward(samples: Sequence[Sample]) -> float | None:
    """Mean reward of a problem's graded samples; None where none could be graded."""
    rewards = [s.reward for s in samples if s.reward is not None]
    return sum(rewards) / len(rewards) if rewards else None

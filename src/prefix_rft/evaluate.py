"""Sample k answers to each held-out problem and say how often they are right. Never a prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from prefix_rft.data.demonstrations import OURS
from prefix_rft.data.render import Renderer, end_of_text_ids
from prefix_rft.engines.sampling import SamplingSettings, generate, sample, supported
from prefix_rft.errors import UserError
from prefix_rft.rewards import checked, grade
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import NO_ANSWER


@dataclass(frozen=True)
class Evaluation:
    """avg@k with a 95 % interval over problems.

    Attributes:
        problems: number of problems.
        samples: k, samples of each.
        mean: mean reward over all samples, avg@k.
        low: lower end of the interval.
        high: upper end.
        truncated: share of samples that ran into the length limit.
        no_answer: share of samples in which the grader found no answer; they count as 0.
        ungraded: samples that could not be graded (timeout, error, ...); they do not count.
        per_problem: mean reward of each problem.
    """

    problems: int
    samples: int
    mean: float
    low: float
    high: float
    truncated: float
    no_answer: float
    ungraded: int
    per_problem: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.1%} [{self.low:.1%}, {self.high:.1%}]"


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems."""
    x = torch.tensor(values, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    index = torch.randint(len(x), (resamples, len(x)), generator=rng)
    means = x[index].mean(1)
    tail = (1.0 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64))
    return low.item(), high.item()


@dataclass(frozen=True)
class Samples:
    """Sampled answers to P problems, k each, and what the grader said.

    Attributes:
        reward_Pk: NaN where an answer could not be graded.
        truncated: share that ran into the length limit.
        no_answer: share in which the grader found no answer.
    """

    reward_Pk: torch.Tensor
    truncated: float
    no_answer: float


def sample_and_grade(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Callable[..., Any],
    *,
    samples: int,
    temperature: float = 1.0,
    max_completion_length: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Samples:
    """Sample ``samples`` completions of each row's prompt and grade them; see :func:`evaluate`."""
    reward = checked(reward)
    render = Renderer(
        tokenizer, end_of_text_ids(tokenizer, model.generation_config), template_kwargs or {}
    )
    settings = SamplingSettings(render.eos_ids, tokenizer.pad_token_id, temperature)
    contexts = [ids for p in rows["prompt"] for ids in [render.prompt(p)] * samples]
    if not contexts:
        raise UserError("there is no problem to evaluate on")
    sampled: list[list[int]] = []
    ours = supported(model)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(contexts), batch_size):
            part = contexts[start : start + batch_size]
            if ours:
                sampled += sample(model, part, [max_completion_length] * len(part), settings)
            else:
                sampled += generate(model, part, max_completion_length, settings)
    model.train(was_training)

    texts: list[Any] = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    prompts = [p for p in rows["prompt"] for _ in range(samples)]
    if not isinstance(prompts[0], str):
        texts = [[{"role": "assistant", "content": t}] for t in texts]
    columns = {
        name: [value for value in rows[name] for _ in range(samples)]
        for name in rows.column_names
        if name not in ("prompt", "completion", "completion_ids") and not name.startswith(OURS)
    }
    verdicts = grade(reward, texts, {"prompts": prompts, "completion_ids": sampled, **columns})
    # Without an answer a problem is not solved; what could not be graded says nothing.
    rewards = torch.tensor(
        [
            0.0 if v.status == NO_ANSWER else torch.nan if v.reward is None else v.reward
            for v in verdicts
        ]
    )
    ended = sum(ids[-1] in settings.eos_token_ids for ids in sampled)
    return Samples(
        rewards.view(-1, samples),
        1.0 - ended / len(sampled),
        sum(v.status == NO_ANSWER for v in verdicts) / len(sampled),
    )


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Callable[..., Any],
    *,
    samples: int = 4,
    temperature: float = 1.0,
    max_completion_length: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Evaluation:
    """avg@k of a model on held-out problems.

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        rows: dataset with ``prompt`` and the columns that the reward wants.
        reward: function with TRL's signature; its value counts as correctness.
        samples: completions of each problem.
        temperature: 0 is greedy.
        max_completion_length: in tokens.
        seed: of the samples; the global random state is left as it was.
        batch_size: rows sampled at once.
        template_kwargs: for the chat template, such as ``enable_thinking``.
    """
    found = sample_and_grade(
        model,
        tokenizer,
        rows,
        reward,
        samples=samples,
        temperature=temperature,
        max_completion_length=max_completion_length,
        seed=seed,
        batch_size=batch_size,
        template_kwargs=template_kwargs,
    )
    per_problem = found.reward_Pk.nanmean(1)
    per_problem = per_problem[~per_problem.isnan()].tolist()
    if not per_problem:
        raise UserError(f"reward function '{name_of(reward)}' could grade none of the completions")
    low, high = bootstrap_interval(per_problem, seed)
    return Evaluation(
        problems=len(per_problem),
        samples=samples,
        mean=sum(per_problem) / len(per_problem),
        low=low,
        high=high,
        truncated=found.truncated,
        no_answer=found.no_answer,
        ungraded=int(found.reward_Pk.isnan().sum()),
        per_problem=per_problem,
    )

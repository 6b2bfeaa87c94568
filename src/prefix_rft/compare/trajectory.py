"""Models saved along training: likelihood of demonstrations, and reward with and without a prefix.

The analysis of arXiv 2507.01679, section 4 (SFT loss against reward, and what a prefix adds), on
held-out rows where the paper used training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from prefix_rft.data import Renderer, load_rows
from prefix_rft.data.pictures import asked
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import give_template, load_model
from prefix_rft.engines.sampling import SamplingSettings, sample, supported, uniforms_of
from prefix_rft.engines.setup import configure
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.evaluation.likelihood import Pair, log_likelihoods
from prefix_rft.evaluation.samples import reward_of
from prefix_rft.rewards import grade_texts
from prefix_rft.rewards.verdict import Verdict
from prefix_rft.runs.checkpoints import checkpoints
from prefix_rft.support.errors import UserError

GIVEN = (0.0, 0.5)
"""Shares of a demonstration that the model continues."""
SAMPLES = 4
LARGEST_BATCH = 512


def trajectory(
    folder: Path, recipe: str, overrides: Sequence[str], last_step: int, every: int = 1
) -> list[dict[str, Any]]:
    """The measures of every saved model of a run, in the order of steps.

    Args:
        folder: the run's folder, with ``checkpoint-N`` and ``model``.
        recipe: path of its recipe.
        overrides: the recipe's overrides.
        last_step: the last step of training, whose model is ``model``.
        every: steps between models; a run that a signal stopped has one more.

    Raises:
        UserError: a model or rows that cannot be used.
    """
    saved = {k: path for k, path in checkpoints(folder).items() if k < last_step and k % every == 0}
    return [
        {"step": step, **measures(str(path), recipe, overrides)}
        for step, path in {**saved, last_step: folder / "model"}.items()
    ]


@torch.no_grad()
def measures(source: str, recipe: str, overrides: Sequence[str]) -> dict[str, float]:
    """Of one model on the recipe's held-out rows.

    Returns:
        ``sft_loss``, the mean cross-entropy over all tokens of the first demonstrations, and for
        each share in ``GIVEN`` the mean reward of continuations (``reward_0``, ``reward_0.5``).
    """
    with closing(configure(recipe, overrides)) as setup:
        data: Any = setup.recipe.eval_data
        rows = load_rows(
            data,
            folder=setup.recipe.folder,
            reading=setup.recipe.reading(0),
            limit=setup.recipe.eval_problems,
        )
        model, tokenizer = load_model(source)
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        model.eval()
        give_template(tokenizer, rows[0]["prompt"])
        kwargs = template_kwargs(setup.args, tokenizer)
        render = Renderer(tokenizer, end_of_text_ids(tokenizer, model.generation_config), kwargs)
        cells: list[Any] = [row for row in rows if row["demonstration"]]  # pyright: ignore
        pairs = [_pair(render, row) for row in cells]
        tokens = sum(len(ids) for _, ids in pairs)
        metrics = {"sft_loss": -sum(log_likelihoods(model, render, pairs)) / tokens}
        budget = setup.args.max_completion_length
        for share in GIVEN:
            texts = _continued(model, tokenizer, render, pairs, share, budget)
            repeated: list[Mapping[str, Any]] = [c for c in cells for _ in range(SAMPLES)]
            verdicts = grade_texts(setup.rewards[0], repeated, texts)
            metrics[f"reward_{share:g}"] = _mean_reward(verdicts)
        return metrics


def _pair(render: Renderer, row: Mapping[str, Any]) -> Pair:
    """A row's prompt and its first demonstration."""
    conversation = not isinstance(row["prompt"], str)
    first = render.demonstrations(row["demonstration"][:1], conversation)[0]
    return asked(row), first


def _continued(
    model: Any,
    tokenizer: Any,
    render: Renderer,
    pairs: Sequence[Pair],
    share: float,
    budget: int,
) -> list[str]:
    """Texts of prefix and continuation, ``SAMPLES`` for each pair, at temperature 1."""
    if not supported(model):
        raise UserError("a trajectory needs a model whose cache holds keys and values")
    settings = SamplingSettings(render.eos_ids, tokenizer.pad_token_id)
    ids = [render.prompt(prompt) for prompt, _ in pairs]
    cut = [demonstration[: int(share * len(demonstration))] for _, demonstration in pairs]
    rows = [pair for pair in zip(ids, cut, strict=True) for _ in range(SAMPLES)]
    keys = [f"trajectory:{share}:{i}" for i in range(len(rows))]
    texts: list[str] = []
    for start in range(0, len(rows), LARGEST_BATCH):
        part = rows[start : start + LARGEST_BATCH]
        prompts, prefixes = [p for p, _ in part], [d for _, d in part]
        uniforms = uniforms_of(keys[start : start + LARGEST_BATCH], budget)
        budgets = [budget - len(d) for d in prefixes]
        continuations = sample(model, prompts, budgets, settings, prefixes, uniforms)
        whole = [[*d, *ids] for d, ids in zip(prefixes, continuations, strict=True)]
        texts += render.completions(whole)
    return texts


def _mean_reward(verdicts: Sequence[Verdict]) -> float:
    values = [r for v in verdicts if (r := reward_of(v)) is not None]
    return sum(values) / len(values) if values else float("nan")

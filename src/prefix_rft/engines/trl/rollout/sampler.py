"""From planned rows to completions: what is sent to a sampler, and what is made of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.sampling import SamplingSettings, sample, supported


def serves(model: Any, args: Any) -> bool:
    """Whether our own sampler can stand in for ``generate`` of the plain transformers backend.

    Args:
        model: the policy, neither sharded nor wrapped.
        args: the trainer's configuration, among them settings that this sampler does not know.
    """
    return (
        args.fast_generation
        and not args.generation_kwargs
        and args.cache_implementation is None
        and args.repetition_penalty == 1.0
        and supported(model)
    )


def settings_of(args: Any, eos_ids: Sequence[int], pad_id: Any) -> SamplingSettings:
    """How the arguments of a trainer want a token to be drawn.

    Args:
        args: the trainer's configuration.
        eos_ids: tokens that end a completion.
        pad_id: the padding token, which TRL makes sure of.
    """
    return SamplingSettings(
        eos_token_ids=tuple(eos_ids),
        pad_token_id=pad_id,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
    )


def continuations(
    model: Any,
    prompts: Sequence[list[int]],
    plans: Sequence[RowPlan],
    settings: SamplingSettings,
    budget: int,
    tick: Callable[[int], None],
) -> list[list[int]]:
    """What our own sampler makes of the rows that are not done; nothing for the others.

    Args:
        model: the policy; it comes back in the mode, training or evaluation, in which it was.
        prompts: token ids of each row's prompt.
        plans: the plans of the same rows.
        settings: how to draw a token.
        budget: the most tokens of a completion, prefix included.
        tick: hears how many rows have ended.
    """
    open_rows = [i for i, plan in enumerate(plans) if not plan.done]
    sampled: list[list[int]] = [[] for _ in plans]
    if not open_rows:
        return sampled
    prefixes = [plans[i].prefix for i in open_rows]
    contexts = [prompts[i] for i in open_rows]
    budgets = [budget - len(p) for p in prefixes]
    was_training = model.training
    model.eval()
    try:
        outputs = sample(model, contexts, budgets, settings, prefixes, tick=tick)
    finally:
        model.train(was_training)
    for i, ids in zip(open_rows, outputs, strict=True):
        sampled[i] = ids
    return sampled


def contexts_of(prompts: Sequence[list[int]], plans: Sequence[RowPlan]) -> list[list[int]]:
    """Prompts with the prefixes behind them.

    A row that needs no sampling is there too: engines want as many rows from every process.
    """
    return [
        [*ids, *(() if plan.done else plan.prefix)]
        for ids, plan in zip(prompts, plans, strict=True)
    ]


def assembled(
    plans: Sequence[RowPlan],
    sampled: Sequence[list[int]],
    logps: Sequence[list[float]] | None,
    budget: int,
) -> tuple[list[list[int]], list[list[float | None]] | None]:
    """Completions, which begin with what was known of a row, and the sampler's log-probs.

    Args:
        plans: the plans of the rows.
        sampled: token ids that were sampled for each row.
        logps: the log-probs of these under the sampler, where it says so.
        budget: the most tokens of a completion.
    """
    completions = [
        [*plan.known, *(() if plan.done else ids)][:budget]
        for plan, ids in zip(plans, sampled, strict=True)
    ]
    if logps is None:
        return completions, None
    # None becomes NaN and then an importance ratio of exactly 1; 0 would be a lie.
    return completions, [
        [*(plan.kept_logps or [None] * len(plan.known)), *(() if plan.done else row)][:budget]
        for plan, row in zip(plans, logps, strict=True)
    ]


def one_generation_each(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of ``_generate_single_turn`` with ``num_generations`` (its fourth) set to 1."""
    if args:
        return (1, *args[1:]), kwargs
    return args, {**kwargs, "num_generations": 1}

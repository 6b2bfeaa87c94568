"""From planned rows to completions: what is sent to a sampler, and what is made of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefix_rft.core import Method
from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.sampling import SamplingSettings, sample, sample_scored, supported
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Attempt
from prefix_rft.support.errors import UserError


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


def check_sampler(args: Any, method: Method, ours: bool, sharded: bool) -> None:
    """See that the sampler can do what method and settings ask of it.

    Args:
        args: the trainer's configuration.
        method: the method.
        ours: our sampler draws the rows.
        sharded: the weights are spread over processes.

    Raises:
        UserError: the reference policy is to be sampled by another, or ``sampler_correction`` has
            nothing to correct.
    """
    from_reference = method.reference.sampler == "reference"
    other = args.use_vllm or args.use_transformers_continuous_batching
    if from_reference and (other or sharded):
        raise UserError(
            f"method '{method.name}' samples from the reference policy, which needs the plain "
            "transformers backend and weights that are not sharded"
        )
    if not args.sampler_correction:
        return
    if args.use_vllm:
        why = "with use_vllm: set vllm_importance_sampling_correction"
    elif not ours:
        why = "without our own sampler, which alone tells its log-probs (fast_generation)"
    elif from_reference:
        why = f"with '{method.name}', which samples from its reference policy"
    elif "sampler_scores" not in args.savings:
        why = "without sampler_scores among savings"
    else:
        return
    raise UserError(f"sampler_correction={args.sampler_correction} has no effect {why}")


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
    attempt: Attempt | None = None,
) -> list[list[int]]:
    """What our own sampler makes of the rows that are not done; nothing for the others.

    Args:
        model: the policy; it comes back in the mode, training or evaluation, in which it was.
        prompts: token ids of each row's prompt.
        plans: the plans of the same rows.
        settings: how to draw a token.
        budget: the most tokens of a completion, prefix included.
        tick: hears how many rows have ended.
        attempt: is told log-probs and entropies of the rows; None where nobody asks for them, or
            they would not be the policy's.
    """
    lacking = open_rows(plans)
    sampled: list[list[int]] = [[] for _ in plans]
    if not lacking:
        return sampled
    prefixes = [plans[i].prefix for i in lacking]
    contexts = [prompts[i] for i in lacking]
    budgets = [budget - len(p) for p in prefixes]
    was_training = model.training
    model.eval()
    try:
        if attempt is not None:
            scored = sample_scored(model, contexts, budgets, settings, prefixes, tick=tick)
            outputs, attempt.scores_2BT = scored.ids, scored.placed(lacking, len(plans))
        else:
            outputs = sample(model, contexts, budgets, settings, prefixes, tick=tick)
    finally:
        model.train(was_training)
    for i, ids in zip(lacking, outputs, strict=True):
        sampled[i] = ids
    return sampled


@dataclass(frozen=True)
class BackendRequest:
    """What a backend of TRL's is asked for: rows that need sampling, and no others.

    Attributes:
        rows: the places of the rows that are sent, in order.
        contexts: their prompts with the prefixes behind them.
        single: one continuation is asked for each context, and not a group for each prompt.
        budget: the most tokens that one of the rows lacks.
        total: how many rows there are.
    """

    rows: list[int]
    contexts: list[list[int]]
    single: bool
    budget: int
    total: int

    @classmethod
    def of(
        cls,
        prompts: Sequence[list[int]],
        plans: Sequence[RowPlan],
        budget: int,
        branches: bool,
        together: bool,
        processes: Processes,
    ) -> BackendRequest | None:
        """From the plans of all processes, which ask at the same time; None if nobody needs a row.

        Args:
            prompts: token ids of each row's prompt on this process.
            plans: the plans of the same rows.
            budget: the most tokens of a completion, prefix included.
            branches: rows of a group may differ.
            together: one engine samples for several processes, and wants as many rows of each.
            processes: the run's processes.
        """
        lacks = [0 if plan.done else budget - len(plan.prefix) for plan in plans]
        rows = [i for i, lack in enumerate(lacks) if lack]
        everyone = processes.gather_list([(len(rows), len(lacks), max(lacks, default=0))])
        most = max(n for n, _, _ in everyone)
        if not most:
            return None
        # Sharded weights are gathered by all processes, so none stays away.
        wanted = most if together else max(len(rows), 1)
        spare = [i for i, lack in enumerate(lacks) if not lack]
        rows = sorted(rows + spare[: max(wanted - len(rows), 0)])
        return cls(
            rows=rows,
            contexts=[[*prompts[i], *(() if plans[i].done else plans[i].prefix)] for i in rows],
            # All must ask for the same, also those whose own groups are whole and alike.
            single=branches or any(n < of for n, of, _ in everyone),
            budget=max((n for *_, n in everyone) if together else [1, *lacks]),
            total=len(plans),
        )

    def placed(self, drawn: Sequence[list[Any]]) -> list[list[Any]]:
        """What was drawn for each row, at its place; nothing for rows that were not sent."""
        placed: list[list[Any]] = [[] for _ in range(self.total)]
        for row, one in zip(self.rows, drawn, strict=True):
            placed[row] = one
        return placed


def open_rows(plans: Sequence[RowPlan]) -> list[int]:
    """The places of the rows that are not done."""
    return [i for i, plan in enumerate(plans) if not plan.done]


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
    return (
        completions,
        [
            [None] * len(ids)  # it was another prompt's
            if plan.guided
            else [*(plan.kept_logps or [None] * len(plan.known)), *(() if plan.done else row)][
                :budget
            ]
            for plan, row, ids in zip(plans, logps, completions, strict=True)
        ],
    )


def one_generation_each(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of TRL's sampling behind contexts and pictures, with one continuation each."""
    if args:
        return (1, *args[1:]), kwargs
    return args, {**kwargs, "num_generations": 1}

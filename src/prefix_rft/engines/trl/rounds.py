"""From a batch of prompts to the rollouts of a generation: plan, sample, and perhaps sample again.

Every decision is taken from what all processes know (rewards of all rows), so all take the same
one, and each holds the same number of rows throughout. A row that an attempt does not change keeps
its completion: it is not sampled again, only scored with the rest.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefix_rft.core import outcome
from prefix_rft.core.planner import Start, Starts
from prefix_rft.core.prefix import generator
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.engines.plan import Moment, RowPlan, plan_rows, starting, starts_of
from prefix_rft.engines.trl.window import Rows, own_rows

if TYPE_CHECKING:
    from prefix_rft.engines.trl.trainer import PrefixRFTTrainer

Inputs = list[dict[str, Any]]


@dataclass(frozen=True)
class Generation:
    """The rollouts of a generation on this process.

    Attributes:
        inputs: one example for each row.
        plans: what was known of each row.
        rows: TRL's tensors.
        imitation: the rows are demonstrations that had been set aside.
    """

    inputs: Inputs
    plans: list[RowPlan]
    rows: Rows
    imitation: bool = False


@dataclass(frozen=True)
class Fates:
    """How the groups of an attempt went, on every row of all processes.

    Attributes:
        group_N: group ids.
        rate_N: solve rate of the group's sampled rows; NaN where none has a reward.
        again_N: bool, the method changes the group.
        changed_N: bool, an attempt has changed it already.
    """

    group_N: Tensor
    rate_N: Tensor
    again_N: Tensor
    changed_N: Tensor

    @classmethod
    def of(cls, trainer: PrefixRFTTrainer, plans: Sequence[RowPlan]) -> Fates:
        """From the rewards of the last attempt."""
        method = trainer.method
        own = [[p.group, int(p.whole), p.attempt] for p in plans]
        known = torch.tensor(own, device=trainer.accelerator.device)
        group_N, whole_N, attempt_N = trainer.accelerator.gather(known).T
        demo_N = whole_N.bool()
        rate_N = outcome.solve_rate(trainer.outcomes, group_N, ~demo_N, method.groups.solved_above)
        again_N = torch.zeros_like(demo_N)
        if method.groups.all_wrong in ("resample", "lengthen"):
            again_N |= outcome.all_wrong(rate_N)
        elif method.groups.all_wrong == "demonstration":  # one that is there settles the group
            again_N |= outcome.all_wrong(rate_N) & ~torch.isin(group_N, group_N[demo_N])
        if method.groups.all_right == "resample":
            again_N |= outcome.all_right(rate_N)
        return cls(group_N, rate_N, again_N, torch.isin(group_N, group_N[attempt_N > 0]))


def generate(trainer: PrefixRFTTrainer, inputs: Inputs) -> Generation:
    """Plan and sample the rows, and change groups as the method's ``all_wrong`` asks."""
    method, state = trainer.method, trainer.method_state
    offset = trainer.accelerator.process_index * len(inputs)
    if set_aside := take_waiting(trainer, len(inputs), offset):
        return Generation(*set_aside, trainer.score(*set_aside), imitation=True)
    moment = Moment(
        num_generations=trainer.num_generations,
        seed=trainer.args.seed,
        step=trainer.state.global_step,
        total_steps=trainer.state.max_steps,
        max_completion_length=trainer.max_completion_length,
        newlines=trainer.renderer.newline_ids if method.planner.needs_boundaries else frozenset(),
        examples=state.examples,
        shared=state.shared,
    )
    plans = plan_rows(method, inputs, moment, offset)
    limit = method.groups.attempts
    if method.groups.all_wrong == "demonstration" and method.groups.all_right != "resample":
        limit = 1  # a demonstration in the group's place settles it
    logged = {name: len(values) for name, values in trainer.metrics.items()}
    rows = trainer.score(inputs, plans)
    fates = Fates.of(trainer, plans)
    for attempt in range(1, limit + 1):
        if not bool(fates.again_N.any()):
            break
        changed = next_attempt(trainer, Generation(inputs, plans, rows), moment, attempt, fates)
        if changed is None:
            break
        inputs, plans = changed
        for name, values in trainer.metrics.items():
            del values[logged.get(name, 0) :]  # an attempt that was given up is no result
        rows = trainer.score(inputs, plans)
        fates = Fates.of(trainer, plans)
    for name, share in (
        ("all_wrong", outcome.all_wrong(fates.rate_N)),
        ("all_right", outcome.all_right(fates.rate_N)),
        *([("resampled", fates.changed_N)] if method.groups.sampled_again else []),
    ):
        trainer.metrics[f"groups/{name}"].append(share.float().mean().item())
    learn(trainer, inputs, plans, moment, fates)
    return Generation(inputs, plans, rows)


def next_attempt(
    trainer: PrefixRFTTrainer, last: Generation, moment: Moment, attempt: int, fates: Fates
) -> tuple[Inputs, list[RowPlan]] | None:
    """The inputs and plans of the next attempt; None where no process changes a row."""
    method = trainer.method
    mine = own_rows(trainer.accelerator, len(last.plans))
    again, rate = fates.again_N[mine].tolist(), fates.rate_N[mine].tolist()
    inputs, plans, changes = [], [], 0
    for i, (example, plan) in enumerate(zip(last.inputs, last.plans, strict=True)):
        how = (method.groups.all_wrong if rate[i] == 0.0 else "resample") if again[i] else "keep"
        if how == "resample":
            example = another_example(trainer, moment, attempt, plan.group)
        fresh = replanned(method, plan, example, moment, attempt, how)
        if fresh is None:
            fresh = kept(plan, last.rows, i)
        else:
            changes += 1
        inputs.append(example)
        plans.append(fresh)
    total = trainer.accelerator.reduce(
        torch.tensor(changes, device=trainer.accelerator.device), reduction="sum"
    )
    return (inputs, plans) if int(total) else None


def replanned(
    method: Any, plan: RowPlan, example: dict[str, Any], moment: Moment, attempt: int, how: str
) -> RowPlan | None:
    """The row's plan for the next attempt, or None where it stays as it is."""
    if how == "keep" or (how != "resample" and not example[IDS]):
        return None
    group = moment.group(method, example, 0 if how == "resample" else attempt)
    blank = RowPlan(int(example[EXAMPLE]), plan.group, plan.row, attempt=attempt)
    if how == "demonstration":
        if plan.row:
            return None
        index = group.random().randrange(len(group.lengths))
        blank = replace(blank, replaced=True, planned=plan.start)
        return starting(blank, example, Start(index, group.lengths[index], 1.0))
    starts = starts_of(method, group)
    if how == "lengthen" and starts[plan.row] == plan.start:
        return None
    return starting(blank, example, starts[plan.row])


def kept(plan: RowPlan, rows: Rows, i: int) -> RowPlan:
    """The row with the completion that it has."""
    if plan.done:
        return plan
    mask = rows["completion_mask"][i].bool()
    logps = rows.get("sampling_per_token_logps")
    return replace(
        plan,
        kept=tuple(rows["completion_ids"][i][mask].tolist()),
        kept_logps=None
        if logps is None
        else tuple(None if x != x else x for x in logps[i][mask].tolist()),
    )


def another_example(
    trainer: PrefixRFTTrainer, moment: Moment, attempt: int, group: int
) -> dict[str, Any]:
    """An example of the dataset in place of a group's own, the same on every process."""
    rng = random.Random(f"resample:{moment.seed}:{moment.step}:{attempt}:{group}")
    rows: Any = trainer.train_dataset
    return dict(rows[rng.randrange(len(rows))])


def learn(
    trainer: PrefixRFTTrainer,
    inputs: Inputs,
    plans: Sequence[RowPlan],
    moment: Moment,
    fates: Fates,
) -> None:
    """Tell the planner how its groups went, and set aside what waits for imitation."""
    method, state, metrics = trainer.method, trainer.method_state, trainer.metrics
    remembers = method.planner.remembers
    if not remembers and method.groups.interleave is None:
        return
    # A group may lie across processes: each says what it holds of it.
    firsts = [
        (p.group, moment.group(method, x)) for p, x in zip(plans, inputs, strict=True) if p.row == 0
    ]
    everyone = trainer.gather_list(firsts)
    starts = trainer.gather_list(
        [(p.group, p.row, p.planned if p.replaced else p.start, p.replaced) for p in plans]
    )
    start_of = {(g, row): s for g, row, s, _ in starts}
    replaced = {(g, row) for g, row, _, r in starts if r}
    rewards = trainer.outcomes.tolist()
    by_group: dict[int, list[float]] = {}
    for g, r in zip(fates.group_N.tolist(), rewards, strict=True):
        by_group.setdefault(g, []).append(r)
    rate = dict(zip(fates.group_N.tolist(), fates.rate_N.tolist(), strict=True))
    waiting = {example for example, _ in state.waiting}
    for g, asked in sorted(everyone, key=lambda x: x[0]):
        if not asked.lengths:
            continue
        if remembers:
            own_starts: Starts = tuple(start_of[g, row] for row in range(asked.rows))
            # The reward of a demonstration in a row's place says nothing about that row.
            own_rewards = [
                math.nan if (g, row) in replaced else r for row, r in enumerate(by_group[g])
            ]
            state.learn(method.planner, asked, own_starts, own_rewards)
        waits = method.groups.interleave
        fails = waits is not None and rate[g] <= waits.unsolved_at
        if fails and asked.example not in waiting:
            rng = generator(asked.seed, asked.step, asked.example, -1)
            state.waiting.append((asked.example, rng.randrange(len(asked.lengths))))
            waiting.add(asked.example)
    if remembers:
        metrics["memory/examples"].append(float(len(state.examples)))
    if method.groups.interleave is not None:
        metrics["interleave/waiting"].append(float(len(state.waiting)))


def take_waiting(
    trainer: PrefixRFTTrainer, rows: int, offset: int
) -> tuple[Inputs, list[RowPlan]] | None:
    """This process's share of a generation of demonstrations, once enough of them wait."""
    if trainer.method.groups.interleave is None:
        return None
    waiting = trainer.method_state.waiting
    room = rows * trainer.accelerator.num_processes
    wanted = min(trainer.method.groups.interleave.prompts or room, room)
    full = len(waiting) >= wanted
    trainer.metrics["interleave/step"].append(float(full))
    if not full:
        return None
    taken = waiting[:wanted]
    del waiting[:wanted]
    dataset: Any = trainer.train_dataset
    inputs, plans = [], []
    for i in range(offset, offset + rows):
        index, which = taken[i % wanted]
        example = dict(dataset[index])
        plan = RowPlan(index, i, 0)
        if i < wanted:
            plan = starting(plan, example, Start(which, len(example[IDS][which]), 1.0))
        else:  # one token, so that every process has its rows
            plan = replace(plan, kept=(trainer.renderer.end,), filler=True)
        inputs.append(example)
        plans.append(plan)
    return inputs, plans

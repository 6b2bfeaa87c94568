"""From a batch of prompts to the rollouts of a generation: plan, sample, and perhaps sample again.

Every decision is taken from what all processes know (rewards of all rows), so all take the same
one, and each holds the same number of rows throughout. A row that an attempt does not change keeps
its completion: it is not sampled again, only scored with the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Method, outcome
from prefix_rft.core.planner import Start, Starts
from prefix_rft.core.prefix import generator
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.metrics import group_metrics, memory_metrics, store_metrics
from prefix_rft.engines.plan import (
    RowPlan,
    RunPoint,
    another_example,
    guided,
    in_turn,
    plan_rows,
    replanned,
    starting,
)
from prefix_rft.engines.state import MethodState
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.rollout.generation import Generation, Inputs, Sampled, Sampler
from prefix_rft.engines.trl.rollout.scores import scores_of
from prefix_rft.engines.trl.window import Rows

Attempt = tuple[Inputs, list[RowPlan]]
"""What is to be sampled: an example and a plan for each row of this process."""

Guide = Callable[[Mapping[str, Any], RowPlan, RunPoint], Sequence[int] | None]
"""The ids of a teacher's prompt for a row; None where there are none."""

Limits = Callable[[Sequence[Mapping[str, Any]]], Mapping[int, tuple[int, ...]] | None]
"""Of examples, how long a prefix of each of their sources may be; None where nothing is limited."""


@dataclass(frozen=True)
class GroupResults:
    """How the groups of an attempt went, on every row of all processes.

    Attributes:
        reward_N: the rewards of the rows.
        group_N: group ids.
        rate_N: solve rate of the group's sampled rows; NaN where none has a reward.
        again_N: bool, the method changes the group.
        changed_N: bool, an attempt has changed it already.
    """

    reward_N: Tensor
    group_N: Tensor
    rate_N: Tensor
    again_N: Tensor
    changed_N: Tensor

    @classmethod
    def of(
        cls, method: Method, plans: Sequence[RowPlan], reward_N: Tensor, processes: Processes
    ) -> GroupResults:
        """From the rewards of an attempt at this process's ``plans``."""
        table = [[p.group, int(p.whole), p.attempt] for p in plans]
        group_N, whole_N, attempt_N = processes.gather(
            torch.tensor(table, device=processes.device)
        ).T
        demo_N = whole_N.bool()
        rate_N = outcome.solve_rate(reward_N, group_N, ~demo_N, method.groups.solved_above)
        again_N = torch.zeros_like(demo_N)
        if method.groups.all_wrong in ("resample", "lengthen", "guide"):
            again_N |= outcome.all_wrong(rate_N)
        elif method.groups.all_wrong == "demonstration":  # one that is there settles the group
            again_N |= outcome.all_wrong(rate_N) & ~torch.isin(group_N, group_N[demo_N])
        if method.groups.all_right == "resample":
            again_N |= outcome.all_right(rate_N)
        changed_N = torch.isin(group_N, group_N[attempt_N > 0])
        return cls(reward_N, group_N, rate_N, again_N, changed_N)


class Rounds:
    """Makes generations, and tells the method's memory how they went.

    Args:
        method: decides where rows start, and which groups are sampled again.
        state: what the method remembers; changed as groups go.
        dataset: rows with demonstrations as token ids; gone back to where the method asks for it.
        processes: the run's processes.
        filler: id of the token that a row consists of which only fills a generation up.
        limits: says of examples, with all that rows of them may start from, how long a prefix may
            be; called by all processes together.
        guide: gives the prompts from which rows of groups that fail are sampled.
    """

    def __init__(
        self,
        method: Method,
        state: MethodState,
        dataset: Any,
        processes: Processes,
        filler: int,
        limits: Limits,
        guide: Guide,
    ) -> None:
        self.method, self.state, self.dataset = method, state, dataset
        self.processes, self.filler = processes, filler
        self.limits, self.guide = limits, guide

    def generate(self, moment: RunPoint, inputs: Inputs, sample: Sampler) -> Generation:
        """Plan and sample the rows, and change groups as the method's ``all_wrong`` asks.

        Args:
            moment: the point of the run before the generation.
            inputs: this process's examples, as many as on every other one.
            sample: samples and rewards rows as planned; called once for each attempt, and each
                turn.
        """
        method = self.method
        first = self.processes.own(len(inputs)).start
        waiting, told = self._take_waiting(len(inputs), first)
        if waiting is not None:
            sampled = sample(*waiting)
            metrics = {**_lists(told), **sampled.metrics}
            return Generation(*waiting, sampled, imitation=True, metrics=metrics)
        moment = self._limited(moment, inputs)
        plans, sampled = self._in_turns(
            inputs, plan_rows(method, inputs, moment, first), moment, sample
        )
        limit = method.groups.attempts
        if method.groups.all_wrong == "demonstration" and method.groups.all_right != "resample":
            limit = 1  # a demonstration in the group's place settles it
        results = GroupResults.of(method, plans, sampled.reward_N, self.processes)
        for attempt in range(1, limit + 1):
            if not bool(results.again_N.any()):
                break
            changed = self._next_attempt(inputs, plans, sampled, moment, attempt, results)
            if changed is None:
                break
            inputs, plans, moment = changed
            sampled = sample(inputs, plans)  # an attempt that is given up is no result
            results = GroupResults.of(method, plans, sampled.reward_N, self.processes)
        after = group_metrics(method, results.rate_N, results.changed_N)
        after |= self._learn(inputs, plans, moment, results)
        after |= self._keep(inputs, plans, moment, results, sampled.rows)
        metrics = {**_lists(told), **sampled.metrics, **_lists(after)}
        return Generation(inputs, plans, sampled, imitation=False, metrics=metrics)

    def _in_turns(
        self, inputs: Inputs, plans: list[RowPlan], moment: RunPoint, sample: Sampler
    ) -> tuple[list[RowPlan], Sampled]:
        """Sample the rows, those that wait for others once these have their rewards.

        Until then a row that waits is a token that nobody asks a sampler for. A row that has been
        sampled is kept.
        """
        turns = self.method.planner.turns(moment.num_generations)
        last = max(turns)
        plans = [self._waiting(p) if turns[p.row] else replace(p, more=last > 0) for p in plans]
        sampled = sample(inputs, plans)
        for turn in range(1, last + 1):
            known, fresh = sampled.reward_N.tolist(), []
            for i, (example, plan) in enumerate(zip(inputs, plans, strict=True)):
                begin = plan.group * len(turns)
                rewards = [*known[begin : begin + len(turns)]]
                done = tuple(r if t < turn else None for r, t in zip(rewards, turns, strict=True))
                if turns[plan.row] == turn:
                    plan = in_turn(self.method, plan, example, moment, done)
                elif turns[plan.row] < turn:
                    plan = reused(plan, sampled.rows, i)
                fresh.append(replace(plan, more=turn < last))
            plans = fresh
            sampled = sample(inputs, plans)
        return plans, sampled

    def _waiting(self, plan: RowPlan) -> RowPlan:
        """The row until it has its turn."""
        blank = RowPlan(plan.example, plan.group, plan.row)
        return replace(blank, kept=(self.filler,), filler=True, more=True)

    def _limited(self, moment: RunPoint, inputs: Inputs) -> RunPoint:
        """The point of the run, with how long prefixes of these examples may be."""
        return replace(moment, limits=self.limits([moment.with_own(x) for x in inputs]))

    def _next_attempt(
        self,
        inputs: Inputs,
        plans: Sequence[RowPlan],
        sampled: Sampled,
        moment: RunPoint,
        attempt: int,
        results: GroupResults,
    ) -> tuple[Inputs, list[RowPlan], RunPoint] | None:
        """What to sample next, with its limits; None where no process changes a row."""
        method = self.method
        own_rows = self.processes.own(len(plans))
        again, rate = results.again_N[own_rows].tolist(), results.rate_N[own_rows].tolist()
        hows = [
            (method.groups.all_wrong if r == 0.0 else "resample") if a else "keep"
            for a, r in zip(again, rate, strict=True)
        ]
        examples = [
            another_example(self.dataset, moment, attempt, p.group) if how == "resample" else x
            for x, p, how in zip(inputs, plans, hows, strict=True)
        ]
        moment = self._limited(moment, examples)
        fresh, changes = [], 0
        for i, (example, plan, how) in enumerate(zip(examples, plans, hows, strict=True)):
            ids = self.guide(example, plan, moment) if how == "guide" else None
            again = (plan, example, moment, attempt, how)
            new = guided(plan, ids, attempt) if ids else replanned(method, *again)
            changes += new is not None
            fresh.append(reused(plan, sampled.rows, i) if new is None else new)
        total = self.processes.sum(torch.tensor(changes, device=self.processes.device))
        return (examples, fresh, moment) if int(total) else None

    def _learn(
        self, inputs: Inputs, plans: Sequence[RowPlan], moment: RunPoint, results: GroupResults
    ) -> dict[str, float]:
        """Tell the planner how its groups went, and set aside what waits for imitation."""
        method, state = self.method, self.state
        remembers = method.planner.remembers
        interleave = method.groups.interleave
        if not remembers and interleave is None:
            return {}
        # A group may lie across processes: each says what it holds of it.
        everyone = self.processes.gather_list(
            [
                (p.group, moment.group(method, x))
                for p, x in zip(plans, inputs, strict=True)
                if p.row == 0
            ]
        )
        starts = self.processes.gather_list(
            [(p.group, p.row, p.planned if p.replaced else p.start, p.replaced) for p in plans]
        )
        start_of = {(g, row): s for g, row, s, _ in starts}
        replaced = {(g, row): r for g, row, _, r in starts}
        groups = results.group_N.tolist()
        by_group: dict[int, list[float]] = {}
        for g, r in zip(groups, results.reward_N.tolist(), strict=True):
            by_group.setdefault(g, []).append(r)
        rate = dict(zip(groups, results.rate_N.tolist(), strict=True))
        waiting = {example for example, _ in state.waiting}
        for g, asked in sorted(everyone, key=lambda x: x[0]):
            if not asked.lengths and method.planner.store is None:
                continue
            if remembers:
                rows = range(asked.rows)
                began: Starts = tuple(start_of[g, row] for row in rows)
                instead = [replaced[g, row] for row in rows]
                state.learn(method.planner, asked, began, by_group[g], instead)
            fails = interleave is not None and rate[g] <= interleave.unsolved_at
            if fails and asked.example not in waiting:
                rng = generator(asked.seed, asked.step, asked.example, -1)
                state.waiting.append((asked.example, rng.randrange(len(asked.lengths))))
                waiting.add(asked.example)
        metrics: dict[str, float] = {}
        if remembers:
            metrics |= memory_metrics(state.examples)
        if interleave is not None:
            metrics["interleave/waiting"] = float(len(state.waiting))
        return metrics

    def _keep(
        self,
        inputs: Inputs,
        plans: Sequence[RowPlan],
        moment: RunPoint,
        results: GroupResults,
        rows: Rows,
    ) -> dict[str, float]:
        """Keep own rollouts for later rows to start from, as the planner's store asks.

        A row is the policy's own if it was sampled from the prompt: one behind a demonstration's
        prefix, or with a hint in its prompt, is not.
        """
        method, store = self.method, self.method.planner.store
        if store is None:
            return {}
        rewards = results.reward_N[self.processes.own(len(plans))].tolist()
        found = []
        for i, plan in enumerate(plans):
            if plan.hybrid or plan.whole or plan.filler or math.isnan(rewards[i]):
                continue
            solved, ids = rewards[i] > method.groups.solved_above, None
            if store.keeps(solved):
                mask = rows["completion_mask"][i].bool()
                ids = tuple(rows["completion_ids"][i][mask].tolist())
            found.append((plan.group, plan.row, moment.group(method, inputs[i]), (ids, solved)))
        by_group: dict[int, list[Any]] = {}
        for group, _, *own in sorted(self.processes.gather_list(found), key=lambda x: x[:2]):
            by_group.setdefault(group, []).append(own)
        for some in by_group.values():
            self.state.keep(store, some[0][0], [own for _, own in some])
        self.state.bound(store)
        return store_metrics(self.state.traces)

    def _take_waiting(self, rows: int, first: int) -> tuple[Attempt | None, dict[str, float]]:
        """This process's share of a generation of demonstrations, once enough of them wait."""
        interleave, waiting = self.method.groups.interleave, self.state.waiting
        if interleave is None:
            return None, {}
        room = rows * self.processes.count
        wanted = min(interleave.prompts or room, room)
        full = len(waiting) >= wanted
        metrics = {"interleave/step": float(full)}
        if not full:
            return None, metrics
        taken = waiting[:wanted]
        del waiting[:wanted]
        inputs, plans = [], []
        for i in range(first, first + rows):
            index, which = taken[i % wanted]
            example = dict(self.dataset[index])
            plan = RowPlan(index, i, 0)
            if i < wanted:
                plan = starting(plan, example, Start(which, len(example[IDS][which]), 1.0))
            else:  # one token, so that every process has its rows
                plan = replace(plan, kept=(self.filler,), filler=True)
            inputs.append(example)
            plans.append(plan)
        return (inputs, plans), metrics


def reused(plan: RowPlan, rows: Rows, i: int) -> RowPlan:
    """The plan of row ``i`` with the completion that it has, which is not sampled again."""
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
        kept_scores=scores_of(rows, i),
    )


def _lists(metrics: Mapping[str, float]) -> dict[str, list[float]]:
    return {name: [value] for name, value in metrics.items()}

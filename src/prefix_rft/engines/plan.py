"""Which rows of a generation batch start from which demonstration tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefix_rft.core import Method
from prefix_rft.core.planner import BOUNDARIES, Group, Record, Start, Starts
from prefix_rft.core.store import Seen, Trace
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.support.errors import UserError, choose


@dataclass(frozen=True)
class RowPlan:
    """One row: its group, its place in the group, and what is known of it before sampling.

    Attributes:
        example: index in the dataset.
        group: id, unique in the generation batch of all processes.
        row: place in the group.
        start: where in a demonstration it starts; None for an on-policy row.
        prefix: the demonstration's ids up to there.
        hint: the same where they stand in the prompt, and not in the answer.
        whole: the row is a whole demonstration; nothing is sampled.
        kept: completion of an earlier attempt, prefix included, which stays as it is.
        kept_logps: the sampler's log-probs of that completion, if it gave any.
        kept_scores: log-probs and entropies of the policy at its tokens, if they are known.
        attempt: how often its group has been sampled before.
        filler: the row takes no part in the step, or waits for its turn.
        more: rows of its generation are yet to be sampled, in later turns.
        replaced: a demonstration stands in the place of the row that had been sampled.
        planned: the start of that row.
        guarded: it was to start from a longer prefix, beyond its group's limit.
        guided: the ids of a teacher's prompt, from which it is sampled in place of its own.
    """

    example: int
    group: int
    row: int
    start: Start | None = None
    prefix: tuple[int, ...] = ()
    hint: tuple[int, ...] = ()
    whole: bool = False
    kept: tuple[int, ...] | None = None
    kept_logps: tuple[float | None, ...] | None = None
    kept_scores: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    attempt: int = 0
    filler: bool = False
    more: bool = False
    replaced: bool = False
    planned: Start | None = None
    guarded: bool = False
    guided: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        """Whether nothing is left to sample."""
        return self.whole or self.kept is not None

    @property
    def known(self) -> tuple[int, ...]:
        """The ids of the completion that are known before sampling."""
        return self.prefix if self.kept is None else self.kept

    @property
    def hybrid(self) -> bool:
        """Whether it continues a prefix of at least one token, or has a hint in its prompt."""
        return bool(self.prefix or self.hint) and not self.whole

    @property
    def context(self) -> bool:
        """Whether its prefix is context in any method."""
        return self.hybrid and self.start is not None and not self.start.trained


@dataclass(frozen=True)
class RunPoint:
    """What planning needs to know of the run.

    Attributes:
        num_generations: rows of a group.
        seed: the run's seed.
        step: optimizer step at which the rows are generated.
        total_steps: the optimizer steps of the run.
        max_completion_length: budget in tokens, prefix included.
        newlines: texts of the tokens with a line's end in them, for planners that ask for
            boundaries.
        examples: what the planner remembers of each example.
        shared: and of all of them.
        traces: own rollouts of each example that its store has kept.
        limits: how long a prefix may be of each source of an example, for those that are planned;
            None where nothing is limited.
    """

    num_generations: int
    seed: int
    step: int
    total_steps: int
    max_completion_length: int
    newlines: Mapping[int, str] = field(default_factory=dict)
    examples: Mapping[int, Record] | None = None
    shared: Record | None = None
    traces: Mapping[int, Sequence[Trace]] | None = None
    limits: Mapping[int, tuple[int, ...]] | None = None

    def with_own(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        """The example with its own rollouts behind its demonstrations."""
        own = (self.traces or {}).get(int(example[EXAMPLE]), ())
        return {**example, IDS: [*example[IDS], *(t.ids for t in own)]} if own else example

    def group(
        self,
        method: Method,
        example: Mapping[str, Any],
        attempt: int = 0,
        rewards: tuple[float | None, ...] = (),
    ) -> Group:
        """The group of an example that is about to be sampled, with those of its rows that are."""
        index = int(example[EXAMPLE])
        demonstrations = example[IDS]
        boundaries: tuple[tuple[int, ...], ...] = ()
        if kind := method.planner.needs_boundaries:
            choose("kind of boundary", kind, BOUNDARIES)
            boundaries = tuple(ends(d, self.newlines, kind) for d in demonstrations)
        return Group(
            example=index,
            rows=self.num_generations,
            lengths=tuple(len(d) for d in demonstrations),
            seed=self.seed,
            step=self.step,
            total_steps=self.total_steps,
            max_length=self.max_completion_length,
            attempt=attempt,
            attempts=method.groups.attempts,
            own=(self.examples or {}).get(index, {}),
            shared=self.shared or {},
            boundaries=boundaries,
            solved_above=method.groups.solved_above,
            seen=tuple(
                Seen(len(t.ids), t.solved, t.step) for t in (self.traces or {}).get(index, ())
            ),
            in_prompt=method.planner.hint is not None,
            limits=() if self.limits is None else self.limits[index],
            rewards=rewards,
        )


def ends(ids: Sequence[int], newlines: Mapping[int, str], kind: str) -> tuple[int, ...]:
    """The lengths at which a line of these ids has ended, or a blank line.

    Args:
        ids: token ids.
        newlines: texts of the tokens with a line's end in them.
        kind: ``line`` or ``blank_line``.
    """
    found, before = [], ""
    for length, token in enumerate(ids, 1):
        text = newlines.get(token, "")
        blank = "\n\n" in text or (before.endswith("\n") and text.startswith("\n"))
        if blank or (text and kind == "line"):
            found.append(length)
        before = text
    return tuple(found)


def plan_rows(
    method: Method,
    inputs: Sequence[Mapping[str, Any]],
    moment: RunPoint,
    offset: int = 0,
    attempt: int = 0,
) -> list[RowPlan]:
    """Plan this process's rows, which stand at ``offset`` in the generation batch of all.

    A group whose example has nothing to start from is on-policy throughout.
    """
    plans, starts, before = [], (), None
    for i, example in enumerate(inputs):
        group, row = divmod(offset + i, moment.num_generations)
        if group != before:
            asked = moment.group(method, example, attempt)
            starts = starts_of(method, asked)
            before = group
        plan = RowPlan(int(example[EXAMPLE]), group, row, attempt=attempt)
        in_prompt = method.planner.hint is not None
        plans.append(starting(plan, moment.with_own(example), starts[row], in_prompt))
    return plans


def starts_of(method: Method, group: Group) -> Starts:
    """Where the rows of a group start, as the method's planner says and the group's limits allow.

    Raises:
        UserError: it does not say so of each row, or goes beyond a demonstration.
    """
    sources = group.sources
    if not sources:
        return group.everyone(None)
    starts = tuple(method.planner.starts(group))
    if len(starts) != group.rows:
        raise UserError(
            f"the planner of method '{method.name}' gave {len(starts)} starts for {group.rows} rows"
        )
    for s in starts:
        inside = s is None or (0 <= s.index < len(sources) and 0 <= s.length <= sources[s.index])
        if not inside:
            raise UserError(
                f"the planner of method '{method.name}' starts a row at {s}, outside the "
                f"demonstrations of {sources} tokens"
            )
    return tuple(s and group.within(s) for s in starts)


def starting(
    plan: RowPlan, example: Mapping[str, Any], start: Start | None, in_prompt: bool = False
) -> RowPlan:
    """The row, starting there, or with that part of a demonstration in its prompt."""
    guarded = start is not None and start.guarded
    plan = replace(plan, start=None, prefix=(), hint=(), whole=False, guarded=guarded)
    if start is None or not start.length:
        return plan
    demonstration = example[IDS][start.index]
    ids = tuple(int(t) for t in demonstration[: start.length])
    if in_prompt:
        return replace(plan, start=start, hint=ids)
    return replace(plan, start=start, prefix=ids, whole=start.length == len(demonstration))


# ---- rows that wait ------------------------------------------------------------------------------


def in_turn(
    method: Method,
    plan: RowPlan,
    example: Mapping[str, Any],
    moment: RunPoint,
    rewards: tuple[float | None, ...],
) -> RowPlan:
    """The plan of a row that has its turn.

    Args:
        method: the method whose planner decides.
        plan: the row while it waited.
        example: the group's example.
        moment: the point of the run at which the group was planned first.
        rewards: those of the group's rows that have been sampled, None for the others.
    """
    start = starts_of(method, moment.group(method, example, rewards=rewards))[plan.row]
    blank = RowPlan(plan.example, plan.group, plan.row)
    in_prompt = method.planner.hint is not None
    return starting(blank, moment.with_own(example), start, in_prompt)


# ---- sampling again ------------------------------------------------------------------------------


def starts_again(
    method: Method,
    example: Mapping[str, Any],
    moment: RunPoint,
    attempt: int,
    how: str,
    before: Starts,
) -> Starts:
    """Where the rows of a group start when it is sampled again because every row of it failed.

    Args:
        method: the method whose planner decides.
        example: the group's example, with at least one demonstration.
        moment: the point of the run at which the group was planned first.
        attempt: how often the group has been sampled before.
        how: ``lengthen`` its prefixes, or put a whole ``demonstration`` in its first row's place.
        before: where the rows started the last time.
    """
    group = moment.group(method, example, attempt)
    if how == "demonstration":
        index = group.random().randrange(len(group.lengths))
        return (Start(index, group.lengths[index], 1.0), *before[1:])
    return starts_of(method, group)


def replanned(
    method: Method,
    plan: RowPlan,
    example: Mapping[str, Any],
    moment: RunPoint,
    attempt: int,
    how: str,
) -> RowPlan | None:
    """The row's plan for the next attempt, or None where it stays as it is.

    Args:
        method: the method whose planner decides.
        plan: the plan of the row in the attempt before.
        example: the example which the row's group is to be of.
        moment: the point of the run at which the generation was planned first.
        attempt: number of the next attempt, from 1.
        how: ``keep`` the group, ``resample`` it for another example, ``guide`` it, which keeps a
            row without a teacher's prompt, or see :func:`starts_again`.
    """
    if how in ("keep", "guide") or (how != "resample" and not example[IDS]):
        return None
    blank = RowPlan(int(example[EXAMPLE]), plan.group, plan.row, attempt=attempt)
    in_prompt = method.planner.hint is not None
    if how == "resample":
        starts = starts_of(method, moment.group(method, example))
        return starting(blank, moment.with_own(example), starts[plan.row], in_prompt)
    before = (plan.start,) * moment.num_generations  # only its own is asked for
    start = starts_again(method, example, moment, attempt, how, before)[plan.row]
    if start == plan.start:
        return None
    if how == "demonstration":
        blank = replace(blank, replaced=True, planned=plan.start)
    return starting(blank, moment.with_own(example), start, in_prompt)


def guided(plan: RowPlan, prompt: Sequence[int], attempt: int) -> RowPlan:
    """The row, sampled again from a teacher's prompt.

    Args:
        plan: the plan of the row in the attempt before.
        prompt: the ids of the teacher's prompt.
        attempt: number of the next attempt, from 1.
    """
    blank = RowPlan(plan.example, plan.group, plan.row, attempt=attempt)
    return replace(blank, guided=tuple(prompt))


def another_example(rows: Any, moment: RunPoint, attempt: int, group: int) -> dict[str, Any]:
    """An example of the dataset in place of a group's own, the same on every process."""
    rng = random.Random(f"resample:{moment.seed}:{moment.step}:{attempt}:{group}")
    return dict(rows[rng.randrange(len(rows))])

"""One pass over the rollouts of a run: a few groups to show, and what curves they make."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefix_rft.report.points import Point
from prefix_rft.report.samples import ShownGroup, group_of
from prefix_rft.runs.reader import RunFolder
from prefix_rft.runs.rollouts import DEMONSTRATION, GUIDED, HYBRID, POLICY, Rollout, mean_reward

EXTREMES = 10
"""Worst and best groups to show."""

OVER_TRAINING = 3
"""Groups to show of the first, the middle and the last generation."""

Rollouts = Sequence[Rollout]
Rank = tuple[float, int, int]
"""Mean reward (or its negative), negative step, group: the smallest come first."""


@dataclass
class Collected:
    """What the report needs of a run's rollouts.

    Attributes:
        generations: how many there are on disk.
        rows: rollouts in all.
        groups: groups in all.
        worst: lowest mean on-policy reward first; equal ones: the later step first.
        best: highest first, likewise.
        over_training: groups of the first, the middle and the last generation, by step.
        lengths: mean length in tokens by generation: ``policy`` and ``demonstration`` rows,
            ``prefix`` (hybrid rollouts with their prefix) and ``continuation`` (without it).
        kept_known: whether some row says which of its prefix tokens were trained.
    """

    generations: int = 0
    rows: int = 0
    groups: int = 0
    worst: dict[Rank, ShownGroup] = field(default_factory=dict)
    best: dict[Rank, ShownGroup] = field(default_factory=dict)
    over_training: dict[int, list[ShownGroup]] = field(default_factory=dict)
    lengths: dict[str, list[Point]] = field(default_factory=lambda: defaultdict(list))
    kept_known: bool = False


def collect(run: RunFolder) -> Collected:
    """Read every generation once; never more than one is in memory, beside the groups to show.

    Raises:
        UserError: a file is damaged.
    """
    collected = Collected()
    steps = run.generations()
    shown = {steps[0], steps[len(steps) // 2], steps[-1]} if steps else set()
    # Backwards: of equal groups the later ones are shown, and so the earlier need not be built.
    for step in reversed(steps):
        _add(collected, run.rollouts(step), step, step in shown)
    for points in collected.lengths.values():
        points.reverse()
    collected.over_training = dict(sorted(collected.over_training.items()))
    return collected


def _add(collected: Collected, rollouts: Rollouts, step: int, shown: bool) -> None:
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group].append(rollout)
    collected.generations += 1
    collected.rows += len(rollouts)
    collected.groups += len(groups)
    collected.kept_known |= any(r.kept is not None for r in rollouts)
    means = {g: mean_reward(part, POLICY) for g, part in groups.items()}
    ranked = {(m, -step, g): groups[g] for g, m in means.items() if m is not None}
    collected.worst = extremes(collected.worst, ranked, step)
    reverse = {(-m, s, g): r for (m, s, g), r in ranked.items()}
    collected.best = extremes(collected.best, reverse, step)
    if shown:
        first = [groups[g] for g in sorted(groups)[:OVER_TRAINING]]
        collected.over_training[step] = [group_of(part, step) for part in first]
    for name, length in mean_lengths(rollouts).items():
        collected.lengths[name].append((step, length))


def extremes(
    kept: dict[Rank, ShownGroup], new: Mapping[Rank, Rollouts], step: int
) -> dict[Rank, ShownGroup]:
    """The ``EXTREMES`` smallest ranks among groups that were kept and those of a new step."""
    ranks = heapq.nsmallest(EXTREMES, [*kept, *new])
    return {rank: kept[rank] if rank in kept else group_of(new[rank], step) for rank in ranks}


def mean_lengths(rollouts: Rollouts) -> dict[str, float]:
    """Mean number of tokens by origin, for origins that have rows."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for rollout in rollouts:
        origin, tokens = rollout.origin, len(rollout.completion_ids)
        if origin == HYBRID:
            lengths["prefix"].append(tokens)
            lengths["continuation"].append(tokens - rollout.prefix_length)
        else:
            names = {DEMONSTRATION: "demonstration", GUIDED: "guided"}
            lengths[names.get(origin, "policy")].append(tokens)
    return {name: sum(values) / len(values) for name, values in lengths.items()}

"""From the records of a sequence of tasks to its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefix_rft.compare.continual import measures
from prefix_rft.compare.continual.measures import Stages, Values
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.continual.stages import multi_name, stage_name
from prefix_rft.compare.costs import Costs
from prefix_rft.compare.job import BASE, Job
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import rewards
from prefix_rft.evaluation.estimates import Estimate, over_parts

AVG, BEST = "AvgAcc", "mean of best"
FM, FM_WITH_BASE = "FM (max over stages 1..T)", "FM (max over base and stages 1..T)"
CGL = "FM (CGL: after its own stage, k < T)"
LEARNT = "learnt in its own stage"


def fm_name(base_in_max: bool) -> str:
    """What FM is called, which says whether the base is in its maximum."""
    return FM_WITH_BASE if base_in_max else FM


@dataclass(frozen=True)
class Way:
    """One arm's way through the tasks, or the base's, or an arm's run on all tasks at once.

    Attributes:
        name: the arm's name, or ``base``.
        seeds: the seeds of which every stage is done.
        at_once: it is the run on all tasks at once.
        matrices: ``P`` of each seed; empty where there are no stages.
        measures: the measures by name.
        differences: less the reference arm, paired by seed and problem, by name.
        less_at_once: AvgAcc less that of the run on all tasks at once, paired likewise.
        others: for each set that was not trained on, means by stage, the base's first.
        kept: for each of these sets the last stage's mean.
        kept_less_base: the last stage's mean less the base's.
        kept_differences: the last stage's mean less the reference's.
        costs: means over seeds, all stages together.
    """

    name: str
    seeds: Sequence[int]
    at_once: bool
    matrices: Values
    measures: Mapping[str, Estimate]
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    less_at_once: Estimate | None = None
    others: Mapping[str, Values] = field(default_factory=dict)
    kept: Mapping[str, Estimate] = field(default_factory=dict)
    kept_less_base: Mapping[str, Estimate] = field(default_factory=dict)
    kept_differences: Mapping[str, Estimate] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)

    @property
    def label(self) -> str:
        """The arm's name in tables."""
        return f"{self.name}, all at once" if self.at_once else self.name


@dataclass(frozen=True)
class Runs:
    """The finished runs of an arm on one way, by stage and seed; the base stands in front.

    Attributes:
        stages: the jobs of each stage; of the base as many as there are seeds.
        seeds: the numbers of the seeds.
    """

    stages: Sequence[Sequence[Job]]
    seeds: Sequence[int]

    def at(self, seeds: Sequence[int]) -> Runs:
        """The same at some of its seeds."""
        places = [self.seeds.index(seed) for seed in seeds]
        return Runs([[row[i] for i in places] for row in self.stages], seeds)


def run_of(board: Board, names: Sequence[str]) -> Runs:
    """The seeds at which every one of these stages is done.

    Args:
        board: the runs.
        names: the names of the stages.
    """
    arms = [board.comparison.arm(name) for name in names]
    jobs = {s: [board.job(arm, s) for arm in arms] for s in range(board.comparison.seeds)}
    done = [s for s, own in jobs.items() if all(board.record(j) is not None for j in own)]
    rows = [[jobs[s][i] for s in done] for i in range(len(arms))]
    return Runs([[board.base] * len(done), *rows], done)


def sequence(board: Board, arm: str) -> Runs:
    """An arm's stages, one task after the other."""
    names = [stage_name(arm, i, task.name) for i, task in enumerate(board.tasks, 1)]
    return run_of(board, names)


def values(board: Board, run: Runs, temperature: float) -> Stages:
    """The rewards of a run's stages on every task."""
    tasks = [task.name for task in board.tasks]
    return [[rewards(board, row, name, temperature) for name in tasks] for row in run.stages]


def parts_of(stages: Stages, base_in_max: bool) -> dict[str, list[Values]]:
    """By measure, the values that it is the mean of.

    Args:
        stages: the rewards after each stage.
        base_in_max: the base counts where the best stage is looked for.
    """
    return {
        AVG: measures.final(stages),
        BEST: measures.best(stages, base_in_max),
        fm_name(base_in_max): measures.forgetting(stages, base_in_max),
        CGL: measures.after_own_stage(stages),
        LEARNT: measures.learnt(stages),
    }


def others_of(board: Board) -> list[str]:
    """The sets that no stage trains on."""
    record = board.record(board.base) or {"sets": {}}
    tasks = {task.name for task in board.tasks}
    return [name for name in record["sets"] if name not in tasks]


def all_ways(board: Board, continual: Continual, temperature: float) -> list[Way]:
    """The base, and every arm that has been through all tasks at one seed at least.

    Args:
        board: the runs.
        continual: the sequence.
        temperature: the temperature of the samples.
    """
    if board.record(board.base) is None:
        return []
    at = AtTemperature(board, continual, temperature)
    found = [at.base()]
    for arm in continual.arms:
        found += at.ways(arm.name)
    return found


@dataclass(frozen=True)
class AtTemperature:
    """A board at one temperature.

    Attributes:
        board: the runs.
        continual: the sequence.
        temperature: the temperature of the samples.
    """

    board: Board
    continual: Continual
    temperature: float

    def base(self) -> Way:
        """The base, which has been through nothing."""
        run = Runs([[self.board.base]], [0])
        stages = values(self.board, run, self.temperature)
        kept = {name: over_parts([self._other(run, name)]) for name in others_of(self.board)}
        average = {AVG: over_parts(measures.final(stages))}
        return Way(BASE, [0], False, np.empty((0, 0, 0)), average, kept=kept)

    def ways(self, arm: str) -> list[Way]:
        """An arm's way through the tasks, and its run on all of them at once."""
        runs = [(False, sequence(self.board, arm))]
        if self.continual.multi_task:
            runs.append((True, run_of(self.board, [multi_name(arm)])))
        return [self._path(arm, run, at_once) for at_once, run in runs if run.seeds]

    def _path(self, arm: str, run: Runs, at_once: bool) -> Way:
        names = others_of(self.board)
        reference = self._paired(run, sequence(self.board, self.continual.reference))
        if arm == self.continual.reference and not at_once:
            reference = None
        parts = self._parts(run, at_once)
        less = {} if reference is None else self._parts(reference, False)
        last = {name: self._other(run, name) for name in names}
        first = {name: self._other(run, name, 0) for name in names}
        together = None
        if not at_once and self.continual.multi_task:
            together = self._paired(run, run_of(self.board, [multi_name(arm)]))
        spent = sum((self.board.costs(job) for job in run.stages[-1]), Costs())
        return Way(
            name=arm,
            seeds=run.seeds,
            at_once=at_once,
            matrices=measures.matrix(values(self.board, run, self.temperature)),
            measures={name: over_parts(own) for name, own in parts.items()},
            differences={n: _less(own, less[n]) for n, own in parts.items() if n in less},
            less_at_once=together and _less(parts[AVG], self._parts(together, True)[AVG]),
            others={name: self._by_stage(run, name) for name in names},
            kept={name: over_parts([own]) for name, own in last.items()},
            kept_less_base={name: _less([own], [first[name]]) for name, own in last.items()},
            kept_differences={}
            if reference is None
            else {n: _less([own], [self._other(reference, n)]) for n, own in last.items()},
            costs=Costs(*(v / len(run.seeds) for v in vars(spent).values())),
        )

    def _parts(self, run: Runs, at_once: bool) -> dict[str, list[Values]]:
        """What each measure is the mean of; a run on all tasks at once has nothing to forget."""
        stages = values(self.board, run, self.temperature)
        if at_once:
            return {AVG: measures.final(stages)}
        return parts_of(stages, self.continual.base_in_max)

    def _paired(self, run: Runs, other: Runs) -> Runs | None:
        """The other run at the seeds of the first; None where it lacks one."""
        return other.at(run.seeds) if set(run.seeds) <= set(other.seeds) else None

    def _other(self, run: Runs, name: str, stage: int = -1) -> Values:
        """The rewards of a stage on a set that was not trained on."""
        return rewards(self.board, run.stages[stage], name, self.temperature)

    def _by_stage(self, run: Runs, name: str) -> Values:
        """Means over seeds on a set that was not trained on, the base's first."""
        stages = [[self._other(run, name, t)] for t in range(len(run.stages))]
        return measures.matrix(stages)[:, :, 0]


def _less(own: Sequence[Values], other: Sequence[Values]) -> Estimate:
    return over_parts([a - b for a, b in zip(own, other, strict=True)])


def plain_matrix(board: Board, continual: Continual, arm: str, seed: int) -> dict[str, Any] | None:
    """``P`` of an arm at a seed with its measures, as plain data; None while a stage is not done.

    Args:
        board: the runs.
        continual: the sequence.
        arm: the arm's name.
        seed: the number of the seed.
    """
    whole = sequence(board, arm)
    if seed not in whole.seeds or board.record(board.base) is None:
        return None
    run, with_base = whole.at([seed]), continual.base_in_max
    tasks, others = [task.name for task in board.tasks], others_of(board)
    by_temperature = {}
    for temperature in board.comparison.temperatures:
        stages = values(board, run, temperature)
        sets = {n: [[rewards(board, row, n, temperature)] for row in run.stages] for n in others}
        means = {n: over_parts(own).mean for n, own in parts_of(stages, with_base).items()}
        by_temperature[f"{temperature:g}"] = {
            "matrix": plain(measures.matrix(stages)[0]),
            **{name: plain(mean) for name, mean in means.items()},
            "others": {name: plain(measures.matrix(own)[0, :, 0]) for name, own in sets.items()},
        }
    return {
        "arm": arm,
        "seed": seed,
        "tasks": tasks,
        "rows": [BASE, *(f"after {name}" for name in tasks)],
        "temperatures": by_temperature,
    }


def plain(numbers: Any) -> Any:
    """Numbers, or nested lists of them, with None for what was not graded."""
    if isinstance(numbers, (list, np.ndarray)):
        return [plain(x) for x in numbers]
    return None if math.isnan(numbers) else float(numbers)

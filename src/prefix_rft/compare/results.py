"""From the records of runs to the numbers of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefix_rft.compare.arm import Arm
from prefix_rft.compare.costs import Costs
from prefix_rft.compare.job import BASE, Job, written
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.work import HELD_OUT
from prefix_rft.evaluation.estimates import Estimate, over_graded, pass_at_k, seed_spread
from prefix_rft.evaluation.scores import Problem, powers, split_by

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One arm on one set at one temperature.

    Attributes:
        problems: graded or not.
        avg: mean reward, interval over seeds and problems.
        spread: standard deviation over seeds of the mean.
        difference: less the reference arm, paired by seed and problem; None for the reference, and
            where seeds do not pair.
        less_base: less the base model, likewise; None for the base.
        pass_at: pass@k by k.
        parts: mean reward by column and part of the problems.
        part_sizes: problems of each part, graded or not.
        part_differences: less the reference, likewise.
        truncated: share of samples cut by the length limit.
        no_answer: share of samples without an answer.
        tokens: mean sampled tokens.
    """

    problems: int
    avg: Estimate
    spread: float
    difference: Estimate | None
    less_base: Estimate | None
    pass_at: dict[int, Estimate]
    parts: dict[str, dict[str, Estimate]]
    part_sizes: dict[str, dict[str, int]]
    part_differences: dict[str, dict[str, Estimate]]
    truncated: float
    no_answer: float
    tokens: float


@dataclass(frozen=True)
class ArmResult:
    """One arm.

    Attributes:
        name: the arm's, or ``base``.
        seeds: runs behind it.
        swept: what was chosen, and whether it lies at an edge of the values tried.
        steps: optimizer steps of its own.
        costs: means over seeds, the arms that it starts from included.
        cells: the numbers by set and temperature.
        collected: which own answers it was trained on; empty where it collects none.
    """

    name: str
    seeds: int
    swept: str
    steps: float
    costs: Costs
    cells: dict[str, dict[float, Cell]]
    collected: str = ""

    @property
    def group(self) -> str:
        """Arms of a group stand together."""
        return self.name.rpartition("/")[0]


def arm_results(board: Board) -> list[ArmResult]:
    """The results of the base and of each arm with at least one finished run."""
    base = board.record(board.base)
    reference = finished(board, board.comparison.arm(board.comparison.reference))
    arms = []
    if base is not None:
        arms.append(_arm_result(board, BASE, [board.base], None, None, reference))
    for arm in board.comparison.arms:
        runs = finished(board, arm)
        if runs:
            against = None if arm.name == board.comparison.reference else reference
            arms.append(_arm_result(board, arm.name, runs, arm, base, against))
    return arms


def finished(board: Board, arm: Arm) -> list[Job]:
    """The finished runs of an arm, by seed."""
    if arm.sweep and board.chosen(arm) is None:
        return []
    jobs = [board.final(arm, seed) for seed in range(board.comparison.seeds)]
    return [j for j in jobs if board.record(j) is not None]


def _arm_result(
    board: Board,
    name: str,
    runs: Sequence[Job],
    arm: Arm | None,
    base: Mapping[str, Any] | None,
    reference: Sequence[Job] | None,
) -> ArmResult:
    records = [_record(board, job) for job in runs]
    costs = sum((board.costs(j) for j in runs), Costs())
    cells: dict[str, dict[float, Cell]] = {}
    for set_name in records[0]["sets"]:
        cells[set_name] = {}
        for temperature in board.comparison.temperatures:
            cells[set_name][temperature] = _cell(
                board, set_name, temperature, runs, base, reference
            )
    return ArmResult(
        name=name,
        seeds=len(runs),
        swept="" if arm is None else _swept(board, arm),
        steps=0.0
        if arm is None
        else float(np.mean([r["spec"]["steps"] or math.nan for r in records])),
        costs=Costs(*(v / len(runs) for v in vars(costs).values())),
        cells=cells,
        collected=_collected(board, runs),
    )


def _record(board: Board, job: Job) -> dict[str, Any]:
    record = board.record(job)
    assert record is not None  # noqa: S101  (finished runs only)
    return record


def _swept(board: Board, arm: Arm) -> str:
    for key in arm.sweep:
        chosen, values = board.chosen(arm), board.swept(arm)
        edge = len(values) > 1 and chosen in (min(values), max(values))
        of = ", ".join(map(written, values))
        return f"{key} {written(chosen)} of {of}" + (" (at the edge)" if edge else "")
    return ""


def _collected(board: Board, runs: Sequence[Job]) -> str:
    """What the runs of an arm have collected, means over seeds."""
    arm = runs[0].arm
    if arm is None or arm.collect is None:
        return ""
    found = [_record(board, board.collection(arm, j.seed))["found"] for j in runs]
    answers, solved = (float(np.mean([f[k] for f in found])) for k in ("answers", "solved"))
    return (
        f"{answers:g} own answers to {solved:g} of {found[0]['rows']} rows, of "
        f"{arm.collect.samples} samples of each"
    )


def rewards(board: Board, runs: Sequence[Job], set_name: str, temperature: float) -> Values:
    """Mean rewards, a row for each run and a column for each problem; NaN where ungraded."""
    rows = [_record(board, j)["sets"][set_name][f"{temperature:g}"]["reward"] for j in runs]
    return np.array([[math.nan if v is None else v for v in row] for row in rows])


def _cell(
    board: Board,
    set_name: str,
    temperature: float,
    runs: Sequence[Job],
    base: Mapping[str, Any] | None,
    reference: Sequence[Job] | None,
) -> Cell:
    key = f"{temperature:g}"
    tables = [_record(board, j)["sets"][set_name][key] for j in runs]
    own_rewards = rewards(board, runs, set_name, temperature)
    other = _paired_with(board, runs, reference, set_name, temperature)
    less_base = None
    if base is not None:
        row = [math.nan if v is None else v for v in base["sets"][set_name][key]["reward"]]
        less_base = _if_any(own_rewards - np.array(row))
    parts: dict[str, dict[str, Estimate]] = {}
    sizes: dict[str, dict[str, int]] = {}
    differences: dict[str, dict[str, Estimate]] = {}
    if set_name == HELD_OUT:
        for column, groups in _parts(_record(board, runs[0])).items():
            parts[column] = {k: over_graded(own_rewards[:, at]) for k, at in groups.items()}
            sizes[column] = {k: len(at) for k, at in groups.items()}
            if other is not None:
                differences[column] = {
                    k: over_graded(own_rewards[:, at] - other[:, at]) for k, at in groups.items()
                }
    return Cell(
        problems=own_rewards.shape[1],
        avg=over_graded(own_rewards),
        spread=seed_spread(own_rewards),
        difference=None if other is None else _if_any(own_rewards - other),
        less_base=less_base,
        pass_at=_pass_at(tables),
        parts=parts,
        part_sizes=sizes,
        part_differences=differences,
        truncated=float(np.mean([t["truncated"] for t in tables])),
        no_answer=float(np.mean([t["no_answer"] for t in tables])),
        tokens=float(np.mean([t["tokens"] for t in tables])),
    )


def _if_any(values: Values) -> Estimate | None:
    """Over seeds and problems; None where no problem was graded for every seed."""
    found = over_graded(values)
    return found if found.n else None


def _paired_with(
    board: Board,
    runs: Sequence[Job],
    reference: Sequence[Job] | None,
    set_name: str,
    temperature: float,
) -> Values | None:
    """The reference's rewards at the same seeds; for the base, at all of them, its mean."""
    if not reference:
        return None
    if runs[0].arm is None:
        return rewards(board, reference, set_name, temperature).mean(0, keepdims=True)
    by_seed = {j.seed: j for j in reference}
    if not all(j.seed in by_seed for j in runs):
        return None
    return rewards(board, [by_seed[j.seed] for j in runs], set_name, temperature)


def _pass_at(tables: Sequence[Mapping[str, Any]]) -> dict[int, Estimate]:
    most = max(n for t in tables for n in t["graded"])
    estimates = {}
    for k in powers(most) if most else []:
        values = [
            [
                pass_at_k(c, n, k) if n >= k else math.nan
                for c, n in zip(t["correct"], t["graded"], strict=True)
            ]
            for t in tables
        ]
        if (estimate := over_graded(values)).n:
            estimates[k] = estimate
    return estimates


def _parts(record: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """By column, the places of the problems of each part."""
    parts = {}
    for column, values in record["columns"].items():
        problems = [Problem(i, {column: v}, ()) for i, v in enumerate(values)]
        groups = split_by(problems, column)
        parts[column] = {label: [p.number for p in part] for label, part in groups.items()}
    return parts


def mean_path(board: Board, name: str) -> list[dict[str, float]]:
    """Means over seeds of an arm's measures along training; what it starts from comes first."""
    arm = board.comparison.arm(name)
    seeds = [
        record["trajectory"]
        for seed in range(board.comparison.seeds)
        if (not arm.sweep or board.chosen(arm) is not None)
        and (record := board.record(board.final(arm, seed))) is not None
        and record.get("trajectory")
    ]
    if not seeds:
        return []
    shortest = min(map(len, seeds))
    path = [
        {key: float(np.mean([s[i][key] for s in seeds])) for key in seeds[0][i]}
        for i in range(shortest)
    ]
    return [*_start_of(board, arm), *path]


def _start_of(board: Board, arm: Arm) -> list[dict[str, float]]:
    """The measures of the model that an arm starts from, at step 0."""
    if arm.start is not None:
        return [{**p, "step": 0.0} for p in mean_path(board, arm.start)[-1:]]
    base = board.record(board.base) or {}
    return list(base.get("trajectory") or [])

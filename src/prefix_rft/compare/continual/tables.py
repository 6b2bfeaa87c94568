"""The tables of a sequence of tasks as texts, whatever they are shown in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefix_rft.compare.continual.measures import Values
from prefix_rft.compare.continual.results import (
    AVG,
    BEST,
    CGL,
    LEARNT,
    Way,
    fm_name,
    others_of,
)
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.job import BASE
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.tables import Section, at, number
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.evaluation.table import percent

Ways = Mapping[float, Sequence[Way]]
"""By temperature, the base and every arm."""


def share(estimate: Estimate | None, between: str = " ") -> str:
    """``12.3 [11.0, 13.6]`` in percent; empty where there is none."""
    return "" if estimate is None else percent(estimate, between)


def points(estimate: Estimate | None, between: str = " ") -> str:
    """``+1.2 [-0.3, +2.7]`` in points; empty where there is none."""
    if estimate is None or not estimate.n:
        return ""
    return estimate.signed.replace(" [", between + "[")


def accuracy(board: Board, continual: Continual, ways: Ways, between: str = " ") -> list[Section]:
    """AvgAcc at each temperature, what it differs by, and the mean of the best on each task."""
    less = [f"less {continual.reference}", *["less all at once"] * continual.multi_task]
    head = ["arm", AVG, *less, BEST]
    return [
        Section(
            f"AvgAcc after the last task, {at(t)}, in % [95 % interval over seeds and problems]",
            head,
            [
                [
                    _label(board, way),
                    share(way.measures[AVG], between),
                    points(way.differences.get(AVG), between),
                    *[points(way.less_at_once, between)] * continual.multi_task,
                    share(way.measures.get(BEST), between),
                ]
                for way in own
            ],
        )
        for t, own in ways.items()
    ]


def forgotten(board: Board, continual: Continual, ways: Ways, between: str = " ") -> list[Section]:
    """FM in both definitions, and what was learnt, at each temperature."""
    head = ["arm", "in points", f"less {continual.reference}"]
    return [
        Section(
            f"{name}, {at(t)}",
            head,
            [
                [
                    _label(board, way),
                    points(way.measures.get(name), between),
                    points(way.differences.get(name), between),
                ]
                for way in own
                if name in way.measures
            ],
        )
        for t, own in ways.items()
        for name in (fm_name(continual.base_in_max), CGL, LEARNT)
    ]


def matrices(board: Board, ways: Sequence[Way]) -> list[Section]:
    """``P`` of every arm, means over its seeds, with the sets that no stage trains on."""
    tasks, others = [task.name for task in board.tasks], others_of(board)
    blocks = []
    for way in ways:
        if way.name == BASE:
            continue
        rows = ["all at once"] if way.at_once else [f"after {name}" for name in tasks]
        numbers = heat(way)
        lines = [
            [name, *(f"{100 * x:.1f}" if x == x else "" for x in own)]
            for name, own in zip([BASE, *rows], numbers, strict=True)
        ]
        seeds = f"{len(way.seeds)} seed{'s' * (len(way.seeds) != 1)}"
        blocks.append(Section(f"{way.label}, mean of {seeds}", ["", *tasks, *others], lines))
    return blocks


def heat(way: Way) -> Values:
    """What :func:`matrices` has of a way: a row for each stage, tasks and then the other sets."""
    parts = [way.matrices, *(own[:, :, None] for own in way.others.values())]
    return np.concatenate(parts, axis=2).mean(0)


def kept(board: Board, continual: Continual, ways: Ways, between: str = " ") -> list[Section]:
    """The sets that no stage trains on, at the end, and how they differ from the base's."""
    head = ["arm", "at the end", f"less {BASE}", f"less {continual.reference}"]
    return [
        Section(
            f"On {name}, {at(t)}, in %",
            head,
            [
                [
                    _label(board, way),
                    share(way.kept[name], between),
                    points(way.kept_less_base.get(name), between),
                    points(way.kept_differences.get(name), between),
                ]
                for way in own
            ],
        )
        for name in others_of(board)
        for t, own in ways.items()
    ]


def costs(board: Board, ways: Sequence[Way]) -> Section:
    """What all stages of an arm have cost together, means over seeds."""
    rows = []
    for way in ways:
        if way.name != BASE:
            spent = way.costs
            numbers = (spent.sampled, spent.trained, spent.flops)
            tokens = [number(v) if v else "" for v in numbers]
            rows.append([_label(board, way), *tokens, f"{spent.seconds:.0f} s"])
    head = ["arm", "sampled", "trained", "FLOPs", "time"]
    return Section("Costs of all stages, means over seeds", head, rows)


def _label(board: Board, way: Way) -> str:
    """The arm's name, with its seeds where some are missing."""
    seeds = board.comparison.seeds
    few = way.name != BASE and len(way.seeds) < seeds
    return way.label + (f" ({len(way.seeds)} of {seeds} seeds)" if few else "")


def every(board: Board, continual: Continual, ways: Ways) -> list[Section]:
    """All tables."""
    first = next(iter(ways.values()))
    return [
        *accuracy(board, continual, ways),
        *forgotten(board, continual, ways),
        *matrices(board, first),
        *kept(board, continual, ways),
        costs(board, first),
    ]


FIELDS = (
    *("arm", "all_at_once", "temperature", "seeds", "measure", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high"),
    *("less_base", "less_base_low", "less_base_high"),
)


def as_csv(ways: Ways) -> str:
    """One row for each arm, temperature and measure; shares between 0 and 1."""
    file = io.StringIO()
    writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
    writer.writeheader()
    for temperature, own in ways.items():
        for way in own:
            where: dict[str, Any] = {
                "arm": way.name,
                "all_at_once": way.at_once,
                "temperature": temperature,
                "seeds": len(way.seeds),
            }
            for name, estimate in way.measures.items():
                less = _ends("difference", way.differences.get(name))
                writer.writerow({**where, "measure": name, **_ends("", estimate), **less})
            for name, estimate in way.kept.items():
                less = _ends("difference", way.kept_differences.get(name))
                base = _ends("less_base", way.kept_less_base.get(name))
                writer.writerow({**where, "measure": name, **_ends("", estimate), **less, **base})
    return file.getvalue()


def _ends(name: str, estimate: Estimate | None) -> dict[str, Any]:
    """The columns of a mean and its interval."""
    if estimate is None or not estimate.n:
        return {}
    before = f"{name}_" if name else ""
    ends = {f"{before}low": estimate.low, f"{before}high": estimate.high}
    return {name or "mean": estimate.mean, **ends}

"""From the metrics of several runs to plots: which curves share a plot, under which heading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.report.chart import Chart, Line
from prefix_rft.report.points import Point
from prefix_rft.runs.metric_names import (
    EVALUATION,
    METRICS,
    ORIGIN_WORDS,
    OTHER,
    SCHEDULE,
    SECTIONS,
    SPLIT,
    Metric,
    metric_of,
)
from prefix_rft.runs.numbers import finite

Run = tuple[str, Mapping[str, list[Point]]]
"""Name of a run, and its series."""

BOUNDS = "bounds"
"""The plot that the two bounds of the prefix ratio share."""


@dataclass(frozen=True)
class Plots:
    """What a page shows of the metrics.

    Attributes:
        sections: heading and charts, in the order of ``SECTIONS``; empty ones are left out.
        constant: name and one value per run, of metrics that never changed in any run.
        single: the same for metrics that were written once (totals at the end of a run).
    """

    sections: dict[str, list[Chart]] = field(default_factory=dict)
    constant: list[tuple[str, list[float | None]]] = field(default_factory=list)
    single: list[tuple[str, list[float | None]]] = field(default_factory=list)


def series_of(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[Point]]:
    """Each metric's values by step, in the order of the file.

    Raises:
        KeyError: a line has no step.
        TypeError: a value is no number.
    """
    series: dict[str, list[Point]] = defaultdict(list)
    for line in metrics:
        for name, value in line.items():
            if name != "step":
                series[name].append((line["step"], finite(value)))
    return dict(series)


def place(name: str) -> tuple[str, str, str]:
    """Section, plot and origin (or bound) of a metric; the origin is ``policy`` without one.

    A metric that is not registered is placed by the parts of its name.
    """
    parts = name.split("/")
    if name in ("prefix/low", "prefix/high"):
        return SCHEDULE, BOUNDS, parts[1]
    metric = metric_of(name)
    if metric is not None and name.startswith(EVALUATION) and metric.name != name:
        metric = None  # the same metric as in training, of other rows
    if metric is not None and not metric.split:
        return metric.section, name, "policy"
    for index in (0, -1):
        if len(parts) > 1 and parts[index] in ORIGIN_WORDS:
            return SPLIT, "/".join(parts[1:] if index == 0 else parts[:-1]), parts[index]
    return OTHER, name, "policy"


def plots(runs: Sequence[Run]) -> Plots:
    """Sort the series of runs into plots.

    Args:
        runs: name and series of each run; a run's place in the list is its colour.
    """
    all_plots = Plots()
    members: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in dict.fromkeys(n for _, series in runs for n in series):
        if max(len(series.get(name, [])) for _, series in runs) == 1:
            all_plots.single.append((name, first_values(name, runs)))
        else:
            section, plot, dash = place(name)
            members[section, plot][name] = dash
    lines: dict[tuple[str, str], list[Line]] = {}
    for key, dashes in members.items():
        if all(constant(name, runs) for name in dashes):
            all_plots.constant.extend([(name, first_values(name, runs)) for name in dashes])
        else:
            lines[key] = [
                Line(f"{run}{_row_words(key, dash)}", series[name], colour, dash)
                for name, dash in dashes.items()
                for colour, (run, series) in enumerate(runs)
                if any(y is not None for _, y in series.get(name, []))
            ]
    for section in SECTIONS:
        keys = sorted((k for k in lines if k[0] == section), key=_rank)
        if keys:
            all_plots.sections[section] = [_chart(key, lines[key]) for key in keys]
    return all_plots


def first_values(name: str, runs: Sequence[Run]) -> list[float | None]:
    """A metric's first value in each run; None where a run has none."""
    return [next((y for _, y in series.get(name, []) if y is not None), None) for _, series in runs]


def constant(name: str, runs: Sequence[Run]) -> bool:
    """Whether a metric has one value, or none that is finite, in all runs."""
    values = {y for _, series in runs for _, y in series.get(name, [])}
    return len(values) <= 1


def _row_words(key: tuple[str, str], dash: str) -> str:
    if key == (SCHEDULE, BOUNDS):
        return f", {dash} bound"
    return f", {ORIGIN_WORDS[dash]}" if key[0] == SPLIT else ""


def _metric(key: tuple[str, str]) -> Metric | None:
    """What is registered of a plot, by its section and name."""
    section, name = key
    if key == (SCHEDULE, BOUNDS):
        name = "prefix/low"
    metric = metric_of(f"policy/{name}" if section == SPLIT else name)
    return metric if metric is not None and metric.section == section else None


def _rank(key: tuple[str, str]) -> int:
    """The place of a plot in its section: as registered, what is not registered at the end."""
    metric = _metric(key)
    return len(METRICS) if metric is None else METRICS.index(metric)


def _chart(key: tuple[str, str], lines: Sequence[Line]) -> Chart:
    metric = _metric(key)
    if metric is None:
        return Chart(key[1], "", key[1], lines)
    title, unit = metric.title, metric.unit
    if key[1] == BOUNDS:
        title, unit = "Bounds of the prefix ratio", "share; dashed: lower"
    return Chart(title, unit, key[1], lines, smooth=metric.measured)

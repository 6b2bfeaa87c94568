"""From the metrics of several runs to plots: which curves share a plot, under which heading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefix_rft.report.chart import Chart, Line
from prefix_rft.report.points import Point
from prefix_rft.report.samples import finite

ORIGINS = {
    "policy": "on-policy",
    "prefix": "hybrid",
    "continuation": "continuation",
    "demonstration": "demonstration",
}
"""First or last part of a metric's name, and the rows or tokens it is about, in words."""

Run = tuple[str, Mapping[str, list[Point]]]
"""Name of a run, and its series."""

BOUNDS = "bounds"

PREFIX_ONLY = {"low", "high", "length", "kept", "row_share", "token_share", "leak"}
"""Metrics about prefixes as such: nothing on-policy to compare them with."""

SPLIT = "Hybrid and on-policy rollouts"
SCHEDULE = "Prefix schedule"
TRAINING = "Training"
VERDICTS = "Verdicts and groups"
OTHER = "Other metrics"
SECTIONS = (SPLIT, SCHEDULE, TRAINING, VERDICTS, OTHER)

TITLES = {
    (SPLIT, "reward"): ("Reward", ""),
    (SPLIT, "completion_length"): ("Completion length", "tokens"),
    (SPLIT, "entropy"): ("Entropy", "nats per token"),
    (SPLIT, "logp"): ("Log-probability", "nats per token"),
    (SCHEDULE, BOUNDS): ("Bounds of the prefix ratio", "share; dashed: lower"),
    (SCHEDULE, "prefix/length"): ("Prefix length", "tokens"),
    (SCHEDULE, "prefix/kept"): ("Prefix tokens kept by entropy", "share"),
    (SCHEDULE, "prefix/row_share"): ("Rows with a prefix", "share"),
    (SCHEDULE, "prefix/token_share"): ("Prefix tokens among all", "share"),
    (TRAINING, "reward"): ("Reward, all rollouts", ""),
    (TRAINING, "loss"): ("Loss", ""),
    (TRAINING, "grad_norm"): ("Gradient norm", "before clipping"),
    (TRAINING, "learning_rate"): ("Learning rate", ""),
    (TRAINING, "clip_ratio/region_mean"): ("Clipped tokens", "share"),
    (TRAINING, "frac_reward_zero_std"): ("Groups without signal", "share"),
    (TRAINING, "completions/clipped_ratio"): ("Truncated completions", "share"),
    (TRAINING, "entropy"): ("Entropy, all tokens", "nats per token"),
}
"""Section and name of a plot, its title and unit, in the order in which they are shown."""

EXACT = {BOUNDS, "learning_rate", "epoch", "num_tokens"}
"""Plots of numbers that were set, not measured: there is nothing to smooth."""


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
    """Section, plot and origin (or bound) of a metric; the origin is ``policy`` without one."""
    parts = name.split("/")
    if name in ("prefix/low", "prefix/high"):
        return SCHEDULE, BOUNDS, parts[1]
    if parts[0] in ORIGINS and len(parts) == 2 and parts[1] in PREFIX_ONLY:
        return SCHEDULE, name, "policy"
    for index in (0, -1):
        if len(parts) > 1 and parts[index] in ORIGINS:
            return SPLIT, "/".join(parts[1:] if index == 0 else parts[:-1]), parts[index]
    if (TRAINING, name) in TITLES or parts[0] == "clip_ratio":
        return TRAINING, name, "policy"
    if parts[0] in ("verdicts", "groups"):
        return VERDICTS, name, "policy"
    return OTHER, name, "policy"


def plots(runs: Sequence[Run]) -> Plots:
    """Sort the series of runs into plots.

    Args:
        runs: name and series of each run; a run's place in the list is its colour.
    """
    found = Plots()
    members: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in dict.fromkeys(n for _, series in runs for n in series):
        if max(len(series.get(name, [])) for _, series in runs) == 1:
            found.single.append((name, first_values(name, runs)))
        else:
            section, plot, dash = place(name)
            members[section, plot][name] = dash
    lines: dict[tuple[str, str], list[Line]] = {}
    for key, dashes in members.items():
        if all(constant(name, runs) for name in dashes):
            found.constant.extend([(name, first_values(name, runs)) for name in dashes])
        else:
            lines[key] = [
                Line(f"{run}{_row_words(key, dash)}", series[name], colour, dash)
                for name, dash in dashes.items()
                for colour, (run, series) in enumerate(runs)
                if any(y is not None for _, y in series.get(name, []))
            ]
    order = list(TITLES)
    place_of = {key: order.index(key) if key in TITLES else len(order) for key in lines}
    for section in SECTIONS:
        keys = sorted((k for k in lines if k[0] == section), key=lambda k: place_of[k])
        if keys:
            found.sections[section] = [_chart(key, lines[key]) for key in keys]
    return found


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
    return f", {ORIGINS[dash]}" if key[0] == SPLIT else ""


def _chart(key: tuple[str, str], lines: Sequence[Line]) -> Chart:
    title, unit = TITLES.get(key, (key[1], ""))
    return Chart(title, unit, key[1], lines, smooth=key[1] not in EXACT)

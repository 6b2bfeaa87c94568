"""The tables of a comparison as texts, whatever they are shown in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_rft.compare.job import BASE
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import ArmResult, Cell, mean_path
from prefix_rft.compare.work import HELD_OUT
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.evaluation.table import few_of, percent

COLLECTED = "collected"
"""Column of the tokens drawn for own answers, where an arm collects some."""


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        title: above it.
        head: names of its columns, the first one ``arm``.
        rows: the rows, each of as many texts.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float) -> str:
    """``12.3M`` and the like; ``1.2e18`` from there on."""
    if value >= 1e15:
        return f"{value:.1e}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def at(temperature: float) -> str:
    """``T = 0.6`` or ``greedy``."""
    return f"T = {temperature:g}" if temperature else "greedy"


def percents(share: Estimate) -> str:
    """``82 % [60, 104]``."""
    low, mean, high = (100 * x for x in (share.low, share.mean, share.high))
    return f"{mean:.0f} % [{low:.0f}, {high:.0f}]"


def results(board: Board, arms: Sequence[ArmResult], between: str = " ") -> Section:
    """Mean rewards on held-out problems; ``between`` stands between a mean and its interval."""
    comparison = board.comparison
    temperatures = comparison.temperatures
    rows = []
    for line in arms:
        by_t = line.cells[HELD_OUT]
        difference = by_t[temperatures[0]].difference
        few = 0 < line.seeds < comparison.seeds and line.name != BASE
        rows.append(
            [
                line.name + (f" ({line.seeds} of {comparison.seeds} seeds)" if few else ""),
                *(percent(by_t[t].avg, between, by_t[t].problems) for t in temperatures),
                "" if difference is None else difference.signed.replace(" [", between + "["),
            ]
        )
    less = f"less {comparison.reference}, {at(temperatures[0])}"
    title = f"held-out avg@{comparison.samples} in % [95 % interval over seeds and problems]"
    return Section(title, ["arm", *map(at, temperatures), less], rows)


def costs(board: Board, arms: Sequence[ArmResult]) -> Section:
    """Costs, pass@k and shares of samples, means over seeds, at the first temperature."""
    k = board.comparison.samples
    collecting = [COLLECTED] * collects(arms)
    names = ["arm", "steps", *collecting, "sampled", "trained", "FLOPs", "time"]
    head = [*names, f"pass@{k}", "cut", "no answer", "sd"]
    title = "means over seeds, what an arm starts from included; sd over seeds in points"
    return Section(title, head, [_costs_row(board, line, collects(arms)) for line in arms])


def collects(arms: Sequence[ArmResult]) -> bool:
    """Whether some arm has collected own answers, so that a column tells what for."""
    return any(line.costs.collected for line in arms)


def _costs_row(board: Board, line: ArmResult, collecting: bool) -> list[str]:
    first = line.cells[HELD_OUT][board.comparison.temperatures[0]]
    k, spent = board.comparison.samples, line.costs
    tokens = [*[spent.collected] * collecting, spent.sampled, spent.trained, spent.flops]
    return [
        line.name,
        f"{line.steps:.0f}" if line.steps else "",
        *(number(v) if v else "" for v in tokens),
        f"{spent.seconds:.0f} s" if spent.seconds else "",
        _share(first.pass_at[k], first.problems) if k in first.pass_at else "",
        f"{100 * first.truncated:.1f}",
        f"{100 * first.no_answer:.1f}",
        "" if math.isnan(first.spread) else f"{100 * first.spread:.1f}",
    ]


def _share(estimate: Estimate, of: int) -> str:
    """``25.2``, in percent, with the number of problems where it is not over all of them."""
    few = few_of(estimate.n, of)
    return f"{100 * estimate.mean:.1f}{' ' * bool(few)}{few}"


def parts(board: Board, arms: Sequence[ArmResult]) -> list[Section]:
    """Mean rewards on the parts of the problems, a table for each column they are split by."""
    first = board.comparison.temperatures[0]
    return [
        Section(
            f"By {column}, {at(first)}",
            ["arm", *labels],
            [[x.name, *(_part(x.cells[HELD_OUT][first], column, y) for y in labels)] for x in arms],
        )
        for column, labels in arms[0].cells[HELD_OUT][first].parts.items()
    ]


def _part(cell: Cell, column: str, label: str) -> str:
    return percent(cell.parts[column][label], of=cell.part_sizes[column][label])


def other_sets(board: Board, arms: Sequence[ArmResult]) -> list[Section]:
    """Mean rewards on the sets besides the held-out one, and how they differ from the base's."""
    temperatures = board.comparison.temperatures
    head = ["arm", *map(at, temperatures), f"less base, {at(temperatures[0])}"]
    blocks = []
    for name in dict.fromkeys(n for line in arms for n in line.cells if n != HELD_OUT):
        rows = []
        for line in arms:
            cells = [line.cells[name][t] for t in temperatures]
            less = cells[0].less_base
            signed = "" if less is None else less.signed
            rows.append([line.name, *(percent(c.avg, of=c.problems) for c in cells), signed])
        blocks.append(Section(f"On {name}", head, rows))
    return blocks


def pass_at(board: Board, arms: Sequence[ArmResult]) -> list[Section]:
    """pass@k at the first temperature; nothing where there is one sample."""
    first = board.comparison.temperatures[0]
    ks = sorted({k for line in arms for k in line.cells[HELD_OUT][first].pass_at})
    if len(ks) < 2:
        return []
    rows = []
    for line in arms:
        by_k, of = line.cells[HELD_OUT][first].pass_at, line.cells[HELD_OUT][first].problems
        rows.append([line.name, *(percent(by_k[k], of=of) if k in by_k else "" for k in ks)])
    return [Section(f"pass@k, {at(first)}", ["arm", *(f"k = {k}" for k in ks)], rows)]


def along_training(board: Board, arms: Sequence[ArmResult]) -> list[Section]:
    """The models saved along training, means over seeds; nothing where none were."""
    rows = []
    for line in arms:
        for point in mean_path(board, line.name) if line.name != BASE else ():
            alone, after_half = 100 * point["reward_0"], 100 * point["reward_0.5"]
            numbers = (f"{alone:.1f}", f"{after_half:.1f}", f"{after_half - alone:.1f}")
            rows.append([line.name, f"{point['step']:.0f}", f"{point['sft_loss']:.3f}", *numbers])
    if not rows:
        return []
    title = "Along training (SFT loss in nats on held-out demonstrations, rewards in %, T = 1)"
    head = ["arm", "step", "SFT loss", "reward", "after half a demonstration", "more"]
    return [Section(title, head, rows)]

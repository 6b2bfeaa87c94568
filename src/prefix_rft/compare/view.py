"""A comparison as tables in the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefix_rft.compare.jobs import BASE, Board
from prefix_rft.compare.results import Cell, Line, mean_path
from prefix_rft.eval_view import percent, temperature_name

HELD_OUT = "held-out"


def number(value: float) -> str:
    """``12.3M`` and the like; ``1.2e18`` from there on."""
    if value >= 1e15:
        return f"{value:.1e}".replace("e+", "e")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def results_header(board: Board) -> list[str]:
    """Of the table of results."""
    temperatures = board.comparison.temperatures
    shown = [f"T = {t:g}" if t else "greedy" for t in temperatures]
    return ["arm", *shown, f"less {board.comparison.reference}, {shown[0]}"]


def results_cells(board: Board, line: Line, between: str = " ") -> list[str]:
    """Of one arm in it."""
    by_t = line.cells[HELD_OUT]
    difference = by_t[board.comparison.temperatures[0]].difference
    few = 0 < line.seeds < board.comparison.seeds and line.name != BASE
    return [
        line.name + (f" ({line.seeds} seeds)" if few else ""),
        *(percent(by_t[t].avg, between) for t in board.comparison.temperatures),
        "" if difference is None else difference.signed.replace(" [", between + "["),
    ]


def costs_header(board: Board) -> list[str]:
    """Of the table of costs."""
    names = ["arm", "steps", "sampled", "trained", "FLOPs", "time"]
    return [*names, f"pass@{board.comparison.samples}", "cut", "no answer", "sd"]


def costs_cells(board: Board, line: Line) -> list[str]:
    """Of one arm in the table of costs: means over seeds, at the first temperature."""
    first = line.cells[HELD_OUT][board.comparison.temperatures[0]]
    k, costs = max(first.pass_at, default=0), line.costs
    return [
        line.name,
        f"{line.steps:.0f}" if line.steps else "",
        *(number(v) if v else "" for v in (costs.sampled, costs.trained, costs.flops)),
        f"{costs.seconds:.0f} s" if costs.seconds else "",
        f"{100 * first.pass_at[k].mean:.1f}" if k == board.comparison.samples else "",
        f"{100 * first.truncated:.1f}",
        f"{100 * first.no_answer:.1f}",
        "" if math.isnan(first.spread) else f"{100 * first.spread:.1f}",
    ]


def show(console: Console, board: Board, found: Sequence[Line]) -> None:
    """Two tables, results and costs, and what was chosen where something was swept."""
    k = board.comparison.samples
    title = f"held-out avg@{k} in % [95 % interval over seeds and problems]"
    rows = [results_cells(board, line, "\n") for line in found]
    console.print(_rich(title, results_header(board), rows, found))
    title = "means over seeds, what an arm starts from included; sd over seeds in points"
    rows = [costs_cells(board, line) for line in found]
    console.print(_rich(title, costs_header(board), rows, found))
    for line in found:
        if line.swept:
            console.print(f"{line.name}: {line.swept}", highlight=False, markup=False)


def _rich(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], found: Sequence[Line]
) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in head:
        is_name = name == "arm"
        justify = "left" if is_name else "right"
        table.add_column(Text(name), justify=justify, no_wrap=is_name)
    group = found[0].group
    for line, cells in zip(found, rows, strict=True):
        if line.group != group:
            table.add_section()
            group = line.group
        table.add_row(*map(Text, cells))
    return table


FIELDS = (
    "arm", "set", "temperature", "seeds", "mean", "low", "high", "sd_over_seeds",
    "difference", "difference_low", "difference_high", "less_base", "less_base_low",
    "less_base_high", "truncated", "no_answer", "tokens", "steps",
    "sampled", "prefilled", "forward", "trained", "flops", "seconds", "swept",
)  # fmt: skip


def as_csv(found: Sequence[Line]) -> str:
    """One row for each arm, set and temperature; shares between 0 and 1."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list[str](FIELDS), lineterminator="\n")
    writer.writeheader()
    for line in found:
        for one, by_t in line.cells.items():
            for temperature, cell in by_t.items():
                writer.writerow(
                    {
                        "arm": line.name,
                        "set": one,
                        "temperature": temperature,
                        "seeds": line.seeds,
                        **_plain(cell),
                        "steps": line.steps,
                        **asdict(line.costs),
                        "swept": line.swept,
                    }
                )
    return file.getvalue()


def _plain(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean": cell.avg.mean,
        "low": cell.avg.low,
        "high": cell.avg.high,
        "sd_over_seeds": "" if math.isnan(cell.spread) else cell.spread,
        "truncated": cell.truncated,
        "no_answer": cell.no_answer,
        "tokens": cell.tokens,
    }
    for name in ("difference", "less_base"):
        estimate = getattr(cell, name)
        if estimate is not None:
            found |= {
                name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high
            }  # fmt: skip
    return found


def as_markdown(board: Board, found: Sequence[Line]) -> str:
    """The tables of the page: results, costs, parts of the problems, other sets, pass@k."""
    k = board.comparison.samples
    blocks = [
        f"Held-out avg@{k} in % [95 % interval over seeds and problems]:",
        _table(results_header(board), [results_cells(board, line) for line in found]),
        "Costs and the like, means over seeds, what an arm starts from included; "
        "cut and without an answer in % of samples at the first temperature, sd over "
        "seeds in points:",
        _table(costs_header(board), [costs_cells(board, line) for line in found]),
    ]
    notes = [f"- {line.name}: {line.swept}" for line in found if line.swept]
    if notes:
        blocks.append("Chosen on validation rows at seed 0:\n\n" + "\n".join(notes))
    blocks += _part_tables(board, found)
    blocks += _set_tables(board, found)
    blocks += [_pass_table(board, found), _training_table(board, found)]
    return "\n\n".join(b for b in blocks if b) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _part_tables(board: Board, found: Sequence[Line]) -> list[str]:
    first = board.comparison.temperatures[0]
    blocks = []
    for column in found[0].cells[HELD_OUT][first].parts if found else ():
        labels = list(found[0].cells[HELD_OUT][first].parts[column])
        rows = [
            [line.name, *(percent(line.cells[HELD_OUT][first].parts[column][x]) for x in labels)]
            for line in found
        ]
        title = f"By {column}, T = {temperature_name(first)}:"
        blocks.append(f"{title}\n\n{_table(['arm', *labels], rows)}")
    return blocks


def _set_tables(board: Board, found: Sequence[Line]) -> list[str]:
    temperatures = board.comparison.temperatures
    names = dict.fromkeys(n for line in found for n in line.cells if n != HELD_OUT)
    blocks = []
    for name in names:
        head = ["arm", *map(temperature_name, temperatures), "less base"]
        rows = []
        for line in found:
            if name in line.cells:
                by_t = line.cells[name]
                less = by_t[temperatures[0]].less_base
                rows.append(
                    [
                        line.name,
                        *(percent(by_t[t].avg) for t in temperatures),
                        "" if less is None else less.signed,
                    ]
                )
        blocks.append(f"On `{name}`:\n\n{_table(head, rows)}")
    return blocks


def _pass_table(board: Board, found: Sequence[Line]) -> str:
    first = board.comparison.temperatures[0]
    ks = sorted({k for line in found for k in line.cells[HELD_OUT][first].pass_at})
    if len(ks) < 2:
        return ""
    rows = []
    for line in found:
        at = line.cells[HELD_OUT][first].pass_at
        rows.append([line.name, *(percent(at[k]) if k in at else "" for k in ks)])
    head = ["arm", *(f"k = {k}" for k in ks)]
    return f"pass@k, T = {temperature_name(first)}:\n\n{_table(head, rows)}"


def _training_table(board: Board, found: Sequence[Line]) -> str:
    """The models saved along training, means over seeds."""
    rows = []
    for line in found:
        for point in mean_path(board, line.name) if line.name != BASE else ():
            alone, given = 100 * point["reward_0"], 100 * point["reward_0.5"]
            numbers = (f"{alone:.1f}", f"{given:.1f}", f"{given - alone:.1f}")
            rows.append([line.name, f"{point['step']:.0f}", f"{point['sft_loss']:.3f}", *numbers])
    if not rows:
        return ""
    head = ["arm", "step", "SFT loss", "reward", "after half a demonstration", "more"]
    title = "Along training (SFT loss in nats on held-out demonstrations, rewards in %, T = 1)"
    return f"{title}:\n\n{_table(head, rows)}"

"""A comparison in the terminal, as CSV and as Markdown."""

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

from prefix_rft.compare import remains, tables
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import ArmResult, Cell
from prefix_rft.compare.tables import Section
from prefix_rft.support.console import say


def show(console: Console, board: Board, arms: Sequence[ArmResult]) -> None:
    """Two tables, results and costs, what was chosen where something was swept, and controls."""
    for block in (tables.results(board, arms, "\n"), tables.costs(board, arms)):
        console.print(rich_table(block, [line.group for line in arms]))
    first = board.comparison.temperatures[0]
    if (block := remains.table(board, first, "\n")) is not None:
        console.print(rich_table(block))
    for sentence in remains.sentences(board):
        say(console, sentence)
    for line in arms:
        for words in filter(None, (line.swept, line.collected)):
            say(console, f"{line.name}: {words}")


def rich_table(block: Section, groups: Sequence[str] = ()) -> Table:
    """A table for the terminal.

    Args:
        block: the table.
        groups: the group of each row, where there are several, which stand apart.
    """
    table = Table(title=block.title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in block.head:
        is_name = name == block.head[0]
        justify = "left" if is_name else "right"
        table.add_column(Text(name), justify=justify, no_wrap=is_name)
    for number, cells in enumerate(block.rows):
        if number and groups and groups[number] != groups[number - 1]:
            table.add_section()
        name, *numbers = cells
        table.add_row(Text(name.replace(", control: ", ",\n  control: ")), *map(Text, numbers))
    return table


FIELDS = (
    "arm", "set", "temperature", "seeds", "mean", "low", "high", "sd_over_seeds",
    "difference", "difference_low", "difference_high", "less_base", "less_base_low",
    "less_base_high", "truncated", "no_answer", "tokens", "steps",
    "sampled", "prefilled", "forward", "trained", "flops", "seconds", "swept",
)  # fmt: skip


def as_csv(arms: Sequence[ArmResult]) -> str:
    """One row for each arm, set and temperature; shares between 0 and 1."""
    file = io.StringIO()
    names = [*FIELDS, tables.COLLECTED] if tables.collects(arms) else list[str](FIELDS)
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in arms:
        for set_name, by_t in line.cells.items():
            for temperature, cell in by_t.items():
                writer.writerow(
                    {
                        "arm": line.name,
                        "set": set_name,
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
    columns: dict[str, Any] = {
        **{k: getattr(cell.avg, k) if cell.avg.n else "" for k in ("mean", "low", "high")},
        "sd_over_seeds": "" if math.isnan(cell.spread) else cell.spread,
        "truncated": cell.truncated,
        "no_answer": cell.no_answer,
        "tokens": cell.tokens,
    }
    for name in ("difference", "less_base"):
        estimate = getattr(cell, name)
        if estimate is not None:
            columns |= {
                name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high
            }  # fmt: skip
    return columns


def as_markdown(board: Board, arms: Sequence[ArmResult]) -> str:
    """All tables of the page."""
    blocks = [markdown(tables.results(board, arms)), markdown(tables.costs(board, arms))]
    notes = [f"- {line.name}: {line.swept}" for line in arms if line.swept]
    if notes:
        chosen = "validation" if board.comparison.validation_data else "held-out"
        blocks.append(f"Chosen on {chosen} rows at seed 0:\n\n" + "\n".join(notes))
    own = [f"- {line.name}: {line.collected}" for line in arms if line.collected]
    if own:
        blocks.append("Collected, means over seeds:\n\n" + "\n".join(own))
    for temperature in board.comparison.temperatures:
        if (block := remains.table(board, temperature)) is not None:
            blocks.append(markdown(block))
    if words := remains.sentences(board):
        blocks.append("\n".join(f"- {x}" for x in words))
    for make in (tables.parts, tables.other_sets, tables.pass_at, tables.along_training):
        blocks += map(markdown, make(board, arms))
    return "\n\n".join(blocks) + "\n"


def markdown(block: Section) -> str:
    """A table for a page of Markdown, with its title above it."""
    lines = [block.head, ["---", *["---:"] * (len(block.head) - 1)], *block.rows]
    # Names of parts are data: a bar would be read as the end of a cell.
    table = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in x) + " |" for x in lines)
    return f"{block.title}:\n\n{table}"

"""The page of a sequence of tasks: one self-contained HTML file, as that of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefix_rft.compare.continual import tables
from prefix_rft.compare.continual.results import AVG, CGL, LEARNT, Way, fm_name
from prefix_rft.compare.continual.settings import Continual
from prefix_rft.compare.continual.tables import Ways
from prefix_rft.compare.job import BASE
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.page import forest, machine_of
from prefix_rft.compare.tables import Section, at
from prefix_rft.compare.view import markdown
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.report.text import MINUS
from prefix_rft.report.write import render
from prefix_rft.support.writing import write_text


def write_page(board: Board, continual: Continual, ways: Ways) -> Path:
    """Write ``continual.html`` and ``continual.md``; returns the path of the first."""
    blocks = tables.every(board, continual, ways)
    write_text(board.folder / "continual.md", "\n\n".join(map(markdown, blocks)) + "\n")
    path = board.folder / "continual.html"
    page = render(context(board, continual, ways), "continual.html.jinja", "prefix_rft.compare")
    write_text(path, page)
    return path


def context(board: Board, continual: Continual, ways: Ways) -> dict[str, Any]:
    """What the template is given."""
    first = next(iter(ways.values()))
    names = (AVG, fm_name(continual.base_in_max), CGL, LEARNT)
    seeds = board.comparison.seeds
    return {
        "title": Path(board.recipe).stem + ": " + ", ".join(arm.name for arm in continual.arms[:6]),
        "arms": len(continual.arms),
        "tasks": [task.name for task in board.tasks],
        "reference": continual.reference,
        "seeds": seeds,
        "samples": board.comparison.samples,
        "base_in_max": continual.base_in_max,
        "missing": [w.label for w in first if w.name != BASE and len(w.seeds) < seeds],
        "differences": [
            block
            for t, own in ways.items()
            for name in names
            for block in forest([(f"{name}, {at(t)}", _differences(own, name))])
        ],
        "accuracy": [_grid(b) for b in tables.accuracy(board, continual, ways)],
        "forgotten": [_grid(b) for b in tables.forgotten(board, continual, ways)],
        "matrices": _matrices(board, first),
        "kept": [_grid(b) for b in tables.kept(board, continual, ways)],
        "costs": _grid(tables.costs(board, first)),
        "machine": machine_of(board),
    }


def _differences(ways: Sequence[Way], name: str) -> list[tuple[str, Estimate]]:
    """The differences of a measure from the reference's."""
    found = [(way.label, way.differences.get(name)) for way in ways]
    return [(label, d) for label, d in found if d is not None and d.n]


def _grid(block: Section) -> dict[str, Any]:
    """A table with minus signs."""
    rows = [[name, *(cell.replace("-", MINUS) for cell in cells)] for name, *cells in block.rows]
    return {"title": block.title, "head": block.head, "rows": [(False, row) for row in rows]}


def _matrices(board: Board, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """The matrices, with the share that colours each cell."""
    trained = [way for way in ways if way.name != BASE]
    blocks = []
    for way, block in zip(trained, tables.matrices(board, ways), strict=True):
        rows = []
        for (name, *cells), numbers in zip(block.rows, tables.heat(way), strict=True):
            shares = [round(float(x), 3) if x == x else 0.0 for x in numbers]
            rows.append((name, list(zip(cells, shares, strict=True))))
        blocks.append({"title": block.title, "head": block.head, "rows": rows})
    return blocks

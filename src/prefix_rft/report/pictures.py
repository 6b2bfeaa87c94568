"""Grids of pictures within the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefix_rft.runs.pictures import Grid, grids

MOST = 6
"""Grids of a run that a page shows, beside that of its data."""


@dataclass(frozen=True)
class Shown:
    """A grid for the template: what it is, and the picture as a data address."""

    words: str
    address: str


def shown(run: Path) -> list[Shown]:
    """The data, the first and the last grid of a run, and some between them; empty for none.

    Raises:
        UserError: a file is no PNG.
    """
    found = grids(run)
    data = [g for g in found if g.step is None]
    return [_inline(g) for g in (*data, *spread([g for g in found if g.step is not None], MOST))]


def spread(grids: Sequence[Grid], most: int) -> list[Grid]:
    """At most so many of the grids, the first and the last among them, evenly between."""
    if len(grids) <= most:
        return list(grids)
    return [grids[round(i * (len(grids) - 1) / (most - 1))] for i in range(most)]


def _inline(grid: Grid) -> Shown:
    words = "the data" if grid.step is None else f"step {grid.step:,}"
    return Shown(words, "data:image/png;base64," + base64.b64encode(grid.png()).decode("ascii"))

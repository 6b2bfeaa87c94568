"""Grids of pictures that a run has drawn along the way, in its folder ``pictures``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prefix_rft.support.errors import UserError

PICTURES = "pictures"
DATA = "data.png"
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Grid:
    """A grid on disk.

    Attributes:
        path: the file.
        step: the updates before it; None for the data that the run trains on.
    """

    path: Path
    step: int | None

    def png(self) -> bytes:
        """The file.

        Raises:
            UserError: it is no PNG.
        """
        data = self.path.read_bytes()
        if not data.startswith(PNG):
            raise UserError(f"'{self.path}' is damaged: it is no PNG")
        return data


def grid_path(run: Path, step: int | None) -> Path:
    """Where a run keeps the grid of a step; of its data for None."""
    return run / PICTURES / (DATA if step is None else f"grid_{step:06d}.png")


def grids(run: Path) -> list[Grid]:
    """The grids of a run: that of its data, then by step."""
    found = [Grid(p, None) for p in [grid_path(run, None)] if p.is_file()]
    for path in sorted((run / PICTURES).glob("grid_*.png")):
        if match := re.fullmatch(r"grid_(\d+)", path.stem):
            found.append(Grid(path, int(match[1])))
    return found


def cut_grids(run: Path, step: int) -> None:
    """Delete the grids behind a step, which a run that goes on from there draws anew."""
    for grid in grids(run):
        if grid.step is not None and grid.step > step:
            grid.path.unlink()

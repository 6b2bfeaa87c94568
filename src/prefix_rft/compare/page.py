"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import Line


def write_page(board: Board, found: Sequence[Line]) -> Path:
    """Write the page; returns its path."""
    return board.folder / "comparison.md"

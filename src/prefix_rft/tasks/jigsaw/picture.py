"""Pictures with an order in them, cut into pieces, shuffled and restored, as arrays of pixels.

A picture is a landscape under light from the right: blue above and green below, dark on the left.
How blue, green and dark differs from picture to picture, so that the place of a piece shows beside
the others better than alone; noise is over all of it. On one piece lies a disc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIDE = 72
"""Pixels of a picture, a few less where they do not divide by its pieces."""
LONGEST = 3
"""Pieces in a row, and in a column, at most: the paper's pictures have 3 x 3."""
MOST = LONGEST**2
DISCS = ((230, 30, 30), (245, 245, 245), (10, 10, 10), (240, 220, 30))
NOISE = 8.0

Pixels = NDArray[np.uint8]


class Cut(NamedTuple):
    """How a picture is cut."""

    rows: int = 2
    columns: int = 2

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return self.rows * self.columns

    def refuse(self) -> None:
        """Refuse what is no jigsaw, or has more pieces than the base has words for.

        Raises:
            ValueError: it has fewer than two pieces, or too many.
        """
        if not all(1 <= side <= LONGEST for side in self) or self.pieces < 2:
            raise ValueError(
                f"a picture has 2 to {MOST} pieces in at most {LONGEST} rows and {LONGEST} "
                f"columns, got {self.rows} rows x {self.columns} columns"
            )


def draw(rng: np.random.Generator, grid: Cut) -> tuple[Pixels, int]:
    """A whole picture, and the place of the piece with the disc, from 0 and row by row."""
    tall, wide = SIDE // grid.rows, SIDE // grid.columns
    y = np.linspace(0, 1, tall * grid.rows)[:, None, None] ** rng.uniform(0.8, 1.25)
    x = np.linspace(0, 1, wide * grid.columns)[None, :, None]
    above = rng.uniform((30, 80, 170), (90, 140, 240))
    below = rng.uniform((50, 130, 10), (130, 200, 60))
    dark = rng.uniform(0.3, 0.5)
    pixels = (above * (1 - y) + below * y) * (dark + (1 - dark) * x)
    disc = int(rng.integers(grid.pieces))
    row, column = divmod(disc, grid.columns)
    radius = rng.uniform(0.2, 0.3) * min(tall, wide)
    inside = [rng.uniform(radius, size - radius) for size in (tall, wide)]
    down = np.arange(len(pixels))[:, None] - (row * tall + inside[0])
    along = np.arange(pixels.shape[1])[None, :] - (column * wide + inside[1])
    pixels[down**2 + along**2 <= radius**2] = DISCS[rng.integers(len(DISCS))]
    pixels += rng.normal(0, NOISE, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8), disc


def cut(pixels: Pixels, grid: Cut) -> list[Pixels]:
    """The pieces of a picture, row by row."""
    tall, wide = len(pixels) // grid.rows, pixels.shape[1] // grid.columns
    return [
        pixels[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]


def joined(pieces: Sequence[Pixels], grid: Cut) -> Pixels:
    """The picture of pieces that lie row by row."""
    return np.concatenate(
        [
            np.concatenate(pieces[row * grid.columns : (row + 1) * grid.columns], axis=1)
            for row in range(grid.rows)
        ]
    )


def laid(pixels: Pixels, grid: Cut, order: Sequence[int]) -> Pixels:
    """A picture whose pieces lie in another order.

    Args:
        pixels: the picture.
        grid: how it is cut.
        order: for each place, row by row, the number of the piece that is laid there, from 1.
    """
    pieces = cut(pixels, grid)
    return joined([pieces[number - 1] for number in order], grid)

"""A jigsaw in words: what is asked, how one reasons, what the answer is, and rows of a data file.

Pieces are numbered from 1, row by row, as they lie in the shuffled picture. The answer names for
each place of the whole picture, row by row, the piece that belongs there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefix_rft.tasks.jigsaw.grade import ANSWER, THINK
from prefix_rft.tasks.jigsaw.picture import Cut, Pixels, draw, laid


@dataclass(frozen=True)
class Jigsaw:
    """A picture in pieces.

    Attributes:
        grid: how it is cut.
        pixels: the picture as it is shown, its pieces shuffled.
        homes: the place where each piece that is shown belongs.
        disc: the piece with the disc.
    """

    grid: Cut
    pixels: Pixels
    homes: tuple[int, ...]
    disc: int

    @property
    def order(self) -> tuple[int, ...]:
        """The answer: for each place the piece that belongs there."""
        return inverse(self.homes)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """Where each number from 1 on stands in an order of them, from 1."""
    return tuple(order.index(number) + 1 for number in range(1, len(order) + 1))


def shuffled(grid: Cut, rng: random.Random) -> tuple[int, ...]:
    """An order of the pieces; any is as likely as any other, the right one included."""
    return tuple(rng.sample(range(1, grid.pieces + 1), grid.pieces))


def jigsaw(grid: Cut, rng: random.Random) -> Jigsaw:
    """A picture that is drawn, cut and shuffled."""
    whole, disc = draw(np.random.default_rng(rng.getrandbits(64)), grid)
    homes = shuffled(grid, rng)
    return Jigsaw(grid, laid(whole, grid, homes), homes, homes.index(disc + 1) + 1)


def prompt_of(grid: Cut) -> str:
    """What is asked beside the picture."""
    return f"restore the picture from {grid.rows} x {grid.columns} pieces"


def other_prompt_of(grid: Cut) -> str:
    """What else the base has learnt to answer of such a picture."""
    return f"find the disc in {grid.rows} x {grid.columns} pieces"


def written(numbers: Sequence[int]) -> str:
    """Numbers in words of their own."""
    return " ".join(map(str, numbers))


def alone(numbers: Sequence[int]) -> str:
    """An answer without reasoning."""
    return " ".join((ANSWER[0], written(numbers), ANSWER[1]))


def reasoned(thought: Sequence[int], numbers: Sequence[int]) -> str:
    """An answer behind the reasoning that leads to it."""
    return " ".join((THINK[0], written(thought), THINK[1], alone(numbers)))


def row(puzzle: Jigsaw, image: str) -> dict[str, Any]:
    """One line of a data file.

    The demonstration says of each piece where it belongs, then of each place which piece does.
    """
    return {
        "prompt": [{"role": "user", "content": prompt_of(puzzle.grid)}],
        "image": image,
        "demonstration": reasoned(puzzle.homes, puzzle.order),
        "answer": written(puzzle.order),
    }


def answer_row(puzzle: Jigsaw, image: str) -> dict[str, Any]:
    """The same row with a demonstration that does not reason."""
    return {**row(puzzle, image), "demonstration": alone(puzzle.order)}


def other_row(puzzle: Jigsaw, image: str) -> dict[str, Any]:
    """The same picture with the other question, which the base knows."""
    return {
        "prompt": [{"role": "user", "content": other_prompt_of(puzzle.grid)}],
        "image": image,
        "answer": str(puzzle.disc),
    }

"""Countdown puzzles: reach a target from given numbers, using every number exactly once.

A solution is a chain of ``n - 1`` steps ``a op b = c`` over non-negative integers, for example
``7 * 3 = 21 ; 21 + 5 = 26``. Each step uses up two of the numbers at hand and adds its result.
Chains are written with the larger operand first; the grader accepts either order.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, NamedTuple

TEST_SHARE = 0.2
Split = Literal["train", "test"]


class Step(NamedTuple):
    """One line of a solution, ``a op b = c``."""

    a: int
    op: str
    b: int
    c: int

    def __str__(self) -> str:
        return f"{self.a} {self.op} {self.b} = {self.c}"


Chain = tuple[Step, ...]


@dataclass(frozen=True)
class Rules:
    """Which puzzles are drawn.

    Attributes:
        operands: how many numbers a puzzle may have, each count equally often.
        highest: numbers are uniform in 1..``highest``; but of two numbers one is uniform in
            1..``limit``, so that a puzzle of two is what a longer one becomes before its last step.
        limit: results stay in 0..``limit``.
    """

    operands: tuple[int, ...] = (2, 3)
    highest: int = 10
    limit: int = 100

    def draw_numbers(self, count: int, rng: random.Random) -> tuple[int, ...]:
        """``count`` numbers in random order."""
        numbers = [rng.randint(1, self.highest) for _ in range(count)]
        if count == 2:
            numbers[0] = rng.randint(1, self.limit)
        rng.shuffle(numbers)
        return tuple(numbers)


@dataclass(frozen=True)
class Puzzle:
    """Numbers in the order in which the prompt shows them, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        """The same for every order of the numbers: two puzzles with one key are one puzzle."""
        return tuple(sorted(self.numbers)), self.target

    @property
    def prompt(self) -> str:
        """The text that a model continues."""
        return f"numbers {' '.join(map(str, self.numbers))} target {self.target} :"


def write_chain(chain: Chain) -> str:
    """The text of a chain, as a completion writes it."""
    return " ; ".join(map(str, chain))


def apply(a: int, op: str, b: int) -> int | None:
    """``a op b`` over the non-negative integers, or None where it has no such value."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b if a >= b else None
    if op == "*":
        return a * b
    if op == "/":
        return a // b if b != 0 and a % b == 0 else None
    return None


def moves(numbers: Sequence[int], limit: int) -> list[tuple[Step, tuple[int, ...]]]:
    """Every distinct step from ``numbers``, each with the sorted numbers that it leaves."""
    found = {}
    for i, j in combinations(range(len(numbers)), 2):
        b, a = sorted((numbers[i], numbers[j]))
        others = [x for k, x in enumerate(numbers) if k not in (i, j)]
        for op in "+-*/":
            c = apply(a, op, b)
            if c is not None and c <= limit:
                found[Step(a, op, b, c)] = tuple(sorted([*others, c]))
    return list(found.items())


def chains(numbers: Sequence[int], limit: int) -> Iterator[Chain]:
    """Every distinct chain that uses all ``numbers``."""
    if len(numbers) == 1:
        yield ()
        return
    for step, rest in moves(numbers, limit):
        for tail in chains(rest, limit):
            yield (step, *tail)


@cache
def _chains_by_target(numbers: tuple[int, ...], limit: int) -> dict[int, list[Chain]]:
    found: dict[int, list[Chain]] = {}
    for chain in chains(numbers, limit):
        found.setdefault(chain[-1].c, []).append(chain)
    return {target: sorted(found[target]) for target in sorted(found)}


def solutions(puzzle: Puzzle, limit: int) -> list[Chain]:
    """Every chain that solves the puzzle, in a fixed order; empty where there is none."""
    return _chains_by_target(tuple(sorted(puzzle.numbers)), limit).get(puzzle.target, [])


def demonstration(puzzle: Puzzle, limit: int, seed: int = 0) -> Chain:
    """One solution of the puzzle, a function of the puzzle and the seed.

    Raises:
        ValueError: the puzzle has no solution with results up to ``limit``.
    """
    found = solutions(puzzle, limit)
    if not found:
        raise ValueError(f"no chain over {puzzle.numbers} reaches {puzzle.target}")
    return random.Random(f"demonstration:{seed}:{puzzle.key}").choice(found)


def aimless_chain(numbers: Sequence[int], limit: int, rng: random.Random) -> Chain:
    """A correct chain over ``numbers``: at every step one of the possible steps, uniformly."""
    steps: list[Step] = []
    while len(numbers) > 1:
        step, numbers = rng.choice(moves(numbers, limit))
        steps.append(step)
    return tuple(steps)


def worse_demonstration(puzzle: Puzzle, limit: int, accuracy: float, seed: int = 0) -> Chain:
    """What a worse solver writes: a solution with this probability, else an aimless chain.

    An aimless chain may hit the target by chance, so a little more than ``accuracy`` is right.

    Raises:
        ValueError: see :func:`demonstration`.
    """
    rng = random.Random(f"solver:{seed}:{puzzle.key}")
    if rng.random() < accuracy:
        return demonstration(puzzle, limit, seed)
    return aimless_chain(puzzle.numbers, limit, rng)


def chance(numbers: Sequence[int], target: int, limit: int) -> float:
    """The exact probability that a chain of uniformly drawn steps ends at ``target``."""
    if len(numbers) == 1:
        return float(numbers[0] == target)
    following = [rest for _, rest in moves(numbers, limit)]
    return sum(chance(rest, target, limit) for rest in following) / len(following)


def difficulty(puzzle: Puzzle, limit: int) -> int:
    """How many chains of uniformly drawn steps it takes, on average, to hit the target once."""
    return round(1 / chance(puzzle.numbers, puzzle.target, limit))


def split_of(puzzle: Puzzle) -> Split:
    """``train`` or ``test``, a function of the puzzle's key alone: no seed or count mixes them."""
    digest = hashlib.sha256(repr(puzzle.key).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"


def generate(
    split: Split,
    count: int,
    seed: int,
    rules: Rules | None = None,
    avoid: Iterable[Puzzle] = (),
) -> list[Puzzle]:
    """``count`` different solvable puzzles of one split, in random order, none of ``avoid``.

    The target is uniform over the positive numbers that can be reached.

    Raises:
        ValueError: the rules do not admit ``count`` different puzzles in this split.
    """
    rules = rules or Rules()
    rng = random.Random(f"countdown:{seed}")
    seen = {p.key for p in avoid}
    puzzles: list[Puzzle] = []
    misses = 0
    while len(puzzles) < count:
        operands = rules.operands[len(puzzles) % len(rules.operands)]
        numbers = rules.draw_numbers(operands, rng)
        targets = [t for t in _chains_by_target(tuple(sorted(numbers)), rules.limit) if t > 0]
        puzzle = Puzzle(numbers, rng.choice(targets))
        if puzzle.key in seen or split_of(puzzle) != split:
            misses += 1
            if misses > 200 * (count + 1):
                raise ValueError(f"found only {len(puzzles)} of {count} different {split} puzzles")
            continue
        seen.add(puzzle.key)
        puzzles.append(puzzle)
    rng.shuffle(puzzles)
    return puzzles

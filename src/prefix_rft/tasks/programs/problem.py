"""Small functions of one number, described in words, to be programmed and tested.

A problem is a chain of one to three operations. The prompt says which, a demonstration is the chain
as Python, and the tests ask for the values at the numbers of ``DOMAIN``: any program that has them
is right, also one that takes fewer operations.
"""

from __future__ import annotations

import functools
import hashlib
import random
from typing import Any, Literal, NamedTuple

DOMAIN = range(13)
WORDS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "//", "remainder": "%"}
"""What a prompt says, and what Python says."""
CONSTANTS = range(2, 10)
LONGEST = 3
"""Operations of the longest chain."""
TEST_SHARE = 0.2
TRIES = 2000
"""Draws in a row that give nothing new, after which there is taken to be nothing."""
Split = Literal["train", "test"]


class Operation(NamedTuple):
    """A word for an operator, and the constant behind it."""

    word: str
    constant: int

    def at(self, x: int) -> int:
        """What becomes of a number."""
        c = self.constant
        made = {"add": x + c, "subtract": x - c, "multiply": x * c}
        return {**made, "divide": x // c, "remainder": x % c}[self.word]


Chain = tuple[Operation, ...]


def values_of(chain: Chain) -> tuple[int, ...]:
    """The values of a chain at the numbers of the domain."""
    return tuple(functools.reduce(lambda x, step: step.at(x), chain, x) for x in DOMAIN)


def split_of(values: tuple[int, ...]) -> Split:
    """``train`` or ``test``, a function of the values alone: no seed or count mixes them."""
    digest = hashlib.sha256(repr(values).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"


def draw_chain(length: int, rng: random.Random) -> Chain:
    """A chain of operations, each drawn uniformly."""
    words = tuple(WORDS)
    return tuple(Operation(rng.choice(words), rng.choice(CONSTANTS)) for _ in range(length))


def prompt_of(chain: Chain) -> str:
    """The text that a model continues."""
    return " then ".join(f"{word} {constant}" for word, constant in chain) + " :"


def program_of(chain: Chain) -> str:
    """A chain as Python, with blanks between all tokens."""
    steps = "".join(f"x = x {WORDS[word]} {constant} ; " for word, constant in chain)
    return f"def f ( x ) : {steps}return x"


def row(chain: Chain) -> dict[str, Any]:
    """One line of a data file."""
    return {
        "prompt": prompt_of(chain),
        "demonstration": program_of(chain),
        "tests": [f"assert f({x}) == {y}" for x, y in zip(DOMAIN, values_of(chain), strict=True)],
    }


def generate(split: Split, count: int, rng: random.Random, seen: set[Chain]) -> list[Chain]:
    """Chains of one split, of all lengths in turn, that are not ``seen``; they are added to it.

    Those that leave all numbers as they are, or make them all alike, are none.

    Raises:
        ValueError: there are fewer different ones than asked for.
    """
    chains: list[Chain] = []
    misses = 0
    while len(chains) < count:
        chain = draw_chain(rng.randint(1, LONGEST), rng)
        values = values_of(chain)
        plain = values == tuple(DOMAIN) or len(set(values)) == 1
        if chain in seen or plain or split_of(values) != split:
            misses += 1
            if misses == TRIES:
                raise ValueError(f"found only {len(chains)} of {count} different {split} problems")
            continue
        misses = 0
        seen.add(chain)
        chains.append(chain)
    return chains

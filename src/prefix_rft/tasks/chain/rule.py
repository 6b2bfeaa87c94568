"""Answers whose rule nobody is shown: many dependent steps, each with several right ways.

The prompt gives symbols x_1 ... x_L. An answer writes a choice y_i and a state z_i for each; it is
right if z_i = T[z_{i-1}, y_i, x_i] at every step, from z_0 = 0. T is a random table. y_i is free:
demonstrations draw it uniformly, the grader takes any. So a policy may keep to choices that it
knows, where imitation has to learn the whole table, and one wrong guess spoils the whole chain.

With two states and T the sum modulo 2 this is the chain of parities of AdaBack (arXiv 2506.18110).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import NamedTuple

SYMBOLS = "abcd"
NAMES = ("old", "new")
"""The rules: of what the base has read, and of the task."""


class Link(NamedTuple):
    """One step: its symbol, the choice, and the state that it leads to."""

    x: str
    y: int
    z: int


@dataclass(frozen=True)
class Chains:
    """The chains of a task.

    Attributes:
        steps: L, the steps of a chain.
        states: how many states there are, and choices.
        parity: the task's T is the sum of state, choice and symbol modulo ``states``; that of the
            base is a random table all the same.
    """

    steps: int = 24
    states: int = 8
    parity: bool = False

    @property
    def symbols(self) -> str:
        """The symbols of prompts; with parities as many as states."""
        return SYMBOLS[: self.states] if self.parity else SYMBOLS

    def table(self, name: str) -> dict[tuple[int, int, str], int]:
        """The rule of a name: the state behind a state, a choice and a symbol."""
        return _table(name, self.states, self.symbols, self.parity and name == "new")

    def draw(self, rng: random.Random, steps: int | None = None) -> str:
        """The symbols of a prompt."""
        return "".join(rng.choices(self.symbols, k=steps or self.steps))


@functools.cache
def _table(name: str, states: int, symbols: str, adds: bool) -> dict[tuple[int, int, str], int]:
    rng, every = random.Random(f"chain:{name}:{states}"), range(states)
    return {
        (z, y, x): (z + y + symbols.index(x)) % states if adds else rng.randrange(states)
        for z in every
        for y in every
        for x in symbols
    }


def prompt_of(name: str, symbols: str) -> str:
    """The text that a model continues."""
    steps = " ".join(f"s{i} {x}" for i, x in enumerate(symbols, 1))
    return f"{name} {steps} ;"


def write_chain(chain: list[Link]) -> str:
    """The text of an answer."""
    return " ".join(f"s{i} {x} {y} {z}" for i, (x, y, z) in enumerate(chain, 1))


def demonstrate(
    symbols: str, table: dict[tuple[int, int, str], int], rng: random.Random
) -> list[Link]:
    """A right chain, whose choices are uniform."""
    chain, z, choices = [], 0, 1 + max(y for _, y, _ in table)
    for x in symbols:
        y = rng.randrange(choices)
        z = table[z, y, x]
        chain.append(Link(x, y, z))
    return chain


def parse(completion: str, states: int) -> list[Link] | None:
    """The steps of an answer, or None where the text is anything else."""
    words = completion.split()
    digits = {str(i): i for i in range(states)}
    if len(words) % 4:
        return None
    chain = []
    for i in range(0, len(words), 4):
        marker, x, y, z = words[i : i + 4]
        if (
            marker != f"s{i // 4 + 1}"
            or x not in tuple(SYMBOLS)
            or y not in digits
            or z not in digits
        ):
            return None
        chain.append(Link(x, digits[y], digits[z]))
    return chain


def valid_steps(completion: str, symbols: str, rules: Chains, name: str) -> list[bool]:
    """Which of the steps follow the rule from the state that the answer itself has written.

    Steps that are missing do not; of a text that is no chain none does.
    """
    chain = parse(completion, rules.states)
    if chain is None or len(chain) > len(symbols):
        return [False] * len(symbols)
    table, before, valid = rules.table(name), 0, []
    for step, x in zip(chain, symbols, strict=False):
        valid.append(step.x == x and table[before, step.y, x] == step.z)
        before = step.z
    return valid + [False] * (len(symbols) - len(valid))

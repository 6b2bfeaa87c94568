"""Answers whose rule nobody is shown: many dependent steps, each with several right ways.

The prompt gives symbols x_1 ... x_L. An answer writes a choice y_i and a state z_i for each; it is
right if z_i = T[z_{i-1}, y_i, x_i] at every step, from z_0 = 0. T is a random table. y_i is free:
demonstrations draw it uniformly, the grader takes any. So a policy may keep to choices that it
knows, where imitation has to learn the whole table, and one wrong guess spoils the whole chain.

With two states, two symbols and T the sum modulo 2 this is the chain of parities of AdaBack (arXiv
2506.18110): the rule ``parity``. By their argument SFT does not learn it from free choices, while
the grader takes y = x, too, which leaves z as it was.
"""

from __future__ import annotations

import functools
import random
from typing import NamedTuple

SYMBOLS = "abcd"
STATES = 8
"""How many states there are, and choices."""
DIGITS = tuple(map(str, range(STATES)))
PARITY = "parity"
NAMES = ("old", "new")
"""Words for rules in a prompt: of what the base has read, and of the task, whichever it is."""


class Link(NamedTuple):
    """One step: its symbol, the choice, and the state that it leads to."""

    x: str
    y: int
    z: int


Table = dict[tuple[int, int, str], int]
"""The state behind a state, a choice and a symbol."""


@functools.cache
def table_of(name: str) -> Table:
    """The rule of a name, the same everywhere and always."""
    if name == PARITY:
        both = range(2)
        return {(z, y, x): (z + y + (x == "b")) % 2 for z in both for y in both for x in "ab"}
    rng, every = random.Random(f"chain:{name}:{STATES}"), range(STATES)
    return {(z, y, x): rng.randrange(STATES) for z in every for y in every for x in SYMBOLS}


def symbols_of(name: str) -> str:
    """The symbols of a rule."""
    return SYMBOLS[:2] if name == PARITY else SYMBOLS


def draw_symbols(steps: int, rng: random.Random, name: str = "new") -> str:
    """The symbols of a prompt."""
    return "".join(rng.choices(symbols_of(name), k=steps))


def prompt_of(name: str, symbols: str) -> str:
    """The text that a model continues; any rule but the old one is new to it."""
    steps = " ".join(f"s{i} {x}" for i, x in enumerate(symbols, 1))
    return f"{name if name in NAMES else 'new'} {steps} ;"


def write_chain(chain: list[Link]) -> str:
    """The text of an answer."""
    return " ".join(f"s{i} {x} {y} {z}" for i, (x, y, z) in enumerate(chain, 1))


def demonstrate(symbols: str, table: Table, rng: random.Random) -> list[Link]:
    """A right chain, whose choices are uniform."""
    chain, z = [], 0
    choices = 1 + max(y for _, y, _ in table)
    for x in symbols:
        y = rng.randrange(choices)
        z = table[z, y, x]
        chain.append(Link(x, y, z))
    return chain


def parse(completion: str) -> list[Link] | None:
    """The steps of an answer, or None where the text is anything else."""
    words = completion.split()
    if len(words) % 4:
        return None
    chain = []
    for i in range(0, len(words), 4):
        marker, x, y, z = words[i : i + 4]
        known = x in tuple(SYMBOLS) and y in DIGITS and z in DIGITS
        if marker != f"s{i // 4 + 1}" or not known:
            return None
        chain.append(Link(x, int(y), int(z)))
    return chain


def valid_steps(completion: str, symbols: str, table: Table) -> list[bool]:
    """Which of the steps follow the rule from the state that the answer itself has written.

    Steps that are missing do not; of a text that is no chain none does.
    """
    chain = parse(completion)
    if chain is None or len(chain) > len(symbols):
        return [False] * len(symbols)
    before, valid = 0, []
    for step, x in zip(chain, symbols, strict=False):
        # A choice or a state that the rule does not have leads nowhere.
        valid.append(step.x == x and table.get((before, step.y, x)) == step.z)
        before = step.z
    return valid + [False] * (len(symbols) - len(valid))

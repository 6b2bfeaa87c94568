"""Small functions of one number, to be programmed from examples and tested on other numbers.

A problem is a chain of one or two steps, ``x + c``, ``x - c``, ``x * c``, ``x // c`` or ``x % c``.
The prompt shows four of the values; the tests ask for those at all numbers of ``DOMAIN``. The four
are drawn so that they decide: every chain that agrees with them passes the tests.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from typing import Any, Literal, NamedTuple

DOMAIN = range(13)
VALUES = range(-20, 121)
"""Values that a problem may have."""
CONSTANTS = {
    "+": range(1, 10),
    "-": range(1, 10),
    "*": range(2, 6),
    "//": range(2, 6),
    "%": range(2, 10),
}
LONGEST = 2
"""Steps of the longest chain."""
EXAMPLES = 4
TEST_SHARE = 0.2
TRIES = 2000
"""Draws in a row that give nothing new, after which there is taken to be nothing."""
Split = Literal["train", "test"]


class Step(NamedTuple):
    """One step of a chain: an operator, and the constant behind it."""

    operator: str
    constant: int

    def at(self, x: int) -> int:
        """What becomes of a number."""
        c = self.constant
        steps = {"+": x + c, "-": x - c, "*": x * c, "//": x // c, "%": x % c}
        return steps[self.operator]


Chain = tuple[Step, ...]
STEPS = tuple(Step(operator, c) for operator, some in CONSTANTS.items() for c in some)


def values_of(chain: Chain) -> tuple[int, ...]:
    """The values of a chain at the numbers of the domain."""
    return tuple(functools.reduce(lambda x, step: step.at(x), chain, x) for x in DOMAIN)


@functools.cache
def functions() -> dict[tuple[int, ...], Chain]:
    """Each function that a chain can be, by its values, with the first of its shortest chains.

    Those that leave all numbers as they are, or all alike, are none, nor are those whose values are
    too large to be shown.
    """
    found: dict[tuple[int, ...], Chain] = {}
    for length in range(1, LONGEST + 1):
        for chain in itertools.product(STEPS, repeat=length):
            values = values_of(chain)
            shown = min(values) in VALUES and max(values) in VALUES
            if shown and len(set(values)) > 1 and values != tuple(DOMAIN):
                found.setdefault(values, chain)
    return found


def split_of(values: tuple[int, ...]) -> Split:
    """``train`` or ``test``, a function of the values alone: no seed or count mixes them."""
    digest = hashlib.sha256(repr(values).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"


def solve(examples: dict[int, int]) -> Chain | None:
    """A shortest chain that agrees with examples; None where there is none."""
    fitting = (chain for values, chain in functions().items() if _agree(values, examples))
    return min(fitting, key=len, default=None)


def decide(examples: dict[int, int]) -> bool:
    """Whether all chains that agree with the examples are one function on the domain."""
    return sum(_agree(values, examples) for values in functions()) == 1


def _agree(values: tuple[int, ...], examples: dict[int, int]) -> bool:
    return all(values[x] == y for x, y in examples.items())


def draw_examples(values: tuple[int, ...], rng: random.Random) -> dict[int, int]:
    """Some values of a function, in random order; perhaps not enough to decide."""
    return {x: values[x] for x in rng.sample(DOMAIN, EXAMPLES)}


def prompt_of(examples: dict[int, int]) -> str:
    """The text that a model continues."""
    return " ; ".join(f"f ( {x} ) = {y}" for x, y in examples.items()) + " :"


def program_of(chain: Chain) -> str:
    """A chain as Python, with blanks between all tokens."""
    steps = "".join(f"x = x {operator} {constant} ; " for operator, constant in chain)
    return f"def f ( x ) : {steps}return x"


def row(values: tuple[int, ...], examples: dict[int, int]) -> dict[str, Any]:
    """One line of a data file; the demonstration is what the solver makes of the examples.

    Raises:
        ValueError: no chain agrees with the examples.
    """
    chain = solve(examples)
    if chain is None:
        raise ValueError(f"no chain agrees with {examples}")
    return {
        "prompt": prompt_of(examples),
        "demonstration": program_of(chain),
        "tests": [f"assert f({x}) == {y}" for x, y in zip(DOMAIN, values, strict=True)],
    }


def generate(split: Split, count: int, rng: random.Random, seen: set[str]) -> list[dict[str, Any]]:
    """Rows of one split, in random order, whose prompts are not ``seen``; they are added to it.

    Raises:
        ValueError: there are fewer different prompts than asked for.
    """
    # Of one step there are few, and half of the rows.
    ours = [values for values in functions() if split_of(values) == split]
    by_length = [[v for v in ours if len(functions()[v]) == n + 1] for n in range(LONGEST)]
    rows: list[dict[str, Any]] = []
    misses = 0
    while len(rows) < count:
        values = rng.choice(by_length[len(rows) % LONGEST])
        examples = draw_examples(values, rng)
        prompt = prompt_of(dict(sorted(examples.items())))  # in another order it is the same
        if prompt in seen or not decide(examples):
            misses += 1
            if misses == TRIES:
                raise ValueError(f"found only {len(rows)} of {count} different {split} problems")
            continue
        misses = 0
        seen.add(prompt)
        rows.append(row(values, examples))
    rng.shuffle(rows)
    return rows

"""Worked demonstrations of reasoning-gym's puzzles, from what a task tells of each.

Every one ends in a line ``Answer: ...``. A task that is not here has none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

Number = int | Decimal
PLACES = 100


def demonstration(task: str, puzzle: Mapping[str, Any]) -> str | None:
    """The worked solution of a puzzle; None where there is none.

    Args:
        task: reasoning-gym's name of the task.
        puzzle: the puzzle as reasoning-gym makes it.
    """
    lines = WORKED[task](puzzle["metadata"]) if task in WORKED else None
    return None if lines is None else "\n".join([*lines, f"Answer: {puzzle['answer']}"])


def _chain_sum(known: Mapping[str, Any], number: Callable[[str], Number] = int) -> list[str]:
    """One line for each sign, from the left."""
    first, *rest = known["expression"].split(" ")
    total, lines = number(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        value = total + number(term) if sign == "+" else total - number(term)
        lines.append(f"{total} {sign} {term} = {value}")
        total = value
    return lines


def _decimal_chain_sum(known: Mapping[str, Any]) -> list[str]:
    """Exact, whatever precision another task of the package has left to all decimals."""
    with localcontext(prec=PLACES):
        return _chain_sum(known, Decimal)


def _products(known: Mapping[str, Any]) -> list[str]:
    """Factor by factor, and each factor digit by digit."""
    total, *factors = map(int, known["expression"].split(" * "))
    lines = []
    for factor in factors:
        parts = [
            int(digit) * 10**place
            for place, digit in enumerate(reversed(str(factor)))
            if digit != "0"
        ]
        lines += [f"{total} * {part} = {total * part}" for part in parts]
        if len(parts) > 1:
            terms = " + ".join(str(total * part) for part in parts)
            lines.append(f"{terms} = {total * factor}")
        total *= factor
    return lines


def _gcd(known: Mapping[str, Any]) -> list[str]:
    """Euclid's algorithm."""
    result, *others = known["numbers"]
    lines = []
    for other in others:
        a, b = max(result, other), min(result, other)
        while b:
            lines.append(f"{a} = {a // b} * {b} + {a % b}")
            a, b = b, a % b
        result = a
    return lines


def _lcm(known: Mapping[str, Any]) -> list[str]:
    """The product over the greatest common divisor."""
    result, *others = known["numbers"]
    lines = []
    for other in others:
        divisor = math.gcd(result, other)
        value = result * other // divisor
        lines.append(f"gcd({result}, {other}) = {divisor}")
        lines.append(f"{result} * {other} / {divisor} = {value}")
        result = value
    return lines


def _simple_equations(known: Mapping[str, Any]) -> list[str] | None:
    """The constants to the right, then a division; None where the left side is not linear."""
    x, (left, right) = known["variable"], known["equation"].split(" = ")
    slope, constant = 0, 0
    for sign, term in re.findall(r"(^-|[-+] |^)([^ ]+)", left):
        value = -1 if sign.startswith("-") else 1
        coefficient, _, variable = term.rpartition("*")
        if term.isdigit():
            constant += value * int(term)
        elif variable == x and (coefficient == "" or coefficient.isdigit()):
            slope += value * int(coefficient or 1)
        else:
            return None
    side = int(right) - constant
    if slope == 0 or side % slope:
        return None
    lines = []
    if constant:
        sign = "-" if constant > 0 else "+"
        lines.append(f"{slope}*{x} = {right} {sign} {abs(constant)} = {side}")
    lines.append(f"{x} = {side} / {slope} = {side // slope}")
    return lines


def _fraction(known: Mapping[str, Any]) -> list[str]:
    """Both parts over their greatest common divisor."""
    above, below, factor = known["numerator"], known["denominator"], known["reduction_factor"]
    return [
        f"gcd({above}, {below}) = {factor}",
        f"{above} / {factor} = {above // factor}",
        f"{below} / {factor} = {below // factor}",
    ]


def _prime_factors(known: Mapping[str, Any]) -> list[str]:
    """Divided by one prime after another."""
    rest, lines = known["number"], []
    for prime in known["factors"]:
        lines.append(f"{rest} / {prime} = {rest // prime}")
        rest //= prime
    return lines


def _letters(known: Mapping[str, Any]) -> list[str]:
    """How often the letter stands in each word, and the sum."""
    counts = [Counter(word.lower())[known["target_letter"]] for word in known["span"]]
    lines = [f"{word}: {n}" for word, n in zip(known["span"], counts, strict=True)]
    return [*lines, f"{' + '.join(map(str, counts))} = {sum(counts)}"]


def _backward(known: Mapping[str, Any]) -> list[str]:
    """The letters, and the letters from the end."""
    return ["-".join(known["word"]), "-".join(reversed(known["word"]))]


WORKED: dict[str, Callable[[Mapping[str, Any]], list[str] | None]] = {
    "chain_sum": _chain_sum,
    "decimal_chain_sum": _decimal_chain_sum,
    "products": _products,
    "gcd": _gcd,
    "lcm": _lcm,
    "simple_equations": _simple_equations,
    "fraction_simplification": _fraction,
    "prime_factorization": _prime_factors,
    "letter_counting": _letters,
    "spell_backward": _backward,
}

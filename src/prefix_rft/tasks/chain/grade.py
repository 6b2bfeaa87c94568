"""Grading of a chain: all of it, or the share of its steps that follow the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefix_rft.tasks.chain.rule import Chains, valid_steps


def _valid(
    completions: Sequence[Any],
    symbols: Sequence[str],
    rule: Sequence[str],
    states: Sequence[int],
    parity: Sequence[bool],
) -> list[list[bool]]:
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [
        valid_steps(text, x, Chains(len(x), n, p), name)
        for text, x, name, n, p in zip(texts, symbols, rule, states, parity, strict=True)
    ]


def reward(
    completions: Sequence[Any],
    symbols: Sequence[str],
    rule: Sequence[str],
    states: Sequence[int],
    parity: Sequence[bool],
    **kwargs: Any,
) -> list[float]:
    """1.0 where every step follows the rule, else 0.0, in the signature of a TRL reward function.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        symbols: the symbols of each prompt.
        rule: the name of each row's rule.
        states: how many states it has.
        parity: whether it is the sum.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    return [float(all(v)) for v in _valid(completions, symbols, rule, states, parity)]


def steps(
    completions: Sequence[Any],
    symbols: Sequence[str],
    rule: Sequence[str],
    states: Sequence[int],
    parity: Sequence[bool],
    **kwargs: Any,
) -> list[float]:
    """The share of the steps that follow the rule from the state before, whatever that is."""
    return [sum(v) / len(v) for v in _valid(completions, symbols, rule, states, parity)]

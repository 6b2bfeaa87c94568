"""Grading of a chain: all of it, or the share of its steps that follow the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefix_rft.tasks.chain.rule import table_of, valid_steps


def reward(
    completions: Sequence[Any], symbols: Sequence[str], rule: Sequence[str], **kwargs: Any
) -> list[float]:
    """1.0 where every step follows the rule, else 0.0, in the signature of a TRL reward function.

    Args:
        completions: texts, or conversations, of which the last message's content is graded.
        symbols: the symbols of each prompt.
        rule: the name of each row's rule.
        **kwargs: the other columns and arguments that TRL passes; not used.
    """
    return [float(share == 1.0) for share in steps(completions, symbols, rule)]


def steps(
    completions: Sequence[Any], symbols: Sequence[str], rule: Sequence[str], **kwargs: Any
) -> list[float]:
    """The share of the steps that follow the rule from the state before, whatever that is."""
    shares = []
    for completion, x, name in zip(completions, symbols, rule, strict=True):
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        valid = valid_steps(text, x, table_of(name))
        shares.append(sum(valid) / len(valid))
    return shares

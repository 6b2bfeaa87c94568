"""Mathematical answers, graded by math-verify."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from prefix_rft.rewards.verdict import (
    CORRECT,
    GOLD_UNPARSEABLE,
    NO_ANSWER,
    WRONG,
    Verdict,
    completion_text,
    grader,
)

try:
    import sympy
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError(
        f"{error}; the reward 'math' needs math-verify: pip install 'prefix-rft[math]'"
    ) from error

# No limits of math-verify's own: they need the main thread, and the pool has better ones.
UNLIMITED: dict[str, Any] = {"parsing_timeout": None}
ANCHORED = (
    LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False),
    ExprExtractionConfig(try_extract_without_anchor=False),
)
ANYWHERE = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


@grader(tests_gold=True)
def math(
    completions: Sequence[Any], answer: Sequence[Any], *, anywhere: bool = False, **kwargs: Any
) -> list[Verdict]:
    r"""Whether the answer of each completion equals the gold answer, in TRL's reward signature.

    The answer is the content of ``\boxed{}``, or what follows words like "the answer is". A
    completion without either has ``no answer``: a number that happens to stand last in a text
    that was cut off is not one. A gold answer that math-verify cannot read is
    ``gold unparseable`` whatever the completion, so an empty completion tests the gold alone.

    Args:
        completions: texts or conversations.
        answer: gold answers, as LaTeX without dollar signs, plain expressions, or numbers.
        anywhere: take the last expression of a text as its answer where nothing marks one.
        **kwargs: other columns; not used.
    """
    return [
        _grade(completion_text(c), gold, anywhere)
        for c, gold in zip(completions, answer, strict=True)
    ]


def _grade(text: str, gold: Any, anywhere: bool) -> Verdict:
    expected = read_gold("" if gold is None else str(gold))
    if not expected:
        return Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r}")
    found = parse(text, ANYWHERE if anywhere else ANCHORED, raise_on_error=True, **UNLIMITED)
    if not found:
        return Verdict(NO_ANSWER)
    right = verify(list(expected), found, timeout_seconds=None, raise_on_error=True)
    return Verdict(CORRECT if right else WRONG, detail=f"answer {found[-1]!s:.60}")


@functools.lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[Any, ...]:
    r"""The gold answer as math-verify reads it inside ``\boxed{}``; empty if it cannot.

    Bare text is read differently: ``pi/2`` and ``(1,2)`` give nothing, ``12:00`` gives 12. An
    answer that evaluates to no number (``12:00`` inside a box is 12/0) is not usable either.
    """
    if not gold.strip():
        return ()
    boxed = gold if "\\boxed" in gold else f"\\boxed{{{gold.strip()}}}"
    parsed = parse(boxed, ANCHORED, **UNLIMITED)
    broken = (sympy.zoo, sympy.nan)
    if any(isinstance(p, sympy.Basic) and p.has(*broken) for p in parsed):
        return ()
    return tuple(parsed)

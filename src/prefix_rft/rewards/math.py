"""Mathematical answers, graded by math-verify."""

from __future__ import annotations

import functools
import re
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
        answer: gold answers, as LaTeX, plain expressions, or numbers; see :func:`read_gold`.
        anywhere: take the last expression of a text as its answer where nothing marks one.
        **kwargs: other columns; not used.
    """
    return [
        _grade(completion_text(c), gold, anywhere)
        for c, gold in zip(completions, answer, strict=True)
    ]


def _grade(text: str, gold: Any, anywhere: bool) -> Verdict:
    expected = read_gold(str(gold)) if isinstance(gold, (str, int, float)) else ()
    if not expected:
        return Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r}")
    found = parse(text, ANYWHERE if anywhere else ANCHORED, raise_on_error=True, **UNLIMITED)
    if not found:
        return Verdict(NO_ANSWER)
    right = verify(list(expected), found, timeout_seconds=None, raise_on_error=True)
    status = CORRECT if right else WRONG
    # What equals the gold answer is one answer where votes are counted, however it is written.
    answer = _written(expected if right else found)
    return Verdict(status, detail=f"answer {found[-1]!s:.60}", answer=answer)


def _written(parsed: Sequence[Any]) -> str:
    """The parsed form, so that ``1/2`` and a fraction in LaTeX are the same answer."""
    try:
        return str(parsed[0])
    except ValueError:  # Python writes no integer of more than some thousand digits
        return str(parsed[-1])


@functools.lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[Any, ...]:
    r"""The gold answer as math-verify reads it inside ``\boxed{}``; empty if it is no answer.

    math-verify reads almost any text as something: ``hello`` as a product of five letters, ``1e3``
    as one with Euler's number, ``12:00`` as twelve divided by nought. Such a gold would make every
    answer wrong and never say so, so what does not look like one expression is refused.
    """
    gold = " ".join(gold.split()).removesuffix(".").strip()
    plain = WORDS_IN_LATEX.sub("·", gold)
    if not gold or any(form.search(plain) for form in NO_ANSWER_FORMS):
        return ()
    # A bare "pi" inside LaTeX would be p times i; either way of writing it is right.
    forms = dict.fromkeys([gold, BARE_PI.sub(r"\\pi", gold)])
    parsed = [p for form in forms for p in parse(_boxed(form), ANCHORED, **UNLIMITED)]
    expressions = [p for p in parsed if not isinstance(p, str)]
    broken = (sympy.zoo, sympy.nan)
    if not expressions or any(isinstance(p, sympy.Basic) and p.has(*broken) for p in expressions):
        return ()
    return tuple(parsed)


def _boxed(gold: str) -> str:
    return gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"


WORDS_IN_LATEX = re.compile(
    r"\\(text|textbf|textit|mathrm|mathbf|operatorname|begin|end)\*?\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
"""Commands, and words that LaTeX marks as such."""
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|and"
NO_ANSWER_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?<![a-zA-Z])(?!(?:{FUNCTIONS})(?![a-zA-Z]))[a-zA-Z]{{3,}}",  # a word
        r"####",  # GSM8K's whole solution
        r"\d\s+\d",  # 3 1/2 would be read as 31/2 or 2
        r"\d[eE][+-]?\d",  # 1e3
        r"(?i)\d\s*[ap]\.?m\b",  # a time of the day
        r"(?i)^n/?a$",
    )
)
BARE_PI = re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])")

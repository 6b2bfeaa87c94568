"""Mathematical answers, graded by math-verify."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from prefix_rft.rewards.marked import (
    behind_thinking,
    emphasised_end,
    last_box,
    opens_thinking,
    without_markdown,
)
from prefix_rft.rewards.notation import other_readings, plain
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
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from math_verify.parser import get_extraction_regexes
except ImportError as error:
    raise ImportError(
        f"{error}; the reward 'math' needs math-verify: pip install 'prefix-rft[math]'"
    ) from error

# No limits of math-verify's own: they need the main thread, and the pool has better ones.
UNLIMITED: dict[str, Any] = {"parsing_timeout": None}
# Units are dropped by notation.plain: math-verify takes the t of x+2t for one.
BOXED = (
    LatexExtractionConfig(
        boxed_match_priority=0,
        try_extract_without_anchor=False,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
        ),
    ),
)


@grader(tests_gold=True)
def math(
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    prompts: Sequence[Any] | None = None,
    anywhere: bool = False,
    **kwargs: Any,
) -> list[Verdict]:
    r"""Whether the answer of each completion equals the gold answer, in TRL's reward signature.

    What stands before the last ``</think>`` does not count. The answer is the content of the last
    ``\boxed{}`` or, without one, what follows words like "the answer is", or an expression in bold
    or code that ends the text. A completion with none of these has ``no answer``: a number that
    happens to stand last in a text that was cut off is not one; nor has a completion that is cut
    off inside its thinking or inside its last box. A gold answer that cannot be read as what it
    says is ``gold unparseable`` whatever the completion, so an empty completion tests the gold
    alone.

    Args:
        completions: texts or conversations.
        answer: gold answers, as LaTeX, plain expressions, or numbers; see :func:`read_gold`.
        prompts: texts or conversations; where one ends with ``<think>``, its completion begins
            inside the thinking. Of a chat template that writes the tag itself nothing is known
            here: such a completion counts as a whole as long as it has no ``</think>``.
        anywhere: take the last expression of a text as its answer where nothing marks one.
        **kwargs: other columns; not used.
    """
    opened = [opens_thinking(p) for p in prompts] if prompts else [False] * len(completions)
    return [
        _grade(behind_thinking(completion_text(c), inside), gold, anywhere)
        for c, gold, inside in zip(completions, answer, opened, strict=True)
    ]


def _grade(text: str | None, gold: Any, anywhere: bool) -> Verdict:
    expected = read_gold(str(gold)) if isinstance(gold, (str, int, float)) else None
    if expected is None:
        return Verdict(GOLD_UNPARSEABLE, detail=f"gold {gold!r}")
    said = None if text is None else find_answer(text, anywhere)
    if not said:
        return Verdict(NO_ANSWER)
    found = read(said)
    right = found is not None and equal(expected, found)
    if not right:
        others = [read_plain(p) for p in other_readings(said)]
        right = any(equal(expected, other) for other in others if other is not None)
    # What equals the gold answer is one answer where votes are counted, however it is written.
    answer = expected if right else found
    return Verdict(
        CORRECT if right else WRONG,
        detail=f"answer {said:.60}",
        answer=said if answer is None else _written(answer, said),
    )


def _written(value: Any, said: str) -> str:
    """The parsed form, so that ``1/2`` and a fraction in LaTeX are the same answer."""
    try:
        return str(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        return said


@functools.lru_cache(maxsize=4096)
def read_gold(gold: str) -> Any | None:
    r"""The gold answer as an expression; None if it is none, or would be read as another one.

    math-verify reads almost any text as something: ``hello`` as a product of five letters,
    ``12:00`` as twelve divided by nought. Such a gold would make every answer wrong, or wrong ones
    right, and never say so: what does not look like one expression is refused, and the notation of
    the others is written so that it is read as what it says (:mod:`prefix_rft.rewards.notation`).
    """
    said = last_box(gold)
    said = " ".join((gold if said is None else said).split())
    if not said or any(form.search(WORDS_IN_LATEX.sub("·", said)) for form in NO_ANSWER_FORMS):
        return None
    value = read(said)
    # A set with an element twice would be one without it: 2, 2, 3 is not 2, 3.
    written = getattr(value, "_unsorted_args", None)
    return None if written and len(written) > len(set(written)) else value


def read(said: str) -> Any | None:
    """An answer as written, as an expression; None if it cannot be read as what it says."""
    text = plain(said)
    return None if text is None else read_plain(text)


def read_plain(text: str) -> Any | None:
    """What :func:`prefix_rft.rewards.notation.plain` has written, as an expression."""
    parsed = parse(f"\\boxed{{{text}}}", BOXED, "no_fallback", raise_on_error=True, **UNLIMITED)
    if not parsed:
        return None
    value: Any = parsed[0]
    if not isinstance(value, sympy.Basic):
        return value
    if value.has(sympy.zoo, sympy.nan):
        return None
    # math-verify has symbols of two kinds for i, by what stands beside it, and no unit.
    symbols = {symbol: str(symbol) for symbol in value.free_symbols}
    if "j" in symbols.values():  # vectors
        return value
    return value.xreplace({s: sympy.I for s, name in symbols.items() if name == "i"})


def find_answer(text: str, anywhere: bool) -> str | None:
    """The part of a text that says its answer; None or empty if there is none."""
    box = last_box(text)
    if box is not None:
        return box
    bare = without_markdown(text)
    return (
        _behind_words(bare, False)
        or emphasised_end(text)
        or (_behind_words(bare, True) if anywhere else None)
    )


def _behind_words(text: str, anywhere: bool) -> str | None:
    """The expression behind words like "the answer is", as math-verify finds them."""
    several: Any = get_extraction_regexes(
        (
            LatexExtractionConfig(boxed_match_priority=-1, try_extract_without_anchor=anywhere),
            ExprExtractionConfig(try_extract_without_anchor=anywhere),
        )
    )
    ranked = sorted(
        ((priority, form) for forms, _ in several for form, priority in forms), key=lambda x: x[0]
    )
    for _, forms in groupby(ranked, key=lambda x: x[0]):
        matches = [m for _, form in forms for m in form.finditer(text)]
        # The last one; of several that end there, the one that begins first.
        for match in sorted(matches, key=lambda m: (m.end(), -m.start()), reverse=True):
            if said := _expression(match, text):
                return said
    return None


def _expression(match: re.Match[str], text: str) -> str:
    """What a match of math-verify's holds, to its end: of ``12:30`` it takes only the 12."""
    groups = {name: value for name, value in match.groupdict().items() if value}
    latex = [value for name, value in groups.items() if "latex" in name]
    if latex:
        percent = r"\%" if any("percent" in name for name in groups) else ""
        return ", ".join(latex) + percent
    starts = [match.start(name) for name in groups if name != "percent"]
    if not starts:
        return ""
    start = min(starts)
    said = text[start : match.end()].rstrip()
    if re.search(r"[\s.,:)]$", text[start : match.end()]) and "expr" in groups:
        return said.rstrip(".,:")
    rest = GOES_ON.match(text, start + len(said))
    said = (said + rest.group() if rest else said).rstrip(".,;:!?*\"'")
    # Behind words, not in LaTeX, a comma before one or two digits is a decimal one.
    return re.sub(r"^(-?\d+),(\d{1,2})$", r"\1.\2", said)


GOES_ON = re.compile(
    r"[^\s]*(?:\s*[-+*/^=\u00d7\u00f7\u00b7]\s*(?:[\d(\\]\S*|[b-hj-z](?![a-zA-Z])\S*))*"
)
"""The rest of an expression whose first number has been found."""


def equal(gold: Any, found: Any) -> bool:
    """Whether math-verify takes both for equal, and they are where both are exact.

    A decimal is approximate: to six places, as math-verify has it, and to a hundredth of itself.
    """
    exact = not _has(gold, sympy.Float) and not _has(found, sympy.Float)
    percent = _has(gold, sympy.UnevaluatedExpr) or _has(found, sympy.UnevaluatedExpr)
    a, b = _constant(gold), _constant(found)
    if exact and not percent and a is not None and b is not None:
        return a == b
    # math-verify rounds differences to so many places; exact values need more of them.
    places = EXACT_PLACES if exact else 15
    options: Any = {"timeout_seconds": None, "raise_on_error": True}
    if not exact and not percent:  # 1.5 * 10**3 is no Float yet
        gold, found = (x.doit() if _number(x) else x for x in (gold, found))
    if not verify(gold, found, numeric_precision=places, **options):
        return False
    if exact or percent or not (_number(gold) and _number(found)):
        return True
    a, b = sympy.N(gold), sympy.N(found)
    return bool(abs(a - b) <= max(abs(a), abs(b)) / 100)


EXACT_PLACES = 200


def _has(value: Any, kind: Any) -> bool:
    return isinstance(value, (sympy.Basic, sympy.MatrixBase)) and value.has(kind)


def _number(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and bool(value.is_number)


def _constant(value: Any) -> Any | None:
    """A rational number behind an expression that is one."""
    if not _number(value) or value.has(sympy.Float):
        return None
    done = value if value.is_Rational else value.doit()
    return done if done.is_Rational else None


WORDS_IN_LATEX = re.compile(
    r"\\(text|textbf|textit|textrm|mathrm|mathbf|mathit|boldsymbol|bm|mbox|hbox|operatorname|textcolor|color|begin"
    r"|end)\*?\s*\{[^{}]*\}|\\[a-zA-Z]+"
)
"""Commands, and words that LaTeX marks as such."""
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|and"
NO_ANSWER_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?<![a-zA-Z])(?!(?:{FUNCTIONS})(?![a-zA-Z]))[a-zA-Z]{{3,}}",  # a word
        r"####",  # GSM8K's whole solution
        r"(?i)\d\s*[ap]\.?m\b",  # a time of the day
        r"(?i)^n/?a$",
    )
)

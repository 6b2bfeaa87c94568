r"""An answer's notation, written so that math-verify reads the value that it stands for.

math-verify reads almost any text as something: ``3+4\mathrm{i}`` as 7 (a letter behind a number is
a unit), ``12:30`` as two fifths, ``2(3)`` as five, ``1\frac{1}{2}x`` as half of x. What has one
meaning is rewritten here; what has several, or none that math-verify knows, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from prefix_rft.rewards.marked import EMPHASIS, closing, unbold

UPRIGHT = r"\\(?:text|textrm|textnormal|textup|mathrm|mbox|hbox|operatorname\*?)\s*\{([^{}]*)\}"
NUMBER = r"\d+(?:\.\d+)?"
PART_END = r"(?=\s*(?:$|[,;)\]]|\\\}|\\right|\\text\s*\{\s*(?:and|or)\b|(?:and|or)\b))"
POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
AND_OR = r"\\text\s*\{\s*(?:and|or)\s*\}"
UNIT = re.compile(
    rf"(?<=[^\W_]|[}})\].!%])\s*{UPRIGHT}{POWER}(?:\s*(?:\\cdot|/|\\times)?\s*{UPRIGHT}{POWER})*{PART_END}"
)
SYMBOLS = re.compile(
    r"(?<=[\d)}\s])\s*(?:cm|mm|dm|km|mg|kg|gm|ml|mL|ft|in|yd|oz|lbs?|hrs?|mph|kmph|deg|degrees?|feet"
    rf"|foot|inch(?:es)?){POWER}\.?{PART_END}"
)
AREA = re.compile(rf"(?<=\d)\s*(?:m|cm|mm|km|ft|in)\s*\^?\s*\{{?[23]\}}?{PART_END}")
WORDS = re.compile(rf"(?<=[\d)}}])\s+(?!(?:and|or)\b)[a-z]{{3,}}(?:\s+[a-z]+)*\.?{PART_END}")
"""A bare word behind a number: ``18 dollars``."""
LETTER = re.compile(rf"(?<=[\d)}}])\s+[msghLlNJWVKCF]{PART_END}")
"""A bare letter apart from its number: ``5 m`` is five metres or five times m."""
COUNTS = re.compile(
    r"(?i)\b(hundreds?|thousands?|(?:m|b|tr)illions?|dozens?|scores?|hal(?:f|ves)|thirds?|quarters?"
    r"|fourths?|fifths?|sixths?|eighths?|tenths?|squared|cubed|times|base|mod|modulo|remainder"
    r"|factorial|over|minus|plus|negative|o'?clock|noon|midnight|r|[ap]\.?\s*m\.?"
    r"|at (?:least|most)|(?:more|less|fewer|greater) than|or (?:more|less|fewer))(?![a-z])"
)
"""Words that make a number another one."""
COLON = re.compile(r"[^:=<>{}()\[\],]+:[^:=<>{}()\[\],]+")
CLOCK = re.compile(r"(?<![\d.])\d{1,2}\s*:\s*[0-5]\d(?![\d.])")
WORD = "\0"
"""Stands for a word that LaTeX marks as such."""
REFUSED = tuple(
    re.compile(form)
    for form in (
        r"\.\.|…|\\[a-z]?dots|\\dots[a-z]",  # what follows is not said
        r"\d\s*/\s*\d+\s*/\s*\d|\d{4}-\d{1,2}-\d|\d\.\d+\.\d",  # dates
        r"(?<![_^])(?<![_^]\d)\d\s+\d|\d\s*_",
        r"(?:\\circ|°)\s*\}?\s*\d|\d\s*['\u2019\u2032\"\u2033]+\s*\d(?!\d\d(?!\d))",
        r"\\p?mod(?![a-z])|\\bmod|(?<![a-zA-Z])mod(?![a-zA-Z])",
        r"(?<![a-zA-Z\\_^])[a-zA-Z]\d|\d\s*[xXR]\s+\d",  # x2: a power, an index, times?
        r"\\frac\s*\d\s*\d\s*\d",  # \frac123
        r"\d\s*/\s*\d+\s*(?:[a-zA-Z(]|\\pi|\\sqrt|\\left)",  # 1/2x: half of x, or of its inverse?
        r"\^\s*\{?\s*(?:T(?![a-zA-Z])|\\top|\\dagger)",  # a transpose
        r"\d,\d{3},\d{1,2}(?!\d)|^\d{1,3}\.\d{3},\d+$",
        rf"{WORD}\s*(?:\d|\\frac|\\sqrt)",  # words between numbers
        r"\d\s+(?:to|of|in|by|per|at|on|is|than|vs)\s+[-\d]|\\lnot(?![a-z])|\\neg(?![a-z])",
        r"\\(?:overline|bar|dot|hat|tilde)\s*\{?\s*\d",
    )
)
THIN = r"(?<!\\)\\[,;:! ]|~"
SPELT_BASES = {
    word: str(base)
    for base, word in enumerate(
        ("two", "three", "four", "five", "six", "seven", "eight", "nine"), 2
    )
}
TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")


def plain(answer: str) -> str | None:
    r"""The answer as LaTeX that math-verify reads right; None where it would not.

    Units behind a value are dropped (a letter is one only inside ``\text{}`` or its like), and so
    are ordinal endings, signs of currency and of degrees, and a full stop at the end.
    """
    text = _unwrapped(answer)
    if _counts(text):
        return None
    text = _fonts(text)
    for unit in (UNIT, SYMBOLS, AREA, WORDS):
        text = unit.sub("", text)
    for rewrite in REWRITES:
        text = rewrite(text)
    masked = re.sub(UPRIGHT, WORD, re.sub(AND_OR, ",", text))
    times = CLOCK.search(masked) or (":" in masked and not COLON.fullmatch(masked))
    if not text or times or any(form.search(masked) for form in REFUSED) or _improper(text):
        return None
    return text


def other_readings(answer: str) -> list[str]:
    r"""What an answer may mean besides: ``5 m`` is five metres, too, and ``5\text{ m}`` five m."""
    text = _unwrapped(answer)
    spelt = re.sub(r"\\(?:text|mathrm)\s*\{\s*([a-zA-Z])\s*\}", r" \1", text)
    found = [LETTER.sub("", text), _degrees(spelt)]
    return [p for t in found if t != text and (p := plain(t)) is not None]


def _unwrapped(answer: str) -> str:
    """Without what stands around a value or only sets it: dollars, quotes, Markdown, spaces."""
    text = " ".join(answer.split())
    for form in EMPHASIS:
        text = form.sub(r"\2", text)
    text = re.sub(
        r"\\\$|\$|(?<!\\)\\[()\[\]]|`|\\displaystyle(?![a-z])|\\(?:large|Large)\b", "", text
    )
    text = re.sub(r"(?<=\d)\s*(?:\{,\}|\\!\s*,\s*\\!|\\!,)(?=\d)", ",", text)
    text = re.sub(rf"(?<=\d)(?:{THIN})\s*(?=\d{{3}}(?!\d))", "", text)
    text = re.sub(rf"{THIN}|\\q?quad(?![a-z])", " ", text).strip()
    if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    text = re.sub(r"(?<![.;,\s])(?:[;,\s]|\.(?!\.))+$", "", text)
    text = re.sub(r"(?<=\d)\.(?![\d.(]|\\(?:overline|bar|dot))", "", text)  # 7. is 7
    return (
        text.replace("\u2212", "-")
        .replace("\\colon", ":")
        .replace("\\imath", "i")
        .replace("·", "\\cdot ")
    )


def _counts(text: str) -> bool:
    """Whether a word makes the number another one, as in 5 million."""
    said = " ".join(re.findall(UPRIGHT, text)) + " " + re.sub(rf"{UPRIGHT}|\\[a-zA-Z]+", "·", text)
    return bool(re.search(r"\d", text)) and any(
        len(m.group()) > 1 or m.group() == "R" for m in COUNTS.finditer(said)
    )


def _fonts(text: str) -> str:
    """Letters and numbers without the commands that set them; words stay ``\\text{}``."""
    while found := re.search(r"\{\s*\\(?:rm|bf|it|sf|tt)(?![a-zA-Z])\s*", text):
        end = closing(text, found.start())
        if end is None:
            break
        text = text[: found.start()] + "{" + text[found.end() :]
    bold = re.compile(
        r"\\(?:textbf|textit|emph|mathbf|boldsymbol|bm)\s*\{([^{}]*[a-zA-Z]{2}[^{}\\]*)\}"
    )
    text = unbold(bold.sub(r"\\text{\1}", text))

    def shown(match: re.Match[str]) -> str:
        inner = match[1].strip()
        if re.fullmatch(r"[-+]?\s*[\d.].*|[-+*/=,;:]|\\[a-zA-Z]+", inner):
            return f" {inner} "
        if re.fullmatch(r"%|percent(?:age)?|pct", inner):
            return r"\%"
        if re.fullmatch(r"[abeijknpqrtuvwxyz]", inner):
            return f" {inner} "
        return rf"\text{{{match[1]}}}"

    text = re.sub(UPRIGHT, shown, text)
    return re.sub(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi", text).strip()


def _degrees(text: str) -> str:
    """Degrees are radians inside a sine and its like, and no unit that counts elsewhere."""
    text = text.replace("°", r"^\circ")
    sign = r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))"
    if TRIGONOMETRIC.search(text):
        return re.sub(rf"({NUMBER}){sign}", r"{(\\frac{\1\\pi}{180})}", text)
    return re.sub(rf"{sign}\s*(?:C|F|\\text\{{\s*[CF]\s*\}})?(?![a-zA-Z\d'])", "", text)


def _ordinals(text: str) -> str:
    ending = r"(?:st|n[d]|rd|th)"
    return re.sub(
        rf"(?<=\d)\s*\^?\s*(?:\{{\s*)?(?:\\text\s*\{{\s*{ending}\s*\}}|{ending}(?![a-z]))(?:\s*\}})?",
        "",
        text,
    )


def _thousands(text: str) -> str:
    """``1,234`` as one number where nothing says that it is two."""
    group = r"(?<![\d,.])([1-9]\d{0,2}(?:,\d{3})+)(?!\d|,\d)"
    brackets = re.search(r"[(\[]|\\\{", text)
    if brackets and not re.search(r",0\d\d(?!\d)|,\s+", text):
        return text
    return re.sub(group, lambda m: m[1].replace(",", ""), text)


def _repeating(text: str) -> str:
    r"""``0.1\overline{6}``, ``0.1\dot{6}`` and ``0.1(6)`` as fractions."""

    def fraction(match: re.Match[str]) -> str:
        whole, fixed, period = match[1], match[2], match[3] or match[4]
        nines = int("9" * len(period) + "0" * len(fixed))
        top = int(whole + fixed + period) - int(whole + fixed)
        return rf"\frac{{{top}}}{{{nines}}}"

    mark = r"\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?"
    return re.sub(rf"(?<![\d.])(\d+)\.(\d*)(?:{mark}|\((\d+)\))(?![\d\\(])", fraction, text)


def _scientific(text: str) -> str:
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\cdot ", text)
    form = rf"(?<![\w.\\])({NUMBER}|\.\d+)[eE]([+-]?)0*(\d+)(?![\w.])"
    return re.sub(form, lambda m: rf"{m[1]}\cdot 10^{{{m[2].strip('+')}{m[3]}}}", text)


def _bases(text: str) -> str:
    """A numeral with its base is equal to the same one alone: not to its digits in base ten."""

    def numeral(match: re.Match[str]) -> str:
        base = SPELT_BASES.get(match[2], match[2])
        return rf"\text{{{match[1].replace('.', 'point')}base{base}}}"

    index = r"(?:\\text\s*)?\{?\s*(?:\\text\s*\{\s*)?"
    words = "|".join(SPELT_BASES)
    base = rf"(\d{{1,2}}(?!\d)|(?:{words})(?![a-z]))(?:\s*\}})*"
    return re.sub(rf"(?<![\w.^_\\{{}}])\(?({NUMBER})\)?\s*_\s*{index}{base}", numeral, text)


def _primes(text: str) -> str:
    """``f'`` is not f; feet and inches behind a single number are units."""
    text = re.sub(r"(?<=\d)\s*(?:'{1,2}|\"|\u2032|\u2033)\s*$", "", text)
    return re.sub(r"(?<![a-zA-Z\\])([a-zA-Z])('+)", lambda m: f"{m[1]}_{{prime{len(m[2])}}}", text)


def _mixed(text: str) -> str:
    r"""``1 1/2`` and ``1\frac{1}{2}`` as sums in brackets, so that they can be factors."""

    def number(match: re.Match[str]) -> str:
        top, bottom = int(match[2]), int(match[3])
        if top >= bottom:
            return match[0]
        return rf"(({match[1]})+\frac{{{top}}}{{{bottom}}})"

    alone = r"(?<![\w.^_}\\,])(\d+)"
    text = re.sub(r"(?<![\w.^_}\\])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.a-zA-Z(])", number, text)
    text = re.sub(r"\\[dtc]?frac\s+(?=\d\s+\d(?!\d))(\d)\s+", r"\\frac\1", text)
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text)
    text = re.sub(rf"{alone}\s*\\frac\s*(\d)\s*(\d)(?!\d)", number, text)
    return re.sub(rf"{alone}\s*\\frac\s*\{{\s*(\d+)\s*\}}\s*\{{\s*(\d+)\s*\}}", number, text)


def _improper(text: str) -> bool:
    r"""Whether ``2\frac{5}{2}`` stands there: a product, or a sum?"""
    return bool(re.search(r"(?<![\w.^_}\\])\d+\s*\\frac\s*(?:\d|\{\s*\d+\s*\})", text))


def _products(text: str) -> str:
    """A number before a bracket is a factor; math-verify would add what the bracket holds."""
    opening = r"(?=\s*(?:\\left\s*)?(?:\(|\[|\{|\\\{|\\d?binom))"
    text = re.sub(rf"(?<![\w.^_}}\\/])({NUMBER}){opening}", r"\1\\cdot ", text)
    return re.sub(r"\)(?=\s*(?:\d|(?:\\left\s*)?\())", r")\\cdot ", text)


def _letters(text: str) -> str:
    """Roman numerals and a choice between I and others are words; I would be imaginary."""
    if re.fullmatch(r"[IVX]{2,}|\(?I\)?", text):
        return rf"\text{{{text.strip('()')}}}"
    # A word alone is one, however it is set.
    if re.fullmatch(r"[a-zA-Z]{3,}(?: [a-zA-Z]+)*", text) and text not in ("inf", "infinity"):
        return rf"\text{{{text}}}"
    return text


REWRITES: tuple[Callable[[str], str], ...] = (
    _letters,
    _ordinals,
    _degrees,
    _scientific,
    _bases,
    _thousands,
    _repeating,
    _primes,
    _mixed,
    _products,
)

r"""A gold answer is read as what it says, or not at all; and so is what a completion says."""

import pytest
import sympy

from prefix_rft.rewards.math import math, read_gold
from prefix_rft.rewards.notation import plain

i, e, pi, Q = sympy.I, sympy.E, sympy.pi, sympy.Rational
x, t, m, s, a, b = sympy.symbols("x t m s a b", real=True)

VALUES = {
    # A letter behind a number is a factor, however it is set.
    "3+4\\mathrm{i}": 3 + 4 * i,
    "3+4\\text{i}": 3 + 4 * i,
    "3 + 4\\,\\mathrm{ i }": 3 + 4 * i,
    "3+4\\mathbf{i}": 3 + 4 * i,
    "3+4\\operatorname{i}": 3 + 4 * i,
    "3+4{\\rm i}": 3 + 4 * i,
    "3+4\\imath": 3 + 4 * i,
    "3+4i": 3 + 4 * i,
    "3+\\sqrt{2}\\mathrm{i}": 3 + sympy.sqrt(2) * i,
    "2\\mathrm{e}": 2 * e,
    "5\\mathrm{x}": 5 * x,
    "5\\text{x}": 5 * x,
    "2t": 2 * t,
    "x+2t": x + 2 * t,
    "5m": 5 * m,
    "5 m": 5 * m,
    "3ab": 3 * a * b,
    "x^2+3s": x**2 + 3 * s,
    # Units.
    "5\\text{ cm}": 5,
    "5\\,\\mathrm{m}": 5,
    "5\\text{ m/s}^2": 5,
    "5\\text{ kg}\\cdot\\text{m}": 5,
    "5 cm": 5,
    "5km": 5,
    "90^\\circ": 90,
    "90^{\\circ}\\text{C}": 90,
    "90°": 90,
    "\\sin 30^\\circ": Q(1, 2),
    "5^{\\text{th}}": 5,
    "3rd": 3,
    "5\\text{ percent}": Q(1, 20),
    # Factors that math-verify would add.
    "2(3)": 6,
    "(2)(3)": 6,
    "2\\left(3\\right)": 6,
    "10(1/2)": 5,
    "3\\binom{4}{2}": 18,
    # Mixed numbers.
    "1 1/2": Q(3, 2),
    "1\\frac12": Q(3, 2),
    "-1\\frac{1}{2}": Q(-3, 2),
    "1\\frac{1}{2}x": Q(3, 2) * x,
    "3\\dfrac{1}{2}\\pi": Q(7, 2) * pi,
    # Thousands, powers of ten, periods.
    "1,234": 1234,
    "1{,}234": 1234,
    "1\\,234": 1234,
    "7\\,000": 7000,
    "1,234\\pi": 1234 * pi,
    "\\{1,000\\}": sympy.FiniteSet(1000),
    "(1,000, 2)": sympy.Tuple(1000, 2),
    "1e3": 1000,
    "1e-07": Q(1, 10**7),
    "2\\times 10^3": 2000,
    "2 x 10^3": 2000,
    "0.\\overline{3}": Q(1, 3),
    "0.1\\overline{6}": Q(1, 6),
    "3.(14)": Q(311, 99),
    "0.\\dot{3}": Q(1, 3),
    # What else it is spelt with.
    "7.": 7,
    "7,": 7,
    "**7**": 7,
    "\\textbf{7}": 7,
    "\\textcolor{red}{7}": 7,
    "$7$": 7,
    "\\(7\\)": 7,
    "2·3": 6,
    "5:3": Q(5, 3),
    "2pi": 2 * pi,
    "\\log_2 8": 3,
    "\\pm 2": sympy.FiniteSet(-2, 2),
    "\\text{3 or 4}": sympy.FiniteSet(3, 4),
}


@pytest.mark.parametrize("gold", VALUES)
def test_a_gold_has_its_value(gold: str) -> None:
    value = read_gold(gold)
    assert value is not None
    real = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in value.free_symbols}
    value = value.xreplace(real).doit()
    if isinstance(value, sympy.FiniteSet):  # math-verify has a kind of its own
        value = sympy.FiniteSet(*value.args)
    assert value == VALUES[gold]


UNREADABLE = [
    *("12:30", "3:05", "12:30:15", "1:2:3", "\\text{12:30}", "6\\text{ p.m.}"),
    *("2/3/2024", "2024-05-01", "01.05.2024"),
    *("5\\text{ million}", "5\\text{ hundred}", "2\\text{ dozen}", "5\\text{ squared}"),
    *("7R2", "5\\text{ R }2", "7\\text{ remainder }2", "5\\text{ or more}"),
    *("10\\text{ hours }30\\text{ minutes}", "2\\text{ ft }3\\text{ in}", "5'10\""),
    "45^\\circ 30'",
    *("0.333...", "0.333\\ldots", "1,2,\\ldots,10", "1+2+\\cdots+10", "\\dot{1}2\\dot{3}"),
    *("1 234", "1_000", "1.234,5", "2\\frac{5}{2}", "\\frac123"),
    *("1/2x", "1/2(x+1)", "3/4\\sqrt{2}", "2x3", "x2+1", "1 to 5"),
    *("3 \\pmod 5", "3 mod 5", "x\\equiv 3\\pmod 7", "\\{x : x > 0\\}"),
    *("5^T", "\\overline{5}", "2,2,3", "1, 1"),
]  # fmt: skip


@pytest.mark.parametrize("gold", UNREADABLE)
def test_what_would_be_another_value_is_no_gold(gold: str) -> None:
    assert math(["\\boxed{7919}"], [gold])[0].status == "gold unparseable"


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        ("7", "3+4\\mathrm{i}", False),
        ("3", "3+4\\mathrm{i}", False),
        ("4\\mathrm{i}+3", "3+4i", True),
        ("3-4i", "3+4i", False),
        ("2i", "\\sqrt{-4}", True),
        ("12:30", "2/5", False),
        ("5", "2(3)", False),
        ("2(3)", "6", True),
        ("2(3)", "5", False),
        ("x/2", "1\\frac{1}{2}x", False),
        ("235", "1\\,234", False),
        ("7.", "7", True),
        ("7.\\text{ cm}", "7", True),
        ("3 1/2", "7/2", True),
        ("1 1/2", "1", False),
        ("5\\text{ million}", "5", False),
        ("10\\text{ hours }30\\text{ minutes}", "10", False),
        # A numeral belongs to its base.
        ("101_2", "101_{2}", True),
        ("101_{\\text{two}}", "101_2", True),
        ("101", "101_2", False),
        ("101_3", "101_2", False),
        ("5", "101_2", False),
        # A letter apart from its number may be a unit, or not.
        ("5 m", "5", True),
        ("5\\text{ m}", "5m", True),
        ("5", "5m", False),
        ("5x", "5", False),
        ("5\\text{ cm}", "5", True),
        ("5 feet", "5", True),
        ("IV", "VI", False),
        ("-1", "II", False),
        ("f(x)=2x", "f'(x)=2x", False),
        ("f'(x)=2x", "f'(x)=2x", True),
        ("2", "2, 3", False),
    ],
)
def test_what_is_said_is_read_as_it_is(said: str, gold: str, right: bool) -> None:
    status = math([f"\\boxed{{{said}}}"], [gold])[0].status
    assert status == ("correct" if right else "wrong")


@pytest.mark.parametrize(
    ("said", "gold", "right"),
    [
        # Exact values are equal or not.
        ("1/2^{98}", "1/2^{99}", False),
        ("1/2^{98}", "\\frac{1}{2^{98}}", True),
        ("\\sqrt{2}/2^{98}", "\\sqrt{2}/2^{99}", False),
        ("10^{-20}", "10^{-21}", False),
        ("0", "10^{-20}", False),
        ("10^{20}", "10^{20}+1", False),
        ("e^{-80}", "e^{-81}", False),
        ("x=1/2^{98}", "x=1/2^{99}", False),
        ("(1/2^{98}, 1)", "(1/2^{99}, 1)", False),
        ("\\{1/2^{98}, 1\\}", "\\{1/2^{99}, 1\\}", False),
        ("\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}", True),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}", True),
        ("\\log_2 3+\\log_2 5", "\\log_2 15", True),
        # Decimals are approximate, but not to nothing.
        ("0.333333", "1/3", True),
        ("0.33", "1/3", False),
        ("\\pi", "3.14159265", True),
        ("0.00000001", "0.00000002", False),
        ("0", "0.0000003", False),
        ("0.1+0.2", "3/10", True),
        ("1500", "1.5\\times 10^3", True),
        ("9\\%", "0.09", True),
        ("9\\%", "9", True),
    ],
)
def test_exact_values_are_compared_exactly(said: str, gold: str, right: bool) -> None:
    status = math([f"\\boxed{{{said}}}"], [gold])[0].status
    assert status == ("correct" if right else "wrong")


def test_plain_leaves_what_is_right() -> None:
    for text in ("\\frac{1}{2}", "x^2+1", "\\sqrt{3}", "(-\\infty, 3]", "\\text{Evelyn}", "2^{10}"):
        assert plain(text) == text

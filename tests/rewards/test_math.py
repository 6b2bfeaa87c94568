"""The reward ``math``: as math-verify says, and honest about gold answers."""

import pytest
from math_verify import parse, verify

from prefix_rft.rewards.math import math, read_gold
from prefix_rft.rewards.text import exact, format

GOLDS = [
    "42",
    "-5",
    "0",
    "1.50",
    "1,000",
    "1/2",
    "\\frac{1}{2}",
    "\\frac12",
    "3 \\frac{1}{2}",
    "2\\sqrt{3}",
    "sqrt(3)",
    "pi/2",
    "\\frac{\\pi}{2}",
    "2\\pi",
    "x^2+1",
    "x=3",
    "y=2x+1",
    "3, 5",
    "\\{1,2\\}",
    "(1,2)",
    "[0,1)",
    "(-\\infty, 3]",
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "\\text{Evelyn}",
    "\\text{(A)}",
    "(A)",
    "C",
    "10\\%",
    "50%",
    "90^\\circ",
    "\\$18",
    "$18",
    "5 \\text{ cents}",
    "11_3",
    "p - q",
    "6 - 5i",
    "10^6",
    "\\pm 2",
    "a<b",
    "x > 3",
    "5:3",
    "\\boxed{7}",
    "$7$",
    "2 \\cdot 3",
    "\\sin x",
    "log(2)",
    "x = 1 or x = 2",
    "3 1/2",
    "1e3",
    "1.5e-3",
    "42.",
    " 42\n",
    "\\mathrm{even}",
]
NO_GOLDS = [
    "",
    "  ",
    "12:00",
    "None",
    "nan",
    "True",
    "N/A",
    "n/a",
    "DNE",
    "hello world",
    "Tuesday",
    "blue",
    "The answer is 4",
    "18 dollars",
    "5\n6",
    "9 apples\n#### 9",
    "#### 5",
    "-",
    "\\",
    "{",
    "5)",
    "\\frac{1}{",
    "1/0",
    "inf",
    "3:30 PM",
    "1 000",
]


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_is_correct_to_itself_and_7919_is_not(gold: str) -> None:
    inside = gold.strip().removesuffix(".")
    said = inside if "\\boxed" in inside else f"\\boxed{{{inside}}}"
    verdicts = math([f"so {said}", "so \\boxed{7919}", ""], [gold] * 3)
    assert [v.status for v in verdicts] == ["correct", "wrong", "no answer"]


@pytest.mark.parametrize("gold", NO_GOLDS)
def test_what_is_no_gold_is_said_whatever_the_completion(gold: str) -> None:
    verdicts = math(["\\boxed{5}", "", gold], [gold] * 3)
    assert [v.status for v in verdicts] == ["gold unparseable"] * 3


@pytest.mark.parametrize("gold", [None, ["2", "3"], {"target": "2"}, True, 3, 2.5])
def test_golds_that_are_no_text(gold: object) -> None:
    expected = "no answer" if type(gold) in (int, float) else "gold unparseable"
    assert math([""], [gold])[0].status == expected


@pytest.mark.parametrize(
    ("text", "gold", "status"),
    [
        ("the answer is 4", "4", "correct"),
        ("3 + 1 = 4", "4", "no answer"),
        ("it ends with 4", "4", "no answer"),
        ("\\boxed{\\frac{\\pi}{2}}", "pi/2", "correct"),
        ("\\boxed{pi/2}", "pi/2", "correct"),
        ("\\boxed{0.5}", "1/2", "correct"),
        ("\\boxed{2, 1}", "\\{1,2\\}", "correct"),
        ("\\boxed{", "4", "no answer"),
    ],
)
def test_completions(text: str, gold: str, status: str) -> None:
    assert math([text], [gold])[0].status == status


def test_anywhere_takes_the_last_expression() -> None:
    assert math(["3 + 1 = 4"], ["4"], anywhere=True)[0].status == "correct"


def test_as_math_verify_says() -> None:
    """Every gold against every other one, boxed: the same word from both."""
    numbers = ["42", "-5", "1.50", "1/2", "\\frac{1}{2}", "0.5", "2\\sqrt{3}", "x^2+1", "x=3", "3"]
    numbers += [
        "\\{1,2\\}",
        "(1,2)",
        "[0,1)",
        "10\\%",
        "0.1",
        "50%",
        "A",
        "\\text{A}",
        "1,000",
        "1000",
    ]
    for gold in numbers:
        for said in numbers:
            direct = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{said}}}"))
            ours = math([f"\\boxed{{{said}}}"], [gold])[0]
            assert (ours.status == "correct") == direct, (gold, said)


def test_conversations_are_graded_by_their_last_message() -> None:
    completion = [{"role": "assistant", "content": "\\boxed{4}"}]
    assert math([completion], ["4"])[0].status == "correct"
    assert exact([completion], ["\\boxed{4}"])[0].status == "correct"


def test_read_gold_is_remembered() -> None:
    before = read_gold.cache_info().hits
    math(["1"] * 3, ["123456"] * 3)
    assert read_gold.cache_info().hits - before >= 2


@pytest.mark.parametrize(
    ("text", "gold", "options", "status"),
    [
        ("4", "4", {}, "correct"),
        (" 4\n", 4, {}, "correct"),
        ("a  b", "a b", {}, "correct"),
        ("A b", "a B", {}, "wrong"),
        ("A b", "a B", {"ignore_case": True}, "correct"),
        ("<think>5</think> 4", "4", {}, "correct"),
        ("so 5\n#### 4", "4", {"extract": "#### (.+)"}, "correct"),
        ("#### 3\n#### 4", "4", {"extract": "#### (.+)"}, "correct"),
        ("abc12", "12", {"extract": r"\d+"}, "correct"),
        ("no", "4", {"extract": "#### (.+)"}, "no answer"),
        ("", "4", {}, "no answer"),
        ("<think>4</think>", "4", {}, "no answer"),
        ("4", "", {}, "gold unparseable"),
        ("4", None, {}, "gold unparseable"),
    ],
)
def test_exact(text: str, gold: object, options: dict[str, object], status: str) -> None:
    assert exact([text], [gold], **options)[0].status == status  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>so</think>4", True),
        ("so\n</think>\n\n4", True),
        ("<think>so</think>", False),
        ("<think>so 4", False),
        ("4", False),
        ("<think></think>4", False),
    ],
)
def test_format(text: str, right: bool) -> None:
    assert format([text])[0].status == ("correct" if right else "wrong")


def test_format_with_a_pattern_of_ones_own() -> None:
    found = format(["a4", "4b", "a\n4"], pattern=".*4")
    assert [v.status for v in found] == ["correct", "wrong", "wrong"]

"""reasoning-gym's tasks as rows: what is asked for, what a puzzle carries, its demonstrations."""

import ast
import json
import re
import sys
from collections import Counter
from decimal import localcontext
from fractions import Fraction
from typing import Any

import pytest

from prefix_rft.data import find_source, load_rows
from prefix_rft.data.puzzles import Puzzles, shares
from prefix_rft.data.worked import WORKED, demonstration
from prefix_rft.recipe.recipe import check_values
from prefix_rft.support.errors import UserError
from prefix_rft.support.gym import NAME, SEVERAL, library, restored, score, written
from tables import rest_slow

gym = library()
EVERY = [name for name in sorted(gym.factory.DATASETS) if name != SEVERAL]
NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
QUICK = {"chain_sum", "gcd", "graph_color", "knights_knaves", "prime_factorization", "rearc"}


def points(own: Any, answer: str, puzzle: dict[str, Any]) -> float:
    try:
        return float(own.score_answer(answer, puzzle))
    except (ValueError, SyntaxError, TypeError):  # it cannot be read
        return 0.0


def answer_in(worked: str) -> str:
    return worked.rpartition("Answer: ")[2]


# Packages of reasoning-gym's leave their data files open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("task", rest_slow(EVERY, QUICK.__contains__))
def test_every_task_is_graded_from_its_text_as_by_itself(task: str) -> None:
    """The puzzle's way through JSON loses nothing that its grader looks at."""
    own = gym.create_dataset(task, seed=3, size=3)
    for row, puzzle in zip(
        sorted(Puzzles.of({NAME: task, "seed": 3, "size": 3}).rows(), key=lambda r: r["puzzle"]),
        sorted((own[i] for i in range(3)), key=lambda p: written(task, {}, p)),
        strict=True,
    ):
        assert row["question"] == puzzle["question"]
        gold = puzzle["answer"]
        assert ("answer" in row) == (gold is not None) == (task not in NO_GOLD)
        for answer in ("0", "so it is 12", f"{gold} or so", f" {gold}", str(gold)):
            assert score(row["puzzle"], answer) == points(own, answer, puzzle)
        if gold is not None:
            assert score(row["puzzle"], gold) == 1.0


def test_tuples_and_numbers_as_keys_come_back() -> None:
    puzzle = {"question": "?", "answer": None, "metadata": {1: ((2, 3), [4]), "x": {"y": (5,)}}}
    text = written("graph_color", {}, puzzle)
    assert restored(json.loads(text)["puzzle"]) == puzzle


def equal_sides(line: str) -> bool:
    """Whether a line of a worked demonstration says what is so."""
    sides = [side.strip() for side in line.split("=")]
    numbers = [side for side in sides if not re.search(r"[a-z]", side.removeprefix("gcd"))]
    values = set()
    for side in numbers:
        divisor = re.fullmatch(r"gcd\((\d+), (\d+)\)", side)
        if divisor:
            a, b = map(int, divisor.groups())
            values.add(Fraction(max(d for d in range(1, a + 1) if a % d == 0 and b % d == 0)))
            continue
        exact = re.sub(r"(\d+(?:\.\d+)?)", r"Fraction('\1')", side)
        ast.parse(exact, mode="eval")
        values.add(eval(exact, {"Fraction": Fraction}))  # noqa: S307  (digits and signs)
    return len(values) == 1


ARITHMETIC = sorted(set(WORKED) - {"spell_backward", "letter_counting"})


@pytest.mark.parametrize("task", ARITHMETIC)
def test_every_line_of_a_demonstration_is_true_and_the_last_one_is_right(task: str) -> None:
    several = {"min_terms": 3, "max_terms": 3} if task in ("products", "simple_equations") else {}
    some = 0
    for options in ({}, several):
        for row in Puzzles.of({NAME: task, "seed": 11, "size": 40, **options}).rows():
            for worked in row["demonstration"]:
                some += 1
                *lines, last = worked.splitlines()
                assert [line for line in lines if not equal_sides(line)] == []
                assert last.startswith("Answer: ")
                assert score(row["puzzle"], answer_in(worked)) == 1.0
    assert some >= 70


def test_a_task_that_leaves_decimals_imprecise_does_not_reach_a_demonstration() -> None:
    """decimal_arithmetic sets the precision of all decimals of the process to some digits."""
    known = {"expression": "4.4439 + 1.2537 - 7.8993"}
    with localcontext() as context:
        context.prec = 3
        worked = demonstration("decimal_chain_sum", {"answer": "-2.2017", "metadata": known})
    assert worked == "4.4439 + 1.2537 = 5.6976\n5.6976 - 7.8993 = -2.2017\nAnswer: -2.2017"


def test_demonstrations_by_hand() -> None:
    def worked(task: str, answer: str, **known: Any) -> list[str]:
        text = demonstration(task, {"answer": answer, "metadata": known})
        assert text is not None
        return text.splitlines()

    assert worked("chain_sum", "-4", expression="4 - 1 - 7") == [
        "4 - 1 = 3",
        "3 - 7 = -4",
        "Answer: -4",
    ]
    assert worked("products", "2040", expression="12 * 34 * 5") == [
        "12 * 4 = 48",
        "12 * 30 = 360",
        "48 + 360 = 408",
        "408 * 5 = 2040",
        "Answer: 2040",
    ]
    assert worked("gcd", "6", numbers=[18, 48]) == [
        "48 = 2 * 18 + 12",
        "18 = 1 * 12 + 6",
        "12 = 2 * 6 + 0",
        "Answer: 6",
    ]
    assert worked("simple_equations", "13", equation="56 - 98*e = -1218", variable="e") == [
        "-98*e = -1218 - 56 = -1274",
        "e = -1274 / -98 = 13",
        "Answer: 13",
    ]
    assert worked("simple_equations", "3", equation="-x + 5 = 2", variable="x") == [
        "-1*x = 2 - 5 = -3",
        "x = -3 / -1 = 3",
        "Answer: 3",
    ]
    assert worked("letter_counting", "3", span=["All", "late"], target_letter="l") == [
        "All: 2",
        "late: 1",
        "2 + 1 = 3",
        "Answer: 3",
    ]
    quadratic = {"equation": "3*x**2 = 12", "variable": "x"}
    assert demonstration("simple_equations", {"answer": "2", "metadata": quadratic}) is None
    assert demonstration("sudoku", {"answer": "1", "metadata": {}}) is None


@pytest.mark.parametrize("task", ["spell_backward", "letter_counting"])
def test_demonstrations_about_letters_are_right(task: str) -> None:
    for row in Puzzles.of({NAME: task, "seed": 2, "size": 30}).rows():
        assert score(row["puzzle"], answer_in(row["demonstration"][0])) == 1.0


def test_several_tasks_have_their_shares() -> None:
    data = {
        NAME: {"chain_sum": {"weight": 3, "min_terms": 4, "max_terms": 4}, "gcd": None},
        "size": 10,
        "seed": 5,
    }
    rows = list(Puzzles.of(data).rows())
    # 10 * 3/4 = 7.5 and 10 * 1/4 = 2.5: the remainders are alike, and the first one has it.
    assert Counter(row["task"] for row in rows) == {"chain_sum": 8, "gcd": 2}
    assert [row["task"] for row in rows] != sorted(row["task"] for row in rows)
    assert all(r["question"].count(" ") > 9 for r in rows if r["task"] == "chain_sum")
    assert rows == list(Puzzles.of(data).rows())
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert shares([0.2, 0.8], 5) == [1, 4]


def test_rows_are_rows_like_any_others() -> None:
    rows = load_rows({NAME: {"chain_sum": {}, "graph_color": {}}, "size": 6, "seed": 1})
    assert set(rows.column_names) >= {"prompt", "demonstration", "answer", "task", "puzzle"}
    for row in rows:
        assert row["prompt"][0]["role"] == "user"
        assert len(row["demonstration"]) == (row["task"] == "chain_sum")
        assert (row["answer"] is None) == (row["task"] == "graph_color")
    assert find_source({NAME: "gcd"}).name == "reasoning_gym gcd"


REFUSED = {
    "an unknown task": ({NAME: "chain_sums"}, "did you mean 'chain_sum'?"),
    "an unknown option": ({NAME: "chain_sum", "min_term": 3}, "did you mean 'min_terms'?"),
    "a value that the task refuses": ({NAME: "chain_sum", "min_terms": 0}, r"\(min_terms: 0\): "),
    "a mixture's own task": ({NAME: "composite"}, "name its tasks"),
    "no puzzle": ({NAME: "gcd", "size": 0}, "'size' must be at least 1"),
    "a size that is no number": ({NAME: "gcd", "size": "all"}, "'size' must be a whole number"),
    "a list": ({NAME: ["gcd"]}, "the name of a task, or a mapping"),
    "an option for nobody": ({NAME: {"gcd": {}, "lcm": {}}, "max_value": 9}, "'max_value' beside"),
    "a weight of nothing": ({NAME: {"gcd": {"weight": 0}}}, "a number above 0"),
}


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_asked_for(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_rows(data)


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=re.escape("pip install 'prefix-rft[lab]'")):
        load_rows({NAME: "gcd", "size": 2})


def test_an_answer_that_a_grader_cannot_read_is_wrong_and_a_puzzle_is_an_error() -> None:
    """prime_factorization raises at words: the model's fault, and no fault of the grader."""
    gold = " \N{MULTIPLICATION SIGN} ".join("223")
    sound = {"question": "12?", "answer": gold, "metadata": {}}
    text = written("prime_factorization", {}, sound)
    assert [score(text, a) for a in ("two", gold, "7")] == [0.0, 1.0, 0.01]  # its own hundredth
    broken = written("prime_factorization", {}, {**sound, "answer": "two"})
    with pytest.raises(ValueError, match="invalid literal"):
        score(broken, gold)


def test_held_out_puzzles_are_not_among_those_to_train_on() -> None:
    """reasoning-gym draws puzzle i from seed + i: seeds 1 to 2000 and 99 share most of them."""

    def check(held_out: dict[str, Any], task: str = "gcd", size: int = 2000) -> None:
        train = {NAME: task, "size": size, "seed": 1}
        check_values({"train_data": train, "eval_data": held_out}, {})

    with pytest.raises(UserError, match=r"has 1 to 2000; give eval_data seed: 2001 or more"):
        check({NAME: "gcd", "size": 100, "seed": 99})
    with pytest.raises(UserError, match=r"seed: 2001 or more"):
        check({NAME: "gcd", "size": 1, "seed": 2000})
    with pytest.raises(UserError, match=r"seed: 2001 or more"):
        check({NAME: {"lcm": {}, "gcd": {}}, "size": 20, "seed": -5})
    with pytest.raises(UserError, match=r"seed: 2001 or more"):
        check({NAME: "gcd", "size": 2, "seed": 0})
    check({NAME: "gcd", "size": 100, "seed": 2001})
    check({NAME: "gcd", "size": 1, "seed": 0})
    check({NAME: "lcm", "size": 100, "seed": 99})
    check({NAME: "gcd", "size": 100, "seed": 99, "max_value": 50})
    one, other = (
        [r["question"] for r in Puzzles.of({NAME: "gcd", "size": 10, "seed": seed}).rows()]
        for seed in (1, 6)
    )
    assert len(set(one) & set(other)) == 5

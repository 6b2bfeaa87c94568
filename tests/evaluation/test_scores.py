"""From samples to the numbers of a table, by hand."""

import json
from collections.abc import Sequence

import pytest

from prefix_rft.evaluation.samples import Sample
from prefix_rft.evaluation.scores import Problem, difference, powers, scores, split_by
from prefix_rft.rewards.verdict import CORRECT, NO_ANSWER, TIMEOUT, WRONG, Verdict
from prefix_rft.support.errors import UserError


def samples(word: str, tokens: int = 4) -> list[Sample]:
    """``+`` right, ``-`` wrong (both answer), ``0`` no answer, ``?`` not graded, ``~`` cut."""
    status = {"+": CORRECT, "-": WRONG, "0": NO_ANSWER, "?": TIMEOUT, "~": WRONG}
    answer = {"+": "right", "-": "wrong", "~": "wrong"}
    return [Sample(c, tokens, c == "~", Verdict(status[c], answer=answer.get(c))) for c in word]


def problems(*words: str, **columns: Sequence[object]) -> list[Problem]:
    return [
        Problem(i, {k: v[i] for k, v in columns.items()}, samples(word))
        for i, word in enumerate(words)
    ]


def test_numbers_by_hand() -> None:
    found = scores(problems("++--", "+0-~", "----", "?+?+"))
    # Problem means: 1/2, 1/4, 0, and 1 of the two that could be graded.
    assert found.avg.mean == pytest.approx((0.5 + 0.25 + 0 + 1) / 4)
    assert (found.problems, found.samples, found.ungraded) == (4, 4, 2)
    assert (found.truncated, found.no_answer, found.tokens) == (1 / 16, 1 / 16, 4.0)
    # pass@2: 1 - C(2,2)/C(4,2) = 5/6; 1 - C(3,2)/C(4,2) = 1/2; 0; 1.
    assert found.pass_at[2].mean == pytest.approx((5 / 6 + 1 / 2 + 0 + 1) / 4)
    # pass@4 only where four samples could be graded.
    assert (found.pass_at[4].mean, found.pass_at[4].n) == (pytest.approx(2 / 3), 3)
    # maj@4: a tie; one right against two wrong (no answer does not vote); wrong.
    assert (found.maj_at[4].mean, found.maj_at[4].n) == (pytest.approx(0.5 / 3), 3)
    assert found.pass_at[1].mean == found.avg.mean


def test_a_reward_between_right_and_wrong_counts_in_the_mean_alone() -> None:
    half = [Sample("x", 1, False, Verdict(WRONG, 0.5))] * 2
    found = scores([Problem(0, {}, half)])
    assert (found.avg.mean, found.pass_at[2].mean) == (0.5, 0.0)


def test_without_answers_there_is_no_vote() -> None:
    silent = [Sample("x", 1, False, Verdict(CORRECT))] * 2
    assert scores([Problem(0, {}, silent)]).maj_at == {}


def test_nothing_could_be_graded() -> None:
    found = scores(problems("??", "??"))
    assert (found.total, found.problems, found.avg, found.pass_at) == (2, 0, None, {})
    assert (found.ungraded, found.tokens) == (4, 4.0)
    assert difference(problems("??", "?+"), problems("+-", "??")) is None


def test_powers() -> None:
    assert powers(1) == [1]
    assert powers(8) == [1, 2, 4, 8]
    assert powers(12) == [1, 2, 4, 8, 12]


def test_lines_come_back() -> None:
    [one] = problems("+-0?~", level=["easy"])
    assert Problem.from_json(json.loads(json.dumps(one.to_json()))) == Problem(
        0, {"level": "easy"}, one.samples
    )
    with pytest.raises(KeyError):
        Problem.from_json({"problem": 1})


# ---- parts of the problems ----------------------------------------------------------------------


def numbers(groups: dict[str, list[Problem]]) -> list[tuple[str, list[int]]]:
    return [(label, [p.number for p in part]) for label, part in groups.items()]


def test_few_values_are_parts_in_their_order() -> None:
    rows = problems("+", "+", "+", "+", level=[10, 2, 10, None])
    assert numbers(split_by(rows, "level")) == [("2", [1]), ("10", [0, 2]), ("none", [3])]
    rows = problems("+", "+", "+", level=["b", "a", "b"])
    assert numbers(split_by(rows, "level")) == [("a", [1]), ("b", [0, 2])]


def test_many_numbers_are_quarters() -> None:
    values = [11, 3, 7, 1, 5, 9, 12, 2, 8, 4, 10, 6]
    rows = problems(*["+"] * 12, d=values)
    found = [(k, sorted(values[i] for i in v)) for k, v in numbers(split_by(rows, "d"))]
    assert found == [
        ("1 to 3", [1, 2, 3]),
        ("4 to 6", [4, 5, 6]),
        ("7 to 9", [7, 8, 9]),
        ("10 to 12", [10, 11, 12]),
    ]


def test_equal_numbers_stay_together() -> None:
    values = [0] * 20 + list(range(1, 11))
    found = numbers(split_by(problems(*["+"] * 30, d=values), "d"))
    assert sorted(i for _, part in found for i in part) == list(range(30))
    assert set(range(20)) <= set(found[0][1])


def test_no_such_column() -> None:
    with pytest.raises(UserError, match=r"no column 'lvel' to split by.*level"):
        split_by(problems("+", level=["a"]), "lvel")


# ---- differences --------------------------------------------------------------------------------


def test_difference_is_paired() -> None:
    after = problems("++", "+-", "?+", "??")
    before = problems("+-", "--", "--", "++")
    found = difference(after, before)
    assert (found.mean, found.n) == (pytest.approx((0.5 + 0.5 + 1) / 3), 3)
    with pytest.raises(UserError, match="different problems"):
        difference(after[:2], before)

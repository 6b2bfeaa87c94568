"""Rows that wait for others of their group: who gets how much of a demonstration, by hand."""

import random
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from prefix_rft.core.micro_groups import MicroGroup, MicroGroups
from prefix_rft.core.planner import Group, Lengthening, OnPolicy, Start
from prefix_rft.engines.options import check_rows
from prefix_rft.engines.plan import ends
from prefix_rft.methods import load

NAN = float("nan")
ROWS = load("trapo").planner
WAIT = (None,) * 8


def group(*rewards: float, rows: int = 8, lengths: tuple[int, ...] = (100,), **how: Any) -> Group:
    """Whose first rows have these rewards."""
    given = (*rewards, *(None,) * (rows - len(rewards))) if rewards else ()
    return Group(3, rows, lengths, **{"seed": 1, "total_steps": 100, "rewards": given, **how})


def lengths_of(*rewards: float, **how: Any) -> list[int]:
    return [s.length if s else 0 for s in ROWS.starts(group(*rewards, **how))]


def test_who_waits_for_whom() -> None:
    assert ROWS.turns(8) == (0, 0, 0, 0, 1, 1, 2, 3)
    assert ROWS.waits
    assert not OnPolicy().waits
    assert OnPolicy().turns(3) == (0, 0, 0)


def test_a_group_that_fails_gets_more_and_more() -> None:
    """Sums of 1 < 2, then 3 < 4, then 4 < 7."""
    assert lengths_of() == [0] * 8
    assert lengths_of(0, 0, 1, 0)[:6] == [0, 0, 0, 0, 25, 25]
    assert lengths_of(0, 0, 1, 0, 1, 1)[:7] == [0, 0, 0, 0, 25, 25, 50]
    assert lengths_of(0, 0, 1, 0, 1, 1, 1) == [0, 0, 0, 0, 25, 25, 50, 100]


def test_a_bound_is_not_below_itself() -> None:
    """2, 4 and 7 are enough; a little less is not."""
    assert lengths_of(1, 1, 0, 0)[4:6] == [0, 0]
    assert lengths_of(1, 0.99, 0, 0)[4:6] == [25, 25]
    assert lengths_of(1, 1, 0, 0, 1, 1)[6] == 0
    assert lengths_of(1, 1, 0, 0, 1, 0)[6] == 50
    assert lengths_of(1, 1, 1, 1, 1, 1, 1) == [0] * 8
    assert lengths_of(1, 1, 1, 1, 1, 1, 0)[7] == 100


def test_all_outcomes_of_a_group() -> None:
    """Against the three comparisons, written out."""
    for r in product((0.0, 1.0), repeat=7):
        helped = [0] * 4 + [25 * (sum(r[:4]) < 2)] * 2 + [50 * (sum(r[:6]) < 4)]
        assert lengths_of(*r) == [*helped, 100 * (sum(r) < 7)]


def test_a_row_without_a_reward_counts_as_0() -> None:
    assert lengths_of(NAN, 1, 1, NAN)[4:6] == [0, 0]
    assert lengths_of(NAN, 1, 0, NAN)[4:6] == [25, 25]
    assert lengths_of(NAN, NAN, NAN, NAN, NAN, NAN, NAN)[4:] == [25, 25, 50, 100]
    assert lengths_of(NAN, 1, 1, 1, 1, 1, 1)[7] == 100


def test_what_a_row_starts_from_stays() -> None:
    """Once a turn is over, what follows changes nothing about it; before it nothing is known."""
    r = (0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0)
    last = ROWS.starts(group(*r))
    for done, over in ((4, 6), (6, 7), (7, 8)):
        found = ROWS.starts(group(*r[:done]))
        assert found[:over] == last[:over]
        assert found[over:] == (None,) * (8 - over)
    # A row whose neighbour in the turn is missing is no reason to go on.
    assert ROWS.starts(group(0, 0, 0, 0, 1, rows=8))[6:] == (None, None)


def test_of_two_prefixes_that_are_alike_one_is_trained() -> None:
    starts = ROWS.starts(group(0, 0, 0, 0, 0, 0, 0))
    assert [s.trained for s in starts if s] == [False, True, True, True]
    three = MicroGroups((MicroGroup(2), MicroGroup(3, 0.25, 1.0), MicroGroup(2, 1.0, 9.0)))
    starts = three.starts(group(0, 0, 0, 0, 0, rows=7))
    # A whole demonstration is a row of its own each time.
    assert [s.trained for s in starts if s] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("boundaries", "quarter", "half"),
    [
        ((), 25, 50),
        ((10, 24, 25), 25, 50),
        ((26,), 25, 50),  # its token is the 26th, whose place is 25, not beyond 25
        ((27,), 27, 50),
        ((27, 40), 27, 50),
        ((55,), 55, 55),  # place 54 < 55
        ((56,), 25, 56),
        ((80,), 25, 80),
        ((81,), 25, 50),
        ((100,), 25, 50),
    ],
)
def test_a_prefix_ends_at_the_next_blank_line(
    boundaries: tuple[int, ...], quarter: int, half: int
) -> None:
    """Within 30 of 100 tokens; the first one decides."""
    found = lengths_of(0, 0, 0, 0, 0, 0, 0, boundaries=(boundaries,))
    assert found == [0, 0, 0, 0, quarter, quarter, half, 100]


def test_a_blank_line_too_far_leaves_one_that_is_nearer_alone() -> None:
    assert lengths_of(0, 0, 0, 0, boundaries=((26, 60),))[4] == 25


def test_a_token_is_left_to_sample() -> None:
    """Within the budget and the limit that a group has; whole demonstrations stay whole."""
    near = {"lengths": (10,), "boundaries": ((5, 10),)}
    zeros = (0,) * 7
    assert lengths_of(*zeros, **near)[4:] == [5, 5, 5, 10]
    assert lengths_of(*zeros, **near, max_length=5)[4:] == [2, 2, 4, 10]
    assert lengths_of(*zeros, **near, limits=(4,))[4:] == [2, 2, 4, 10]
    assert lengths_of(*zeros, lengths=(3,))[4:] == [0, 0, 1, 3]


def test_a_limited_prefix_is_no_more_trained_than_another() -> None:
    asked = group(*(0,) * 7, limits=(10,))
    starts = ROWS.starts(asked)
    assert [(s.length, s.guarded, s.trained) for s in starts if s] == [
        (10, True, False), (10, True, True), (10, True, True), (100, False, True)
    ]  # fmt: skip


def test_starts_depend_on_seed_step_and_example_alone() -> None:
    asked = group(*(0,) * 7, lengths=(100, 90, 80), step=20)
    first = ROWS.starts(asked)
    # One demonstration for the whole group.
    assert len({s.index for s in first if s}) == 1
    random.seed(0)
    assert ROWS.starts(asked) == first == load("trapo").planner.starts(replace(asked))
    for field in ("seed", "step", "example"):
        assert len({ROWS.starts(replace(asked, **{field: n})) for n in range(15)}) > 1, field


def test_without_a_demonstration_all_rows_are_plain() -> None:
    assert ROWS.starts(group(*(0,) * 7, lengths=())) == WAIT


def test_groups_of_other_sizes() -> None:
    smaller = load("trapo", sizes=[2, 1, 1], shares=[0, 0.5, 1], below=[0, 1, 3]).planner
    assert smaller.turns(4) == (0, 0, 1, 2)
    assert [s and s.length for s in smaller.starts(group(0, 0, 1, rows=4))] == [None, None, 50, 100]
    # Help may begin with the first row, whatever comes of it.
    early = MicroGroups((MicroGroup(1, 0.5, 1.0), MicroGroup(1)))
    assert early.starts(group(rows=2)) == (Start(0, 50, 0.5), None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sizes": [4, 2, 2]}, "a number for each micro-group"),
        ({"sizes": []}, "a number for each micro-group"),
        ({"below": 3}, "a number for each micro-group"),
        ({"sizes": [4, 2, 1.5, 1]}, "whole numbers"),
        ({"shares": [0, 0.25, "x", 1]}, "whole numbers"),
        ({"sizes": [4, 2, 0, 1]}, "at least 1"),
        ({"shares": [0, 0.25, 0.5, 1.5]}, "share of a micro-group"),
        ({"forward": -0.1}, "forward"),
        ({"at": 0.0}, "must be positive"),
        ({"all_wrong": "resample"}, "wait for one another"),
        ({"all_wrong": "lengthen"}, "wait for one another"),
        ({"all_right": "resample"}, "wait for one another"),
        ({"attempts": 2}, "has no effect"),
    ],
    ids=str,
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load("trapo", **options)


def test_a_group_that_they_do_not_fill() -> None:
    for call in (lambda: ROWS.turns(6), lambda: ROWS.starts(group(rows=6))):
        with pytest.raises(ValueError, match=r"4 \+ 2 \+ 1 \+ 1 = 8 rows do not fill a group of 6"):
            call()
    with pytest.raises(ValueError, match="cannot be lengthened"):
        Lengthening(ROWS)


@pytest.mark.parametrize("turns", [(0, 1, 2), (0, 0, 2, 2), (1, 1, 1, 1), (0, 0, 0, -1)])
def test_a_strangers_turns_are_looked_at(turns: tuple[int, ...]) -> None:
    class Own(OnPolicy):
        def turns(self, rows: int) -> tuple[int, ...]:
            return turns

    method = replace(load("grpo"), rows=Own())
    with pytest.raises(ValueError, match="each row needs one, and they count from 0"):
        check_rows(method, "own", 4)


def test_where_lines_and_blank_lines_end() -> None:
    """However a blank line is spread over tokens."""
    texts = {1: "\n", 2: "\n\n", 3: ".\n", 4: "\n ", 5: "\nx", 6: ")\n\n"}
    assert ends([9, 1, 9, 3, 2, 9], texts, "line") == (2, 4, 5)
    assert ends([9, 1, 9, 3, 2, 9], texts, "blank_line") == (5,)
    assert ends([9, 1, 1, 9, 3, 1, 6], texts, "blank_line") == (3, 6, 7)
    assert ends([4, 1, 5, 1, 9, 1], texts, "blank_line") == (3,)
    assert ends([3, 3, 1], texts, "blank_line") == (3,)

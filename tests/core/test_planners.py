"""Where rows start, by hand: planners are pure, leave a token to sample, and learn as they say."""

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_rft.core.planner import Group, Start
from prefix_rft.methods import BUILT_IN, load

NAN = float("nan")
CONTROLLED = ("control", "adaprefix", "prefixrl")

PLANNED = ("bread", "adaback", "pope", "r3", "questa", "uft", *CONTROLLED)
LEARN = ("adaback", "pope", "control", "adaprefix")
EVERY = (*PLANNED, "prefix_rft", "luffy", "sft")


def group(example: int = 3, rows: int = 4, lengths: tuple[int, ...] = (100,), **how: Any) -> Group:
    return Group(example, rows, lengths, **{"seed": 1, "total_steps": 100, **how})


def lengths_of(name: str, asked: Group, **options: Any) -> list[int | None]:
    return [s.length if s else None for s in load(name, **options).planner.starts(asked)]


# ---- what all have in common ---------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_starts_depend_on_seed_step_and_example_alone(name: str) -> None:
    law = load(name).planner
    asked = group(lengths=(100, 90, 80), attempt=1, attempts=3, step=20)
    first = law.starts(asked)
    assert len(first) == 4
    random.seed(0)
    assert law.starts(asked) == first
    assert load(name).planner.starts(replace(asked)) == first
    for field in ("seed", "step", "example"):
        others = {law.starts(replace(asked, **{field: n})) for n in range(15)}
        assert len(others) > 1, field


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=3),
    st.integers(0, 99),
    st.integers(0, 3),
    st.sampled_from([None, 2, 9, 30]),
    st.floats(0.0, 1.0),
)
def test_a_token_is_left_to_sample(
    name: str, lengths: list[int], step: int, attempt: int, budget: int | None, ratio: float
) -> None:
    method = load(name)
    asked = group(
        lengths=tuple(lengths),
        step=step,
        attempt=attempt,
        attempts=3,
        max_length=budget,
        own={"ratio": ratio, "low": ratio, "high": 1.0},
        boundaries=tuple(tuple(range(1, n + 1, 2)) for n in lengths),
    )
    whole = range(method.rows.num_hybrid, method.rows.num_hybrid + method.rows.num_demonstrations)
    for row, start in enumerate(method.planner.starts(asked)):
        if start is None:
            continue
        length = lengths[start.index]
        if row in whole:
            assert start.length == length
        else:
            assert 0 <= start.length <= min(length, budget or length) - 1
            assert start.ratio is not None
            assert 0 <= start.ratio <= 1


@pytest.mark.parametrize("name", ["bread", "adaback", "r3", "questa", "uft"])
def test_a_group_shares_its_start(name: str) -> None:
    for example in range(20):
        starts = load(name).planner.starts(group(example, attempt=1, attempts=2, lengths=(50, 60)))
        assert len(set(starts)) == 1


@pytest.mark.parametrize("name", EVERY)
def test_every_demonstration_is_used(name: str) -> None:
    asked = [group(e, lengths=(30, 30, 30), attempt=1, attempts=1) for e in range(60)]
    starts = [load(name).planner.starts(a)[0] for a in asked]
    assert {s.index for s in starts if s} == {0, 1, 2}


def test_who_needs_boundaries() -> None:
    kinds = {n: load(n).planner.needs_boundaries for n in BUILT_IN}
    assert {n: k for n, k in kinds.items() if k} == {"r3": "line", "trapo": "blank_line"}


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in LEARN])
def test_the_others_remember_nothing(name: str) -> None:
    law = load(name).planner
    asked = group(own={"a": 1.0}, shared={"b": 2.0})
    assert law.learn(asked, (None,) * 4, [0.0] * 4) == ({"a": 1.0}, {"b": 2.0})


# ---- BREAD ---------------------------------------------------------------------------------------


def test_bread_branches_from_longer_and_longer_prefixes() -> None:
    """Of 3 attempts: the prompt, then 1/4, 2/4 and 3/4 of one demonstration."""
    asked = [group(attempt=k, attempts=3) for k in range(4)]
    assert [lengths_of("bread", a)[0] for a in asked] == [None, 25, 50, 75]
    several = [group(attempt=k, attempts=3, lengths=(100,) * 9) for k in range(1, 4)]
    starts = [load("bread").planner.starts(a)[0] for a in several]
    assert len({s.index for s in starts if s}) == 1
    assert load("bread").groups.all_wrong == "lengthen"


# ---- AdaBack -------------------------------------------------------------------------------------


def test_adaback_draws_uniformly_from_the_examples_interval() -> None:
    law = load("adaback", plain=0.0).planner
    own = {"low": 0.4, "high": 0.8}
    starts = [law.starts(group(e, lengths=(1000,), own=own))[0] for e in range(400)]
    ratios = [s.ratio for s in starts if s and s.ratio is not None]
    assert len(ratios) == 400
    assert 0.4 <= min(ratios) < 0.42
    assert 0.78 < max(ratios) <= 0.8
    assert statistics.mean(ratios) == pytest.approx(0.6, abs=0.02)
    assert statistics.pstdev(ratios) == pytest.approx(0.4 / math.sqrt(12), abs=0.01)


def test_adaback_leaves_some_groups_plain() -> None:
    for share in (0.1, 0.5):
        law = load("adaback", plain=share).planner
        own = {"low": 0.5, "high": 1.0}
        plain = [law.starts(group(e, own=own))[0] is None for e in range(600)]
        assert statistics.mean(plain) == pytest.approx(share, abs=0.06)
    assert load("adaback", plain=1.0).planner.starts(group()) == (None,) * 4


def test_adaback_moves_its_interval() -> None:
    """Failure: low <- ratio. Success: high <- ratio, low <- 0. The average moves by a hundredth."""
    law = load("adaback").planner
    at = Start(0, 30, 0.3)
    own, shared = law.learn(group(own={"low": 0.1, "high": 0.9}), (at,) * 4, [0.0, 1.0, 0.0, 0.0])
    assert own == {"low": 0.3, "high": 0.9}
    assert shared == pytest.approx({"low": 0.01 * 0.3, "high": 0.99 + 0.01 * 0.9})
    own, shared = law.learn(group(own=own, shared=shared), (at,) * 4, [1.0, 1.0, 0.0, 0.0])
    assert own == {"low": 0.0, "high": 0.3}
    assert shared == pytest.approx({"low": 0.99 * 0.003, "high": 0.99 * 0.999 + 0.003})


def test_adaback_counts_rewards_that_are_known() -> None:
    law = load("adaback").planner
    at = Start(0, 30, 0.3)
    known = group(own={"low": 0.1, "high": 0.9}, shared={"low": 0.2, "high": 0.7})
    assert law.learn(known, (at,) * 4, [NAN] * 4) == (known.own, known.shared)
    own, _ = law.learn(known, (at,) * 4, [NAN, 1.0, 0.0, NAN])  # 1/2 is not below 1/2
    assert own == {"low": 0.0, "high": 0.3}
    own, _ = law.learn(known, (at,) * 4, [NAN, 1.0, 0.0, 0.0])
    assert own == {"low": 0.3, "high": 0.9}


def test_a_new_example_starts_from_the_average_interval() -> None:
    law = load("adaback", plain=0.0).planner
    shared = {"low": 0.6, "high": 0.7}
    starts = [law.starts(group(e, lengths=(1000,), shared=shared))[0] for e in range(50)]
    assert all(s and s.ratio is not None and 0.6 <= s.ratio <= 0.7 for s in starts)
    own, _ = law.learn(group(shared=shared), (Start(0, 650, 0.65),) * 4, [0.0] * 4)
    assert own == {"low": 0.65, "high": 0.7}


def test_adaback_closes_in_on_what_an_example_needs() -> None:
    """An example that succeeds from 0.6 on: the upper end comes down to there."""
    law, own, shared = load("adaback", plain=0.0).planner, {}, {}
    ratios, needed = [], 0.6
    for step in range(120):
        asked = group(step=step, lengths=(1000,), own=own, shared=shared)
        starts = law.starts(asked)
        ratio = starts[0].ratio if starts[0] else 0.0
        assert ratio is not None
        ratios.append(ratio)
        own, shared = law.learn(asked, starts, [float(ratio >= needed)] * 4)
        assert 0 <= own.get("low", 0.0) <= own.get("high", 1.0) <= 1
    assert 0.6 <= own["high"] < 0.7
    assert max(ratios[60:]) < 0.7


def test_an_interval_that_has_closed_opens_again() -> None:
    """A policy that has got worse: the one ratio that is left fails."""
    law = load("adaback").planner
    own, _ = law.learn(group(own={"low": 0.3, "high": 0.3}), (Start(0, 30, 0.3),) * 4, [0.0] * 4)
    assert own == {"low": 0.3, "high": 1.0}


@pytest.mark.parametrize("high", [0.0, 0.005])
def test_an_interval_too_short_for_a_token_opens_again(high: float) -> None:
    """Once solved without help, an example that fails from then on must get help again."""
    law, own = load("adaback").planner, {"low": 0.0, "high": high}
    asked = group(own=own)
    assert law.starts(asked) == (None,) * 4
    own, _ = law.learn(asked, law.starts(asked), [0.0] * 4)
    assert own == {"low": 0.0, "high": 1.0}


def test_what_a_plain_group_teaches() -> None:
    """Success needs nothing revealed; failure says nothing new, at whatever step."""
    law = load("adaback").planner
    known = {"low": 0.6, "high": 0.9}
    for step in (0, 5):
        asked = group(step=step, own=known, shared={"low": 0.1, "high": 0.8})
        assert law.learn(asked, (None,) * 4, [0.0] * 4) == (asked.own, asked.shared)
        assert law.learn(asked, (None,) * 4, [1.0] * 4)[0] == {"low": 0.0, "high": 0.0}
        new = group(step=step)
        assert law.learn(new, (None,) * 4, [0.0] * 4) == ({}, {})
        assert law.learn(new, (None,) * 4, [1.0] * 4)[0] == {"low": 0.0, "high": 0.0}


# ---- POPE ----------------------------------------------------------------------------------------


def test_pope_guides_half_of_the_rows() -> None:
    assert lengths_of("pope", group()) == [10, 10, None, None]
    assert lengths_of("pope", group(rows=8, own={"ratio": 0.7})) == [70] * 4 + [None] * 4
    assert lengths_of("pope", group(), guided_share=0.25) == [10, None, None, None]
    assert lengths_of("pope", group(), first_ratio=0.4) == [40, 40, None, None]
    starts = load("pope").planner.starts(group(example=5, lengths=(100,) * 9))
    assert starts[0] == starts[1]  # guided by one and the same prefix


def test_pope_lengthens_a_guide_that_helps_no_one() -> None:
    law = load("pope").planner
    starts = law.starts(group())
    own, shared = law.learn(group(), starts, [0.0, 0.0, 1.0, 1.0])  # plain rows do not count
    assert own == {"ratio": pytest.approx(0.2)}
    assert shared == {}
    own, _ = law.learn(group(own=own), starts, [0.0, 1.0, 0.0, 0.0])
    assert own == {"ratio": pytest.approx(0.2)}
    own, _ = law.learn(group(own=own), starts, [NAN, NAN, 0.0, 0.0])
    assert own == {"ratio": pytest.approx(0.2)}
    own, _ = law.learn(group(own=own), starts, [NAN, 0.0, 0.0, 0.0])
    assert own == {"ratio": pytest.approx(0.3)}
    own, _ = law.learn(group(own={"ratio": 0.95}), starts, [0.0] * 4)
    assert own == {"ratio": 1.0}
    assert lengths_of("pope", group(own=own)) == [99, 99, None, None]


def test_pope_calls_a_row_solved_where_the_method_does() -> None:
    """A guided row at 0.3 is not solved above 0.5, but above 0."""
    law = load("pope").planner
    for threshold, ratio in ((0.5, 0.2), (0.0, 0.1), (0.3, 0.2)):
        asked = group(solved_above=threshold)
        own, _ = law.learn(asked, law.starts(asked), [0.3, 0.0, 1.0, 1.0])
        assert own["ratio"] == pytest.approx(ratio)


def test_pope_lengthens_a_guide_that_is_no_token_long() -> None:
    """A tenth of three tokens: such rows are plain ones."""
    own, _ = load("pope").planner.learn(group(lengths=(3,)), (None,) * 4, [1.0] * 4)
    assert own["ratio"] == pytest.approx(0.2)


# ---- R3 ------------------------------------------------------------------------------------------


def test_r3_starts_at_every_boundary_equally_often() -> None:
    """The prompt and four boundaries; a boundary at the very end would leave nothing to sample."""
    ends = (10, 35, 60, 99, 100)
    asked = [group(e, boundaries=(ends,)) for e in range(1000)]
    got = [lengths_of("r3", a)[0] for a in asked]
    for length in (None, 10, 35, 60, 99):
        assert got.count(length) / 1000 == pytest.approx(0.2, abs=0.05)
    assert set(got) == {None, 10, 35, 60, 99}


def test_r3_without_boundaries_cuts_equal_parts() -> None:
    got = {lengths_of("r3", group(e))[0] for e in range(200)}
    assert got == {None, 20, 40, 60, 80}
    got = {lengths_of("r3", group(e, max_length=50), chunks=10)[0] for e in range(200)}
    assert got == {None, 10, 20, 30, 40, 49}
    two = [group(e, lengths=(100, 40), boundaries=((50,), (20,))) for e in range(100)]
    found = {(s.index, s.length) for a in two if (s := load("r3").planner.starts(a)[0])}
    assert found == {(0, 50), (1, 20)}


# ---- QuestA --------------------------------------------------------------------------------------


def test_questa_goes_from_half_to_a_quarter() -> None:
    at = [lengths_of("questa", group(step=s))[0] for s in (0, 49, 50, 99, 100, 500)]
    assert at == [50, 50, 25, 25, 25, 25]
    three = [
        lengths_of("questa", group(step=s, total_steps=9), ratios=[0.9, 0.3, 0.0])[0]
        for s in range(9)
    ]
    assert three == [90] * 3 + [30] * 3 + [None] * 3


# ---- UFT -----------------------------------------------------------------------------------------


def test_uft_hints_are_binomial_along_a_cosine() -> None:
    """Chunks of 5 at p(t) = 0.05 + 0.45 (1 + cos(pi t / 60)): shares, and their variance."""
    law = load("uft").planner
    for step in (0, 15, 30, 45, 59):
        p = 0.05 + 0.45 * (1 + math.cos(math.pi * step / 60))
        starts = [law.starts(group(e, step=step))[0] for e in range(800)]
        chunks = [0.0 if s is None or s.ratio is None else 5 * s.ratio for s in starts]
        assert all(c == pytest.approx(round(c)) for c in chunks)
        assert statistics.mean(chunks) == pytest.approx(5 * p, abs=0.16)
        assert statistics.pvariance(chunks) == pytest.approx(5 * p * (1 - p), abs=0.2)


def test_uft_hints_end() -> None:
    law = load("uft").planner
    ends = [any(law.starts(group(e, step=s))[0] for e in range(300)) for s in (59, 60, 61, 99)]
    assert ends == [True, False, False, False]
    until = load("uft", hint_until=1.0, hint_low=0.9).planner
    assert any(until.starts(group(e, step=99))[0] for e in range(20))
    assert load("uft", hint_until=0.0).planner.starts(group()) == (None,) * 4


def test_uft_hints_are_whole_chunks() -> None:
    found = {lengths_of("uft", group(e, step=25), chunks=4)[0] for e in range(200)}
    assert found == {None, 25, 50, 75, 99}
    assert lengths_of("uft", group(lengths=(3,)), chunks=2, hint_high=1.0) == [2] * 4

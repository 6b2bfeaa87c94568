"""Own rollouts that are kept, and the laws that start rows from them: by hand."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rft.core.control import Control
from prefix_rft.core.laws import Integral, Replay
from prefix_rft.core.planner import Group, Start
from prefix_rft.core.store import Seen, Store, Trace, bounded, chosen, merged
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError

RNG = random.Random(0)
A, B, C = (1, 2), (3, 4), (5, 6)


def picked(store: Store, *own: tuple[tuple[int, ...] | None, bool]) -> list[tuple[Any, bool]]:
    return [(t.ids, t.solved) for t in chosen(store, own, 7, RNG)]


def test_what_of_a_group_is_kept() -> None:
    both = Store(1, 1, success_below=0.3, failure_above=0.7)
    hard = [(A, True), *[(B, False)] * 7]  # one of eight
    easy = [(A, False), *[(B, True)] * 7]
    even = [(A, True), (B, False)]
    assert picked(both, *hard) == [(A, True)]
    assert picked(both, *easy) == [(A, False)]
    assert picked(both, *even) == []
    assert picked(Store(), *even) == [(A, True)]
    assert picked(Store(0, 1), *even) == [(B, False)]
    assert picked(Store(), *[(B, False)] * 8) == []
    assert picked(Store()) == []
    # What is not kept need not be known; it counts all the same.
    assert picked(Store(success_below=0.3), (A, True), *[(None, False)] * 3) == [(A, True)]
    assert picked(Store(success_below=0.2), (A, True), *[(None, False)] * 3) == []
    assert chosen(Store(), [(A, True)], 7, RNG) == (Trace(A, True, 7),)


def test_any_of_several_is_picked() -> None:
    own = [(A, True), (B, True), (C, True)]
    found = {chosen(Store(), own, 0, random.Random(seed))[0].ids for seed in range(30)}
    assert found == {A, B, C}


def test_the_newest_first_and_equal_ones_once() -> None:
    store = Store(2, 1)
    old = (Trace(A, True, 1), Trace(B, False, 1))
    assert merged(store, old, [Trace(C, True, 2)]) == (Trace(C, True, 2), *old)
    assert merged(store, old, [Trace(A, True, 2)]) == (Trace(A, True, 2), old[1])
    assert merged(store, old, [Trace(C, False, 2)]) == (Trace(C, False, 2), old[0])
    three = merged(store, merged(store, old, [Trace(C, True, 2)]), [Trace((9,), True, 3)])
    assert [t.ids for t in three] == [(9,), C, B]  # the oldest success is gone


def test_the_oldest_go_first() -> None:
    traces = {1: (Trace(A, True, 5), Trace(B, False, 1)), 2: (Trace(C, True, 3),)}
    assert bounded(Store(1, 1, tokens=6), traces) == traces
    assert bounded(Store(1, 1, tokens=5), traces) == {1: (Trace(A, True, 5),), 2: traces[2]}
    assert bounded(Store(1, 1, tokens=3), traces) == {1: (Trace(A, True, 5),)}
    assert bounded(Store(1, 1, tokens=1), traces) == {}


TRACES = st.builds(
    Trace,
    st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.integers(0, 9),
)


@given(
    st.lists(TRACES, max_size=12),
    st.lists(TRACES, max_size=4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 20),
)
def test_it_stays_within_bounds(
    old: list[Trace], new: list[Trace], successes: int, failures: int, tokens: int
) -> None:
    store = Store(successes, failures, tokens=tokens)
    kept = merged(store, old, new)
    assert sum(t.solved for t in kept) <= successes
    assert sum(not t.solved for t in kept) <= failures
    assert len({t.ids for t in kept}) == len(kept)
    left = bounded(store, {0: kept, 1: kept})
    assert sum(len(t.ids) for some in left.values() for t in some) <= tokens


# ---- laws ----------------------------------------------------------------------------------------

RIGHT, WRONG = Seen(20, True, 4), Seen(20, False, 4)


def group(*seen: Seen, lengths: tuple[int, ...] = (), **how: Any) -> Group:
    named: dict[str, Any] = {"own": {}, "shared": {}, **how}
    rows, step = named.pop("rows", 8), named.pop("step", 10)
    return Group(3, rows, lengths, step=step, total_steps=100, seen=seen, **named)


def replay(asked: Group, rewards: list[float] | None = None, **how: Any) -> Any:
    planner = Control(Replay(**how), store=Store())
    starts = planner.starts(asked)
    return starts[0] if rewards is None else planner.learn(asked, starts, rewards)


def test_a_rollout_is_replayed_once() -> None:
    assert replay(group(RIGHT)) == Start(0, 15, 0.75)  # a quarter of 20 is left to do
    assert replay(group(WRONG)) == Start(0, 5, 0.25)
    assert replay(group(RIGHT, lengths=(30, 40))) == Start(2, 15, 0.75)  # behind demonstrations
    own, shared = replay(group(RIGHT), [1.0] * 4 + [0.0] * 4)
    assert own == {"used": 4.0}
    assert shared == {"right/rate": 0.5}
    assert replay(group(RIGHT, own=own)) is None
    assert replay(group(RIGHT._replace(step=5), own=own)) == Start(0, 15, 0.75)
    assert replay(group(lengths=(30,))) is None  # a demonstration is not touched


def test_the_share_follows_a_moving_average() -> None:
    """As published: 0.50 and a rate of 0.9 make 0.52, where nothing moves; 0.531 does."""
    rewards = [1.0] * 9 + [0.0]
    _, shared = replay(group(RIGHT, rows=10), rewards)
    assert shared == {"right/rate": pytest.approx(0.52)}
    close = {"right/rate": 0.5116}  # x 0.95 + 0.05 x 0.9 = 0.531
    _, shared = replay(group(RIGHT, shared=close, rows=10), rewards)
    assert shared["right/rate"] == pytest.approx(0.531, abs=1e-4)
    assert shared["left"] == pytest.approx(0.30)
    assert shared["right/moved"] == 10.0
    # Five steps of rest, and then on; what is wrong has a share of its own.
    _, resting = replay(group(RIGHT, shared=shared, step=14, rows=10), rewards)
    assert resting["left"] == pytest.approx(0.30)
    _, moved = replay(group(RIGHT, shared=shared, step=15, rows=10), rewards)
    assert moved["left"] == pytest.approx(0.35)
    _, both = replay(group(WRONG, shared=moved), [0.0] * 8, average=0.0)
    assert both["given"] == pytest.approx(0.20)  # too hard: less of what is wrong
    assert both["left"] == pytest.approx(0.35)


def test_nothing_known_moves_nothing() -> None:
    own, shared = replay(group(RIGHT), [math.nan] * 8)
    assert (own, shared) == ({"used": 4.0}, {})


def visit(asked: Group, rewards: list[float], **how: Any) -> float:
    planner = Control(Integral(floor=-0.5), plain=0.0, top=0.97, **how)
    return planner.learn(asked, planner.starts(asked), rewards)[0]["u"]


def test_an_example_that_is_too_easy_is_handicapped() -> None:
    planner = Control(Integral(floor=-0.5), plain=0.0)
    all_right = [1.0] * 8
    assert visit(group(lengths=(1000,), own={"u": 0.05}), all_right) == pytest.approx(-0.05)
    # From a share below 0: in the newest wrong rollout, or at the prompt where there is none.
    easy = group(RIGHT, WRONG, lengths=(1000,), own={"u": -0.3})
    assert planner.starts(easy) == (Start(2, 6, 0.3),) * 8
    assert planner.starts(group(RIGHT, lengths=(1000,), own={"u": -0.3})) == (None,) * 8
    assert visit(easy, [1.0] * 4 + [0.0] * 4) == pytest.approx(-0.3)
    assert visit(easy, [0.0] * 8) == pytest.approx(-0.2)
    assert visit(group(WRONG, lengths=(9,), own={"u": -0.45}), all_right) == pytest.approx(-0.5)


def test_an_own_right_rollout_goes_before_demonstrations() -> None:
    planner = Control(Integral(), plain=0.0, own=True)
    asked = group(WRONG, RIGHT, lengths=(1000,), own={"u": 0.5})
    assert planner.starts(asked) == (Start(2, 10, 0.5),) * 8
    assert planner.starts(group(WRONG, lengths=(1000,), own={"u": 0.5}))[0] == Start(0, 500, 0.5)
    assert planner.starts(group(WRONG, own={"u": 0.5})) == (None,) * 8  # nothing that helps


def test_methods_with_a_store() -> None:
    assert load("control").planner.store is None
    assert load("control", own=True).planner.store == Store(1, 0)
    assert load("control", floor=-0.5).planner.store == Store(0, 1)
    assert load("control", own=True, all_wrong="lengthen").planner.store == Store(1, 0)
    method = load("pass_rate")
    assert method.planner.store == Store(1, 1, 0.3, 0.7)
    assert not method.needs_demonstrations
    assert method.branches
    assert load("control").needs_demonstrations
    with pytest.raises(UserError, match="gain, jump and floor have no effect"):
        load("control", law="ladder", floor=-0.5)
    with pytest.raises(UserError, match="floor"):
        load("control", floor=0.5)

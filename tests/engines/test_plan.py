"""Plans of rows: no row starts beyond its limit, whoever has planned it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_rft.core.method import Method
from prefix_rft.core.planner import Group, Planner, Start, Starts
from prefix_rft.core.store import Trace
from prefix_rft.data.demonstrations import EXAMPLE, IDS
from prefix_rft.engines.plan import RunPoint, plan_rows, replanned, starts_of
from prefix_rft.methods import load


@dataclass(frozen=True)
class Strangers(Planner):
    """Somebody's own: it knows of no limit, and says no ratio."""

    def starts(self, group: Group) -> Starts:
        last = group.sources[-1]
        return tuple(
            Start(len(group.sources) - 1, length) for length in (last, last - 1, last // 2, 0)
        )


METHODS: dict[str, Method] = {
    name: load(name)
    for name in ("prefix_rft", "r3", "bread", "adaback", "pope", "uft", "control", "prefixrl")
}
METHODS |= {
    "lengthened": load("prefix_rft", all_wrong="lengthen"),
    "controlled, lengthened": load("control", all_wrong="lengthen"),
    "a stranger's": replace(load("prefix_rft"), rows=Strangers()),
}


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_row_starts_beyond_its_limit(name: str, data: Any) -> None:
    method = METHODS[name]
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    limits = tuple(data.draw(st.integers(0, n - 1)) for n in lengths)
    ratio = data.draw(st.floats(0.0, 1.0))
    asked = Group(
        3, 4, tuple(lengths), seed=1, total_steps=100,
        step=data.draw(st.integers(0, 99)),
        attempt=data.draw(st.integers(0, 3)), attempts=3,
        max_length=data.draw(st.sampled_from([None, 9, 30])),
        own={"u": ratio, "ratio": ratio, "low": ratio, "high": 1.0},
        boundaries=tuple(tuple(range(1, n + 1, 2)) for n in lengths),
        limits=limits,
    )  # fmt: skip
    free = starts_of(method, replace(asked, limits=()))
    assert starts_of(method, replace(asked, limits=tuple(n - 1 for n in lengths))) == free
    for start, before in zip(starts_of(method, asked), free, strict=True):
        whole = start is not None and start.length == lengths[start.index]
        assert start is None or whole or start.length <= limits[start.index]
        # What was held is lengthened from there, or from another source; r3 draws from the rest.
        if asked.attempt or name == "r3":
            continue
        if start is None or before is None:
            assert (start is None) == (before is None)
        elif whole or before.length <= limits[before.index]:
            assert (start, start.guarded) == (before, False)
        else:
            share = limits[before.index] / lengths[before.index]
            assert start == Start(before.index, limits[before.index], share)
            assert start.guarded


def moment(**how: Any) -> RunPoint:
    return RunPoint(4, seed=3, step=5, total_steps=20, max_completion_length=64, **how)


def test_a_row_behind_its_limit_starts_there_or_at_the_prompt() -> None:
    """Of demonstrations of 20 tokens: the second example's first token is correct alone."""
    method = replace(load("prefix_rft"), rows=Strangers())
    inputs = [{EXAMPLE: e, IDS: [list(range(20))]} for e in (7, 8) for _ in range(4)]
    plans = plan_rows(method, inputs, moment(limits={7: (5,), 8: (0,)}))
    assert [(len(p.prefix), p.whole, p.guarded) for p in plans] == [
        (20, True, False), (5, False, True), (5, False, True), (0, False, False),
        (20, True, False), (0, False, True), (0, False, True), (0, False, False),
    ]  # fmt: skip
    assert [p.start for p in plans[5:]] == [None] * 3


def test_own_rollouts_have_limits_too() -> None:
    """They stand behind the demonstrations, in the order in which the store has them."""
    method = load("control", own=True, plain=0.0)
    example = {EXAMPLE: 7, IDS: [list(range(20))]}
    traces = {7: (Trace((5, 6, 7, 8, 9, 10, 11, 12, 13, 1), True, 4),)}
    point = moment(traces=traces, limits={7: (19, 6)}, examples={7: {"u": 0.9}})
    plans = plan_rows(method, [example] * 4, point)
    assert {p.prefix for p in plans} == {(5, 6, 7, 8, 9, 10)}
    assert point.group(method, example).limits == (19, 6)


def test_an_example_without_its_limits_is_a_fault() -> None:
    with pytest.raises(KeyError):
        moment(limits={1: (3,)}).group(load("prefix_rft"), {EXAMPLE: 7, IDS: [[1, 2]]})


def test_a_row_at_its_limit_is_not_sampled_again_to_be_lengthened() -> None:
    method = load("prefix_rft", all_wrong="lengthen", prefix_low=0.9, prefix_high=0.9)
    example, point = {EXAMPLE: 7, IDS: [list(range(20))]}, moment(limits={7: (5,)})
    plan = plan_rows(method, [example] * 4, point)[0]
    assert len(plan.prefix) == 5
    assert replanned(method, plan, example, point, 1, "lengthen") is None
    free = replanned(method, plan, example, moment(), 1, "lengthen")
    assert free is not None
    assert len(free.prefix) == 19

"""How far into a source a row may start, by hand: where a prefix would give the answer away."""

from typing import Any

import pytest

from prefix_rft.core.control import Control, Law
from prefix_rft.core.laws import Bisection, Integral
from prefix_rft.core.planner import Group, Lengthening, RandomPrefix, Start
from prefix_rft.core.prefix import PrefixSampler
from prefix_rft.core.schedules import constant


def group(limits: tuple[int, ...] = (11,), own: Any = None, **how: Any) -> Group:
    """A demonstration of 20 tokens, of which the first 12 are correct alone."""
    sizes: dict[str, Any] = {"rows": 4, "lengths": (20,), "seed": 1, "total_steps": 100, **how}
    return Group(example=3, own=own or {}, limits=limits, **sizes)


def test_a_start_is_held_to_its_limit_with_its_share() -> None:
    start = group().start(0, 0.97)
    assert start == Start(0, 11, 0.55)
    assert start.guarded
    assert group(limits=(19,)).start(0, 0.97) == group(limits=()).start(0, 0.97)
    short = group().start(0, 0.58)
    assert short == Start(0, 11, 0.58)  # 11.6 tokens
    assert not short.guarded
    assert group().within(start) is start


def test_a_whole_demonstration_stays_whole() -> None:
    for whole in (Start(0, 20, 1.0), Start(0, 20)):
        assert group().within(whole) is whole
    assert group().within(Start(0, 19)) == Start(0, 11, 0.55)


def test_each_source_has_its_own_limit() -> None:
    asked = group(limits=(11, 3, 0), lengths=(20, 10, 5))
    assert [asked.start(i, 0.9).length for i in range(3)] == [11, 3, 0]


@pytest.mark.parametrize(
    ("own", "solved", "after"),
    [
        ({"u": 0.97}, 1, 0.60),  # .55 + .2 (.5 - .25)
        ({"u": 0.97}, 0, 0.65),
        ({"u": 0.65}, 0, 0.65),  # asked again behind a failure: no further than a step
        ({"u": 0.97}, 4, 0.45),
        ({"u": 0.3}, 0, 0.4),  # below its limit nothing changes
    ],
)
def test_a_controller_goes_on_from_where_its_rows_began(
    own: dict[str, float], solved: int, after: float
) -> None:
    """The share that is learnt from is .55, whatever had been asked for."""
    planner, asked = Control(Integral(), plain=0.0, top=0.97), group(own=own)
    starts = planner.starts(asked)
    rewards = [1.0] * solved + [0.0] * (4 - solved)
    assert planner.learn(asked, starts, rewards)[0]["u"] == pytest.approx(after)


def test_without_any_room_a_controller_stays_at_the_prompt() -> None:
    planner, asked = Control(Integral(), plain=0.0, top=0.97), group(limits=(0,), own={"u": 0.97})
    starts = planner.starts(asked)
    assert {(s.length, s.guarded) for s in starts if s} == {(0, True)}
    for began in (starts, (None,) * 4):  # an engine has no prefix of no tokens
        assert planner.learn(asked, began, [0.0] * 4)[0]["u"] == pytest.approx(0.1)


def test_what_is_held_by_the_largest_share_is_not_held_by_the_limit() -> None:
    """At .5 of 20 tokens the law's .97 ends at the tenth, at .57 at the eleventh, at .6 beyond."""
    for top, length, guarded in ((0.5, 10, False), (0.57, 11, False), (0.6, 11, True)):
        start = Control(Integral(), plain=0.0, top=top).starts(group(own={"u": 0.97}))[0]
        assert start is not None
        assert (start.length, start.guarded) == (length, guarded)


def test_a_law_that_makes_its_starts_itself_is_held_too() -> None:
    class Late(Law):
        def start(self, group: Group, index: int, rng: Any) -> Start:
            return Start(index, 18, 0.9)

    assert Control(Late(), plain=0.0).starts(group())[0] == Start(0, 11, 0.55)


def test_an_interval_that_fails_at_its_limit_does_not_wind_up() -> None:
    planner, own = Control(Bisection(), plain=0.0), {"low": 0.8, "high": 0.9}
    for _ in range(3):
        asked = group(own=own)
        own, _ = planner.learn(asked, planner.starts(asked), [0.0] * 4)
        assert 0.55 <= own["low"] < 0.6  # up to the twelfth token
    asked = group(own={"low": 0.8, "high": 0.9})
    assert planner.learn(asked, planner.starts(asked), [1.0] * 4)[0] == {"low": 0.0, "high": 0.55}


def test_lengthened_prefixes_stop_at_the_limit() -> None:
    """Of 20 tokens .2, then .6, which is 12, then .8."""
    law = Lengthening(RandomPrefix(1, 1, PrefixSampler(constant(0.2), constant(0.2))))
    starts = [law.starts(group(attempt=k))[0] for k in (0, 1, 2)]
    assert starts == [Start(0, 4, 0.2), Start(0, 11, 0.55), Start(0, 11, 0.55)]
    assert law.starts(group(attempt=1))[1] == Start(0, 20, 1.0)
    # BREAD's branches, at 2/3 of the demonstration.
    branch = Lengthening().starts(group(attempt=2, attempts=2))[0]
    assert branch == Start(0, 11, 0.55)

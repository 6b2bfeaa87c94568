"""Laws of the success-rate controller: by hand, within their bounds, and on simulated students."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_rft.core.control import Control, Law
from prefix_rft.core.fixed import Cuts
from prefix_rft.core.laws import Bisection, Integral, Ladder, Logistic
from prefix_rft.core.planner import Group
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError

NAN = math.nan
PLAIN, GUIDED = 1.0, 0.0
"""Probabilities of a plain visit."""


def group(own: Any = None, **how: Any) -> Group:
    sizes: dict[str, Any] = {"rows": 8, "lengths": (1000,), "seed": 1, "total_steps": 100, **how}
    return Group(example=3, own=own or {}, **sizes)


def right(count: int, of: int = 8) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def visit(law: Law, asked: Group, rewards: list[float], **how: Any) -> Any:
    """What is remembered of the example behind one visit."""
    planner = Control(law, **{"plain": GUIDED, "top": 0.97, **how})
    return planner.learn(asked, planner.starts(asked), rewards)[0]


# ---- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "rewards", "after"),
    [
        (0.60, right(1), 0.675),  # .60 + .2 (.5 - .125)
        (0.60, right(4), 0.60),
        (0.05, right(8), 0.0),  # .05 - .1
        (0.95, right(0), 0.97),  # .95 + .1, the largest share
        (0.60, [1.0, 0.0, *[NAN] * 6], 0.60),  # a rate of a half
        (0.60, right(8), 0.50),
    ],
)
def test_the_integrator(before: float, rewards: list[float], after: float) -> None:
    assert visit(Integral(), group({"u": before}), rewards)["u"] == pytest.approx(after)


def test_nothing_is_learnt_where_nothing_is_known() -> None:
    for law in (Integral(), Bisection(), Logistic()):
        assert visit(law, group({"u": 0.6, "low": 0.1, "high": 0.4}), [NAN] * 8) == {
            "u": 0.6, "low": 0.1, "high": 0.4,
        }  # fmt: skip


def test_a_plain_visit_teaches_only_that_help_is_not_needed() -> None:
    asked = group({"u": 0.6})
    assert visit(Integral(), asked, right(6), plain=PLAIN)["u"] == 0.0
    assert visit(Integral(), asked, right(3), plain=PLAIN) == {"u": 0.6}


def test_what_is_withdrawn_does_not_wind_up() -> None:
    # From step 80 on the largest share falls from .6: at step 90 it is half of that.
    law, how = Integral(), {"top": 0.6, "withdraw": 0.8}
    asked = group({"u": 0.6}, step=90)
    planner = Control(law, plain=GUIDED, **how)
    start = planner.starts(asked)[0]
    assert start is not None
    assert start.ratio == pytest.approx(0.3)
    assert visit(law, asked, right(2), **how)["u"] == pytest.approx(0.3)  # .30 + .05, held
    assert visit(law, asked, right(6), **how)["u"] == pytest.approx(0.25)
    assert [planner.cap(t, 100) for t in (0, 80, 90, 100, 120)] == pytest.approx(
        [0.6, 0.6, 0.3, 0.0, 0.0]
    )
    assert planner.starts(replace(asked, step=100)) == (None,) * 8


def test_a_jump_halves_what_all_rows_solve() -> None:
    law = Integral(jump=True)
    assert visit(law, group({"u": 0.6}), right(8))["u"] == pytest.approx(0.3)
    assert visit(law, group({"u": 0.6}), right(7))["u"] == pytest.approx(0.525)


def test_a_moving_average_moves_now_and_then() -> None:
    law = Integral(average=0.8, every=10)
    own = visit(law, group({"u": 0.6, "rate": 0.5, "moved": 4.0}, step=10), right(8))
    assert own == pytest.approx({"u": 0.6, "rate": 0.6, "moved": 4.0})  # .8 x .5 + .2
    own = visit(law, group(own, step=14), right(8))
    assert own == pytest.approx({"u": 0.564, "rate": 0.68, "moved": 14.0})  # .6 + .2 (.5 - .68)


def test_new_examples_begin_at_the_average_share() -> None:
    planner = Control(Integral(), plain=GUIDED)
    asked = group(shared={"u": 0.4})
    own, shared = planner.learn(asked, planner.starts(asked), right(0))
    assert own["u"] == pytest.approx(0.5)
    assert shared == pytest.approx({"u": 0.9 * 0.4 + 0.1 * 0.5})
    first = planner.starts(group())[0]
    assert first is not None
    assert first.length == 900


def test_a_share_below_one_token_still_grows() -> None:
    asked = group({"u": 0.06}, lengths=(10,))
    assert Control(Integral(), plain=GUIDED).starts(asked) == (None,) * 8
    assert visit(Integral(), asked, right(0))["u"] == pytest.approx(0.16)


def test_lengths() -> None:
    for share, length in ((0.675, 13), (0.97, 19), (1.0, 19)):
        start = Control(Integral(), plain=GUIDED).starts(group({"u": share}, lengths=(20,)))[0]
        assert start is not None
        assert start.length == length


def test_bisection_draws_between_its_ends() -> None:
    asked = group({"low": 0.4, "high": 0.9})
    planner = Control(Bisection(), plain=GUIDED)
    start = planner.starts(asked)[0]
    assert start is not None
    assert start.ratio is not None
    assert 0.4 <= start.ratio <= 0.9
    assert visit(Bisection(), asked, right(2)) == {"low": start.ratio, "high": 0.9}
    assert visit(Bisection(), asked, right(6)) == {"low": 0.0, "high": start.ratio}


def test_a_ladder_only_climbs() -> None:
    assert visit(Ladder(0.3, 0.2), group(), right(0)) == {"ratio": 0.5}
    assert visit(Ladder(0.3, 0.2), group(), right(1)) == {"ratio": 0.3}


@pytest.mark.parametrize(
    ("steepness", "midpoint", "share"), [(20.0, 0.6, 0.6), (50.0, 0.35, 0.35), (6.0, 0.5, 0.5)]
)
def test_a_curve_is_found_again(steepness: float, midpoint: float, share: float) -> None:
    pairs = [(u / 8, 1 / (1 + math.exp(-steepness * (u / 8 - midpoint)))) for u in range(8)]
    assert Logistic.fit(pairs) == (steepness, midpoint)
    own = {f"{k}{i}": x for i, pair in enumerate(pairs) for k, x in zip("up", pair, strict=True)}
    rate = round(8 / (1 + math.exp(-steepness * (share - midpoint))))
    found = visit(Logistic(), group({**own, "u": share}), right(rate))
    assert found["u"] == pytest.approx(share, abs=0.051)


def test_another_target_is_another_place_on_the_curve() -> None:
    # At .9 of a curve of steepness 20 about .6: .6 + ln(9) / 20 = .71.
    pairs = [(u / 8, 1 / (1 + math.exp(-20 * (u / 8 - 0.6)))) for u in range(8)]
    own = {f"{k}{i}": x for i, pair in enumerate(pairs) for k, x in zip("up", pair, strict=True)}
    found = visit(Logistic(target=0.9), group({**own, "u": 0.6}), right(4))
    assert found["u"] == pytest.approx(0.6 + math.log(9) / 20)


def test_cuts_are_drawn_once() -> None:
    planner = Control(Cuts(), plain=0.25)
    found = [planner.starts(group(step=t))[0] for t in range(400)]
    shares = {s.ratio for s in found if s is not None}
    assert len(shares) == 3
    assert all(0.4 <= u <= 0.8 for u in shares if u is not None)
    assert sum(s is None for s in found) == pytest.approx(100, abs=35)
    assert shares != {
        s.ratio for s in (planner.starts(group(step=t, seed=2))[0] for t in range(9)) if s
    }


def test_one_start_for_each_baseline() -> None:
    """Rows that start elsewhere would share the group's mean."""
    for name in ("control", "adaprefix", "prefixrl"):
        method = load(name)
        assert {s.advantage for s in method.streams if s.surrogate == "clip"} == {"group"}
        for step in range(30):
            assert len(set(method.planner.starts(group(step=step)))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"law": "integrate"}, "unknown law 'integrate'"),
        ({"law": "ladder", "gain": 0.4}, "gain, jump and floor have no effect with law 'ladder'"),
        ({"law": "ladder", "target": 0.4}, "target has no effect with law 'ladder'"),
        ({"law": "fixed", "target": 0.4}, "target has no effect with law 'fixed'"),
        ({"law": "bisection", "first": 0.4}, "first has no effect with law 'bisection'"),
        ({"law": "logistic", "jump": True}, "gain, jump and floor have no effect"),
        ({"law": "logistic", "target": 1.0}, "target must be in"),
        ({"gain": -1.0}, "gain must be at least 0"),
        ({"plain": 1.5}, "plain must be in"),
        ({"withdraw": -0.1}, "withdraw must be in"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load("control", **options)


# ---- whatever happens ----------------------------------------------------------------------------

LAWS = (Integral(), Integral(0.8, jump=True, average=0.5), Bisection(), Ladder(), Logistic())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{type(law).__name__}")
@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, -2.0, 0.4, NAN, 9.0]), min_size=8, max_size=8),
        min_size=1,
        max_size=12,
    ),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
)
def test_shares_stay_in_their_bounds(
    law: Law, visits: list[list[float]], plain: float, top: float, withdraw: float
) -> None:
    planner = Control(law, plain=plain, top=top, withdraw=withdraw)
    own, shared = {}, {}
    for step, rewards in enumerate(visits):
        asked = group(own, shared=shared, step=step, total_steps=12)
        starts = planner.starts(asked)
        assert planner.starts(asked) == starts
        for start in starts:
            assert start is None or 0.0 <= (start.ratio or 0.0) <= planner.cap(step, 12) + 1e-12
        own, shared = planner.learn(asked, starts, rewards)
        assert all(math.isfinite(x) for x in (*own.values(), *shared.values()))
        # What a checkpoint keeps is the same state.
        assert json.loads(json.dumps(own)) == own
        for name in ("u", "low", "high", "ratio"):
            assert 0.0 <= own.get(name, 0.0) <= 1.0
            assert 0.0 <= shared.get(name, 0.0) <= 1.0


@pytest.mark.parametrize("steepness", [5.0, 8.0, 12.0, 20.0])
@pytest.mark.parametrize("law", [Integral(), Logistic()], ids=["integral", "logistic"])
def test_students_are_soon_held_near_a_half(law: Law, steepness: float) -> None:
    """Success 1 / (1 + exp(-k (u - m))): within 10 visits |p - 1/2| is below 0.2 on average."""
    rng, planner = random.Random(0), Control(law, plain=GUIDED)
    distances = []
    for student in range(60):
        midpoint, own = rng.uniform(0.3, 0.95), {}
        for step in range(10):
            asked = replace(group(own, step=step), example=student)
            start = planner.starts(asked)[0]
            share = 0.0 if start is None or start.ratio is None else start.ratio
            p = 1.0 / (1.0 + math.exp(-steepness * (share - midpoint)))
            rewards = [float(rng.random() < p) for _ in range(8)]
            own, _ = planner.learn(asked, planner.starts(asked), rewards)
        share = own["u"]
        distances.append(abs(1.0 / (1.0 + math.exp(-steepness * (share - midpoint))) - 0.5))
    assert sum(distances) / len(distances) < 0.2

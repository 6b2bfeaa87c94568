"""Prefix lengths by hand, and the law of the draw."""

import itertools
import math
import random
import statistics
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefix_rft.core import PrefixSampler, draw_prefix, prefix_length
from prefix_rft.core.prefix import is_hybrid
from prefix_rft.core.schedules import constant, cosine


@pytest.mark.parametrize(
    ("ratio", "length", "options", "expected"),
    [
        (0.5, 11, {}, 5),
        (0.7, 10, {}, 7),  # 0.7 * 10 is 7.000000000000001 or 6.999...: never 6
        (0.29, 100, {}, 29),  # 0.29 * 100 = 28.999999999999996
        (0.95, 20, {}, 19),
        (1.0, 20, {}, 19),  # one token is left to generate
        (0.0, 20, {}, 0),
        (0.0, 20, {"min_length": 4}, 4),
        (0.1, 3, {"min_length": 8}, 2),
        (0.9, 100, {"max_length": 50}, 49),
        (0.9, 1, {}, 0),  # a demonstration that is only EOS
    ],
)
def test_length(ratio: float, length: int, options: dict, expected: int) -> None:
    assert prefix_length(ratio, length, **options) == expected


def draw(**changes: int) -> tuple[int, int, float]:
    where = {"seed": 1, "step": 2, "total_steps": 10, "example": 3, "row": 0} | changes
    got = draw_prefix(PrefixSampler(low=constant(0.0)), [1000, 1000], **where)
    return got.index, got.length, got.ratio


def test_a_draw_depends_on_its_place_and_on_nothing_else() -> None:
    assert draw() == draw()
    assert len({draw(**c) for c in ({}, {"seed": 2}, {"step": 3}, {"example": 4}, {"row": 1})}) == 5
    assert draw() == draw(total_steps=99)  # the law here does not depend on the horizon


def many(sampler: PrefixSampler, step: int = 0, n: int = 4000) -> list[float]:
    return [
        draw_prefix(sampler, [10**6], seed=0, step=step, total_steps=500, example=i, row=0).ratio
        for i in range(n)
    ]


def test_the_papers_law() -> None:
    """Uniform on [low_t, 0.95]: at step 250 low is 0.5, mean 0.725, deviation 0.45 / sqrt(12)."""
    ratios = many(PrefixSampler(low=cosine(0.95, 0.05)), 250)
    assert 0.5 <= min(ratios) < 0.502
    assert 0.948 < max(ratios) <= 0.95
    assert statistics.mean(ratios) == pytest.approx(0.725, abs=4 * 0.13 / 4000**0.5)
    assert statistics.stdev(ratios) == pytest.approx(0.45 / 12**0.5, rel=0.03)
    assert many(PrefixSampler(), 0, 3) == [0.95] * 3


def test_beta() -> None:
    """Beta(2, 6) has mean 1/4, stretched on [0.2, 0.6]: 0.3."""
    ratios = many(PrefixSampler(constant(0.2), constant(0.6), alpha=2.0, beta=6.0))
    assert statistics.mean(ratios) == pytest.approx(0.3, abs=0.004)


def test_demonstrations_are_picked_uniformly() -> None:
    counts = [0, 0, 0]
    for i in range(3000):
        got = draw_prefix(
            PrefixSampler(low=constant(0.5)),
            [10, 20, 30],
            seed=0,
            step=0,
            total_steps=1,
            example=i,
            row=0,
        )
        counts[got.index] += 1
        assert 5 * (got.index + 1) <= got.length <= 9.5 * (got.index + 1)
    assert all(900 < c < 1100 for c in counts)


def test_crossing_bounds_hold_low_at_high() -> None:
    sampler = PrefixSampler(constant(0.5), cosine(0.9, 0.1))
    assert sampler.interval(500, 500) == pytest.approx((0.1, 0.1))


def test_no_demonstration_to_draw_from() -> None:
    with pytest.raises(ValueError, match="example 7 has no demonstration"):
        draw_prefix(PrefixSampler(), [], seed=0, step=0, total_steps=1, example=7, row=0)


def test_first_rows_are_hybrid() -> None:
    assert [is_hybrid(r, 2) for r in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"low": constant(1.2)}, "low must stay in"),
        ({"high": constant(-0.1)}, "high must stay in"),
        ({"low": constant(0.9), "high": constant(0.5)}, "above high"),
        ({"alpha": 0.0}, "must be positive"),
        ({"min_length": -1}, "at least 0"),
    ],
)
def test_refusals(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PrefixSampler(**settings)


def test_floor_means_the_decimal_that_was_written() -> None:
    """floor(ratio |y*|) for every hundredth, in whole numbers; at least one token is left."""
    for percent, n in itertools.product(range(101), range(1, 201)):
        assert prefix_length(percent / 100, n) == min(percent * n // 100, n - 1), (percent, n)


@given(
    st.fractions(0, 1, max_denominator=997),
    st.integers(1, 5000),
    st.integers(0, 60),
    st.none() | st.integers(1, 6000),
)
def test_clamps(ratio: Fraction, n: int, least: int, budget: int | None) -> None:
    got = prefix_length(float(ratio), n, least, budget)
    room = min(n, n if budget is None else budget) - 1
    assert got == min(max(math.floor(ratio * n), least), room)


def test_draws_do_not_collide() -> None:
    """Neighbouring and digit-sharing places, swapped places: all differ."""
    sampler = PrefixSampler(low=constant(0.0))

    def ratio(seed: int, step: int, example: int, row: int) -> float:
        place = {"seed": seed, "step": step, "example": example, "row": row}
        return draw_prefix(sampler, [100], total_steps=10**6, **place).ratio

    places = [*itertools.product((0, 1, 2, 11, 12), repeat=4), (1, 23, 0, 0), (123, 0, 0, 0)]
    assert len({ratio(*p) for p in places}) == len(places)


def test_draws_leave_and_heed_no_global_randomness() -> None:
    def draw() -> Any:
        place = {"seed": 3, "step": 1, "total_steps": 9, "example": 5, "row": 2}
        return draw_prefix(PrefixSampler(low=constant(0.1)), [50, 60, 70], **place)

    random.seed(1)
    torch.manual_seed(1)
    first, state = draw(), (random.getstate(), torch.get_rng_state())
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    random.seed(2)
    torch.manual_seed(2)
    assert draw() == first


@pytest.mark.parametrize(("step", "low"), [(0, 0.95), (100, 0.8640576), (250, 0.5), (500, 0.05)])
def test_ratio_lies_in_the_interval_of_its_step(step: int, low: float) -> None:
    """Uniform on [low_t, .95]: mean, variance and quartiles, from 1500 examples."""
    place = {"seed": 0, "step": step, "total_steps": 500, "row": 0}
    draws = [draw_prefix(PrefixSampler(), [4096], example=i, **place) for i in range(1500)]
    ratios = sorted(d.ratio for d in draws)
    width = 0.95 - low
    assert low - 1e-6 <= ratios[0]
    assert ratios[-1] <= 0.95 + 1e-12
    assert statistics.mean(ratios) == pytest.approx((low + 0.95) / 2, abs=0.04 * width + 1e-6)
    for q in (0.25, 0.5, 0.75):
        assert ratios[int(1500 * q)] == pytest.approx(low + q * width, abs=0.06 * width + 1e-6)
    assert all(d.length == math.floor(d.ratio * 4096) for d in draws)


def test_beta_law() -> None:
    """Beta(3, 2): mean 3/5, variance ab / ((a+b)^2 (a+b+1)) = 6 / 150, stretched by 0.5."""
    sampler = PrefixSampler(constant(0.25), constant(0.75), alpha=3.0, beta=2.0)
    place = {"seed": 0, "step": 0, "total_steps": 1, "row": 0}
    ratios = [draw_prefix(sampler, [9], example=i, **place).ratio for i in range(4000)]
    assert statistics.mean(ratios) == pytest.approx(0.25 + 0.5 * 0.6, abs=0.006)
    assert statistics.pvariance(ratios) == pytest.approx(0.25 * 6 / 150, rel=0.08)


def test_demonstration_and_ratio_are_independent() -> None:
    place = {"seed": 0, "step": 0, "total_steps": 1, "row": 1}
    sampler = PrefixSampler(low=constant(0.0), high=constant(1.0))
    draws = [draw_prefix(sampler, [10, 20, 40, 80], example=i, **place) for i in range(4000)]
    for index in range(4):
        ratios = [d.ratio for d in draws if d.index == index]
        assert 880 < len(ratios) < 1120
        assert statistics.mean(ratios) == pytest.approx(0.5, abs=0.045)
    limited = [
        draw_prefix(sampler, [100], example=i, max_length=30, **place).length for i in range(200)
    ]
    assert max(limited) == 29

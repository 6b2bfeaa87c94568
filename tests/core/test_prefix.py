"""Prefix lengths by hand, and the law of the draw."""

import statistics

import pytest

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

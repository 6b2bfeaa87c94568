"""Schedules by hand."""

import math

import pytest

from prefix_rft.core.schedules import Schedule, constant, cosine, linear, parse


@pytest.mark.parametrize(
    ("step", "value"),
    # 0.05 + 0.45 (1 + cos(pi t / 500)): cos(pi/5) = 0.809017, cos(3 pi/4) = -0.707107
    [(0, 0.95), (100, 0.8640576), (250, 0.5), (375, 0.1818019), (500, 0.05), (900, 0.05)],
)
def test_the_papers_cosine(step: int, value: float) -> None:
    assert cosine(0.95, 0.05).over(500)(step) == pytest.approx(value, abs=1e-6)


def test_linear_constant_and_delayed() -> None:
    assert linear(1.0, 0.0, 4)(1) == 0.75
    assert linear(1.0, 0.0, 4)(9) == 0.0
    assert constant(0.3)(10**6) == 0.3
    late = Schedule("linear", 1.0, 0.0, 4, delay=10)
    assert [late(s) for s in (0, 10, 11, 14, 99)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    # An open horizon ends with the run, the delay included.
    assert Schedule("linear", 1.0, 0.0, delay=10).over(14)(12) == 0.5


def test_an_open_horizon_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="no horizon"):
        cosine(1.0, 0.0)(3)


def test_from_plain_data() -> None:
    assert parse(0.5) == constant(0.5)
    assert parse({"kind": "cosine", "start": 0.9, "end": 0.1, "steps": 7}) == cosine(0.9, 0.1, 7)
    assert parse(cosine(1, 0)) == cosine(1, 0)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"kind": "cosin"}, "unknown schedule kind 'cosin': did you mean 'cosine'"),
        ({"kid": "cosine"}, "unknown schedule key 'kid': did you mean 'kind'"),
        ({"kind": "linear", "start": 1}, "needs an end value"),
        ({"start": 1, "steps": 0}, "at least 1"),
        ({"start": 1, "delay": -1}, "at least 0"),
        ("fast", "a number or a mapping"),
        (True, "a number or a mapping"),
    ],
)
def test_refusals(data: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(data)


def test_bounds() -> None:
    assert Schedule("linear", 0.2, 0.8).bounds() == (0.2, 0.8)
    assert cosine(0.95, 0.05).bounds() == (0.05, 0.95)


def test_cosine_is_the_papers_sum() -> None:
    """low_t = 0.05 + 0.90 (1 + cos(pi t / 500)) / 2, and 0.05 from the 500th step on."""
    low = cosine(0.95, 0.05, 500)
    for t in range(0, 501, 5):
        assert low(t) == pytest.approx(0.05 + 0.9 * (1 + math.cos(math.pi * t / 500)) / 2, abs=1e-9)
    assert low(501) == low(10**6) == pytest.approx(0.05, abs=1e-12)


def test_a_bound_horizon_stays_and_an_open_one_stretches() -> None:
    assert linear(0.0, 1.0, 10).over(1000)(5) == 0.5
    assert linear(0.0, 1.0).over(1000)(500) == 0.5
    late = Schedule("cosine", 0.95, 0.05, 500, delay=50)
    assert late(50) == 0.95
    assert late(300) == pytest.approx(0.5, abs=1e-12)
    assert constant(0.95).over(7)(3) == 0.95


def test_a_mapping_says_it_all() -> None:
    got = parse({"kind": "linear", "start": 1.0, "end": 0.0, "steps": 4, "delay": 2})
    assert [got(s) for s in (0, 2, 3, 6, 7)] == [1.0, 1.0, 0.75, 0.0, 0.0]
    assert parse(1)(0) == 1
    with pytest.raises(ValueError, match="step"):
        parse({"kind": "linear", "start": 1, "end": 0, "stepz": 4})


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "linear", "start": "a", "end": 1.0},
        {"kind": "linear", "start": 0.0, "end": 1.0, "steps": "ten"},
        {"kind": "constant", "start": 0.5, "end": 0.9},
    ],
    ids=str,
)
def test_schedule_values_are_understood_or_refused(data: dict) -> None:
    """parse: ValueError where a value is not understood (or, last, would be ignored)."""
    with pytest.raises(ValueError, match=r"start|steps|end"):
        parse(data)

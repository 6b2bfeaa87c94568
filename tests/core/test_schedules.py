"""Schedules by hand."""

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

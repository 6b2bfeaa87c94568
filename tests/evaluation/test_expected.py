"""Solved rows of a step and flat groups, from samples of a start model."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest
from scipy.stats import t as student

from prefix_rft.evaluation.expected import flat_groups, success
from prefix_rft.support.errors import UserError


def test_the_interval_by_hand() -> None:
    found = success([1, 0, 0, 0], [4, 4, 4, 4])
    # p = 1/16; residuals 3/4 and three of -1/4: variance 4/3 x 3/4 / 256 = 1/256, so 15 samples
    # as good as independent, less what their being estimated from 4 problems costs.
    effective = 15 * (student.ppf(0.975, 15) / student.ppf(0.975, 3)) ** 2
    assert effective == pytest.approx(6.73, abs=0.01)
    hits = effective / 16
    assert found.mean == 1 / 16
    assert found.low == pytest.approx(beta.ppf(0.025, hits, effective - hits + 1))
    assert found.high == pytest.approx(beta.ppf(0.975, hits + 1, effective - hits))
    assert found.n == 4


@pytest.mark.parametrize("correct", [0, 8])
def test_nothing_and_all(correct: int) -> None:
    found = success([correct] * 5, [8] * 5)
    exact = binomtest(5 * correct, 40).proportion_ci(method="exact")
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))


def test_problems_that_all_answer_alike_are_so_many_samples() -> None:
    alike, mixed = success([8, 0] * 10, [8] * 20), success([4, 4] * 10, [8] * 20)
    twenty = binomtest(10, 20).proportion_ci(method="exact")
    assert alike.high - alike.low == pytest.approx(twenty.high - twenty.low, rel=0.1)
    assert mixed.high - mixed.low < (alike.high - alike.low) / 2


def test_ungraded_problems_are_left_out() -> None:
    assert success([1, 0, 0], [2, 2, 0]) == success([1, 0], [2, 2])
    with pytest.raises(UserError, match="no sample could be graded"):
        success([0, 0], [0, 0])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_it_holds_what_was_seen(correct: list[int]) -> None:
    found = success(correct, [6] * len(correct))
    assert 0 <= found.low <= found.mean <= found.high <= 1


@pytest.mark.parametrize(("mean", "alike"), [(0.01, 0.02), (0.05, 0.2), (0.5, 0.5)])
def test_it_covers_the_truth(mean: float, alike: float) -> None:
    """Problems of different difficulty: success is Beta with intra-class correlation ``alike``."""
    rng = np.random.default_rng(0)
    size = (1 - alike) / alike
    inside = 0
    for _ in range(400):
        p = rng.beta(mean * size, (1 - mean) * size, 50)
        found = success(rng.binomial(16, p).tolist(), [16] * 50)
        inside += found.low <= mean <= found.high
    assert inside / 400 >= 0.93


def test_flat_groups_by_enumeration() -> None:
    """Every way to draw a group from the samples of each problem, counted one by one."""
    correct, samples, group = [1, 4, 0, 5], [5, 5, 5, 5], 3
    wrong = right = 0.0
    for c, n in zip(correct, samples, strict=True):
        ways = list(itertools.combinations([1] * c + [0] * (n - c), group))
        wrong += sum(sum(w) == 0 for w in ways) / len(ways) / 4
        right += sum(sum(w) == group for w in ways) / len(ways) / 4
    found = flat_groups(correct, samples, group)
    assert found is not None
    assert (found.wrong, found.right) == (pytest.approx(wrong), pytest.approx(right))


def test_flat_groups_are_unbiased_where_problems_are_alike() -> None:
    rng = np.random.default_rng(1)
    drawn = rng.binomial(16, 0.1, 20_000)
    found = flat_groups(drawn.tolist(), [16] * 20_000, 8)
    assert found is not None
    assert found.wrong == pytest.approx(0.9**8, abs=0.005)
    assert found.right == pytest.approx(0, abs=1e-4)


def test_too_few_samples_for_a_group() -> None:
    assert flat_groups([1, 2], [4, 4], 8) is None
    assert flat_groups([1, 8], [4, 8], 8) is not None
    assert not math.isnan(success([1], [4]).high)  # one problem: little is known
    assert success([1], [4]).high > 0.9

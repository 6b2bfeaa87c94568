"""pass@k, maj@k, means and intervals: against closed forms, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest

from prefix_rft.evaluation.estimates import (
    bootstrap,
    maj_at_k,
    majority,
    over_seeds,
    paired,
    pass_at_k,
    seed_spread,
)
from prefix_rft.support.errors import UserError

# ---- pass@k -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 3), (7, 6), (7, 7)])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int, c: int) -> None:
    hits = [i < c for i in range(n)]
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(hits, k))
        assert pass_at_k(c, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_by_hand() -> None:
    # 8 samples, 2 right, k = 4: 1 - C(6,4)/C(8,4) = 1 - 15/70.
    assert pass_at_k(2, 8, 4) == pytest.approx(55 / 70, abs=1e-15)
    assert pass_at_k(3, 8, 1) == pytest.approx(3 / 8, abs=1e-15)  # pass@1 is the mean
    assert pass_at_k(1, 100_000, 50_000) == pytest.approx(0.5)  # no overflow, no cancellation


@pytest.mark.parametrize(("n", "k", "p"), [(4, 2, 0.3), (16, 8, 0.05), (8, 8, 0.2)])
def test_pass_at_k_is_unbiased(n: int, k: int, p: float) -> None:
    """Its mean over Binomial(n, p) is exactly 1 - (1 - p)^k, and so it is in simulation."""
    exact = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(c, n, k) for c in range(n + 1)
    )
    assert exact == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    draws = np.random.RandomState(1).binomial(n, p, 20_000)
    values = np.array([pass_at_k(int(c), n, k) for c in draws])
    assert abs(values.mean() - (1 - (1 - p) ** k)) < 4 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(("c", "n", "k"), [(0, 4, 0), (0, 4, 5), (5, 4, 1), (-1, 4, 1), (0, 0, 1)])
def test_pass_at_k_without_meaning(c: int, n: int, k: int) -> None:
    with pytest.raises(ValueError, match="has no meaning"):
        pass_at_k(c, n, k)


# ---- maj@k --------------------------------------------------------------------------------------


def test_majority_by_hand() -> None:
    assert majority(["a", "a", "b"], [True, True, False]) == 1.0
    assert majority(["a", "b", "b"], [True, False, False]) == 0.0
    # No answer does not vote: one vote for a right answer outvotes two abstentions.
    assert majority(["a", None, None], [True, False, False]) == 1.0
    assert majority([None, None], [False, False]) == 0.0
    # Ties: a fair draw between a (right) and b (wrong); among three, a third.
    assert majority(["a", "b"], [True, False]) == 0.5
    assert majority(["b", "a", "c"], [False, True, False]) == pytest.approx(1 / 3)
    # One answer with two verdicts: as correct as its samples on average.
    assert majority(["a", "a", "b"], [True, False, False]) == 0.5


def test_maj_at_k_by_hand() -> None:
    answers = ["a", "a", "b", "b", "b", "a", "a"]
    correct = [x == "a" for x in answers]
    assert maj_at_k(answers, correct, 1) == pytest.approx(4 / 7)
    # runs of 3: (a a b) right, (b b a) wrong; the seventh is left over
    assert maj_at_k(answers, correct, 3) == 0.5
    with pytest.raises(ValueError, match="needs 8 samples"):
        maj_at_k(answers, correct, 8)


def test_maj_at_k_is_unbiased() -> None:
    """Three votes at accuracy p, one wrong answer: p^3 + 3 p^2 (1 - p)."""
    p = 0.6
    hits = np.random.RandomState(2).random_sample(30_000) < p
    found = maj_at_k(["r" if h else "w" for h in hits], list(map(bool, hits)), 3)
    want = p**3 + 3 * p**2 * (1 - p)
    assert abs(found - want) < 4 * math.sqrt(want * (1 - want) / 10_000)


# ---- intervals over problems ---------------------------------------------------------------------


def test_bootstrap_is_the_same_on_any_machine() -> None:
    found = bootstrap([0, 0.25, 0.5, 1, 1, 0, 0.75, 0.125])
    assert (found.mean, found.n) == (0.453125, 8)
    assert (found.low, found.high) == (0.171875, 0.734375)


def test_bootstrap_equals_the_closed_form() -> None:
    """Of many values the percentile interval is the normal one: mean -+ 1.96 sd / sqrt(n)."""
    x = np.random.RandomState(3).beta(2, 3, 2000)
    found = bootstrap(x, resamples=8000)
    half = 1.959964 * x.std() / math.sqrt(len(x))
    assert found.low == pytest.approx(x.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.05 * half)


def test_bootstrap_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap([0.0, 1.0, 0.5])
    monkeypatch.setattr("prefix_rft.evaluation.estimates.CHUNK", 7)
    assert bootstrap([0.0, 1.0, 0.5]) == whole


def test_nothing_to_take_a_mean_over() -> None:
    with pytest.raises(UserError, match="no graded problem"):
        bootstrap([])
    with pytest.raises(UserError, match="graded for every seed"):
        over_seeds([[math.nan, 1.0], [0.0, math.nan]])


# ---- intervals over seeds and problems -----------------------------------------------------------


def test_one_seed_is_students_interval() -> None:
    # mean 2, sample variance 1, n = 3: half = t(2, .975) / sqrt(3) = 4.302653 / 1.732051.
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302652730 / math.sqrt(3), abs=1e-8)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_three_seeds_by_hand() -> None:
    """Rows 0, 6 / 2, 4 / 4, 8 (S = 3, P = 2), whose mean is 4.

    Means of seeds 3, 3, 6, of problems 2, 6. MS_seeds = 2 (1 + 1 + 4) / 2 = 6, MS_problems =
    3 (4 + 4) / 1 = 24; the rest is (-1, 1), (1, -1), (0, 0), so MS_rest = 4 / 2 = 2. Half-width
    squared: (t(2)^2 6 + t(1)^2 (24 - 2)) / 6, where t(2) = 4.302653 and t(1) = 12.706205.
    """
    found = over_seeds([[0.0, 6.0], [2.0, 4.0], [4.0, 8.0]])
    assert found.mean == 4.0
    half = math.sqrt((4.30265273**2 * 6 + 12.70620474**2 * 22) / 6)
    assert found.high - 4.0 == pytest.approx(half, abs=1e-6)
    assert 4.0 - found.low == pytest.approx(half, abs=1e-6)


def test_no_component_goes_below_zero() -> None:
    """Problems that differ less than chance: what is left is Student's interval over seeds."""
    found = over_seeds([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.3]])
    means = np.array([1.0, 1.0, 1.3]) / 3
    assert found.high - found.mean == pytest.approx(4.30265273 * means.std(ddof=1) / math.sqrt(3))
    assert over_seeds([[0.5, 0.5], [0.5, 0.5]]).high == 0.5  # nothing varies


def test_ungraded_problems_are_left_out() -> None:
    whole = over_seeds([[0.0, 1.0, 0.5], [0.25, 1.0, 0.0]])
    holes = over_seeds([[0.0, math.nan, 1.0, 0.5], [0.25, 1.0, 1.0, 0.0]])
    assert holes == whole


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.05, 0.2])
def test_the_interval_covers(seed_sd: float, seeds: int) -> None:
    """At least 95 of 100 intervals hold the truth, also with few seeds that differ."""
    rng = np.random.RandomState(4)
    trials, covered = 800, 0
    for _ in range(trials):
        problems = rng.normal(0.0, 0.4, (1, 60))
        x = rng.normal(0, seed_sd, (seeds, 1)) + problems + rng.normal(0, 0.2, (seeds, 60))
        found = over_seeds(x)
        covered += found.low <= 0.0 <= found.high
    assert covered / trials >= 0.935
    if seeds > 2:  # of two seeds that do not differ the interval is too long
        assert covered / trials <= 0.99


def test_a_bootstrap_over_three_seeds_is_too_short() -> None:
    """Seeds and problems drawn again 400 times, in the last case above: why we do not."""
    rng = np.random.RandomState(7)
    trials, covered = 400, 0
    for _ in range(trials):
        problems = rng.normal(0.0, 0.4, (1, 60))
        x = rng.normal(0, 0.2, (3, 1)) + problems + rng.normal(0, 0.2, (3, 60))
        # Of crossed draws only how often each is drawn counts.
        seeds = rng.multinomial(3, [1 / 3] * 3, 400) / 3
        again = rng.multinomial(60, [1 / 60] * 60, 400) / 60
        low, high = np.quantile(((seeds @ x) * again).sum(1), [0.025, 0.975])
        covered += low <= 0.0 <= high
    assert 0.79 <= covered / trials <= 0.89


def test_paired_takes_out_what_both_share() -> None:
    rng = np.random.RandomState(5)
    problems = rng.normal(0, 1, (1, 50))
    a, b = (problems + rng.normal(0, 0.1, (3, 50)) for _ in range(2))
    found, apart = paired(a + 0.2, b), over_seeds(a)
    assert found.excludes_zero
    assert found.low < 0.2 < found.high
    assert found.high - found.low < (apart.high - apart.low) / 4
    assert not paired(a, a).excludes_zero
    with pytest.raises(UserError, match="cannot be paired"):
        paired(a, b[:, :10])


def test_spread_over_seeds_by_hand() -> None:
    assert seed_spread([[0.0, 1.0], [1.0, 1.0]]) == pytest.approx(math.sqrt(0.125))  # 0.5, 1
    assert math.isnan(seed_spread([[0.0, 1.0]]))

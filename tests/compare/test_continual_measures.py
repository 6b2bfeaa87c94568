"""Accuracy and forgetting over a sequence of tasks: by hand, and against another computation."""

import numpy as np
import pytest

from prefix_rft.compare.continual.measures import (
    Stages,
    after_own_stage,
    best,
    final,
    forgetting,
    learnt,
    matrix,
)
from prefix_rft.evaluation.estimates import over_parts, over_seeds

P = [[0.5, 0.5], [0.9, 0.4], [0.7, 0.8]]
"""The base, after the first task, after the second."""


def stages_of(P_STJ: np.ndarray, problems: tuple[int, ...], noise: float = 0.0) -> Stages:
    """Values with these means, on so many problems of each task."""
    rng = np.random.RandomState(3)
    found = []
    for t in range(P_STJ.shape[1]):
        row = []
        for j, n in enumerate(problems):
            x = noise * rng.randn(P_STJ.shape[0], n)
            row.append(P_STJ[:, t, j][:, None] + x - x.mean(1, keepdims=True))
        found.append(row)
    return found


def mean(parts: list[np.ndarray]) -> float:
    return over_parts(parts).mean


def test_by_hand() -> None:
    stages = stages_of(np.array([P]), (3, 5), 0.1)
    assert matrix(stages)[0] == pytest.approx(np.array(P))
    assert mean(final(stages)) == pytest.approx(0.75)  # (.7 + .8) / 2
    assert mean(best(stages)) == pytest.approx(0.85)  # (.9 + .8) / 2
    assert mean(forgetting(stages)) == pytest.approx(-0.10)  # (.7 - .9, .8 - .8)
    assert mean(forgetting(stages, base_in_max=True)) == pytest.approx(-0.10)
    assert mean(after_own_stage(stages)) == pytest.approx(-0.2)  # .7 - .9, of the first task alone
    assert mean(learnt(stages)) == pytest.approx(0.4)  # (.9 - .5, .8 - .4)


def test_the_base_is_in_the_maximum_only_where_it_is_asked_for() -> None:
    stages = stages_of(np.array([[[0.95, 0.5], *P[1:]]]), (4, 4))
    assert mean(forgetting(stages)) == pytest.approx(-0.10)
    assert mean(forgetting(stages, base_in_max=True)) == pytest.approx(-0.125)  # .7 - .95
    assert mean(best(stages, base_in_max=True)) == pytest.approx(0.875)


def test_later_tasks_may_help() -> None:
    stages = stages_of(np.array([[[0.1, 0.1], [0.5, 0.2], [0.6, 0.7]]]), (4, 4))
    assert mean(forgetting(stages)) == 0.0
    assert mean(after_own_stage(stages)) == pytest.approx(0.1)


def test_the_best_stage_is_each_seeds_own() -> None:
    two = np.array([P, [[0.5, 0.5], [0.2, 0.9], [0.6, 0.7]]])
    stages = stages_of(two, (3, 3))
    # -.1 of the first seed; (.6 - .6, .7 - .9) of the second. Of mean matrices it were another.
    assert mean(forgetting(stages)) == pytest.approx((-0.10 - 0.10) / 2)
    assert [part.mean(1).tolist() for part in best(stages)] == [
        pytest.approx([0.9, 0.6]),
        pytest.approx([0.8, 0.9]),
    ]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("base_in_max", [False, True])
def test_against_another_computation(seed: int, base_in_max: bool) -> None:
    rng = np.random.RandomState(seed)
    S, T = rng.randint(1, 4), rng.randint(2, 6)
    P_STJ = rng.rand(S, T + 1, T)
    stages = stages_of(P_STJ, tuple(rng.randint(2, 9, T)), 0.2)
    fm, cgl, avg, new = [], [], [], []
    for own in P_STJ:
        rounds = own if base_in_max else own[1:]
        avg.append(sum(own[T, j] for j in range(T)) / T)
        fm.append(sum(own[T, j] - max(row[j] for row in rounds) for j in range(T)) / T)
        cgl.append(sum(own[T, k] - own[k + 1, k] for k in range(T - 1)) / (T - 1))
        new.append(sum(own[k + 1, k] - own[k, k] for k in range(T)) / T)
    assert mean(final(stages)) == pytest.approx(np.mean(avg))
    assert mean(learnt(stages)) == pytest.approx(np.mean(new))
    assert mean(forgetting(stages, base_in_max)) == pytest.approx(np.mean(fm))
    assert mean(after_own_stage(stages)) == pytest.approx(np.mean(cgl))
    most = mean(best(stages, base_in_max))
    assert mean(final(stages)) - most == pytest.approx(np.mean(fm))


def test_problems_that_were_not_graded_are_left_out() -> None:
    stages = [[x.copy() for x in row] for row in stages_of(np.array([P, P]), (3, 5))]
    stages[1][0][1, 2] = np.nan
    stages[0][1][:] = np.nan  # the base could not be graded at all on the second task
    assert matrix(stages)[1, :, 0].tolist() == pytest.approx([0.5, 0.9, 0.7])
    assert np.isnan(matrix(stages)[:, 0, 1]).all()
    assert mean(forgetting(stages, base_in_max=True)) == pytest.approx(-0.10)


# ---- intervals ----------------------------------------------------------------------------------


def test_one_part_is_that_of_a_comparison() -> None:
    x = np.random.RandomState(0).rand(3, 7)
    ours, theirs = over_parts([x]), over_seeds(x)
    assert (ours.mean, ours.low, ours.high, ours.n) == pytest.approx(
        (theirs.mean, theirs.low, theirs.high, theirs.n)
    )


def test_parts_count_alike_whatever_their_size() -> None:
    found = over_parts([np.full((2, 3), 0.2), np.full((2, 30), 0.8)])
    # Nothing varies but the tasks, which are no chance.
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.n == 33
    assert over_parts([np.full((2, 3), np.nan), np.ones((2, 3))]).n == 0
    assert over_parts([]).n == 0


def test_the_interval_covers_the_truth() -> None:
    """Three tasks far apart and of unlike sizes, seeds that move all, problems of their own."""
    rng = np.random.RandomState(1)
    centres, sizes, covered, widths = (0.1, 0.5, 0.9), (10, 20, 40), 0, []
    for _ in range(600):
        seeds = 0.05 * rng.randn(3, 1)
        parts = [
            c + seeds + 0.2 * rng.randn(1, n) + 0.1 * rng.randn(3, n)
            for c, n in zip(centres, sizes, strict=True)
        ]
        found = over_parts(parts)
        covered += found.low <= 0.5 <= found.high
        widths.append(found.high - found.low)
    assert 0.94 <= covered / 600 <= 0.995
    # As long as seeds alone make it (3 seeds, sd .05: t * .05 / sqrt 3) and little more.
    assert 2 * 4.303 * 0.05 / 3**0.5 * 0.9 < np.mean(widths) < 2 * 4.303 * 0.05 / 3**0.5 * 1.3

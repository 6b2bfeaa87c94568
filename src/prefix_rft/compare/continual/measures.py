"""Accuracy after a sequence of tasks and what of the earlier ones is forgotten, seed by seed.

``P[t, j]`` is the accuracy on task j after stage t; row 0 is the base. Every measure is a mean over
tasks of means over problems, so it comes as the problems' own values, of which means and intervals
over seeds and problems are taken as those of a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Stages = Sequence[Sequence[Values]]
"""By stage, the base first, and by task: a value for each seed and problem."""


def matrix(stages: Stages) -> Values:
    """``P``, for each seed: S matrices of T + 1 rows and T columns; NaN where none was graded."""
    return np.stack([[_means(values) for values in row] for row in stages]).transpose(2, 0, 1)


def _means(values: Values) -> Values:
    """The mean over the graded problems of each seed."""
    graded = ~np.isnan(values)
    counts = graded.sum(1)
    sums = np.where(graded, values, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def final(stages: Stages) -> list[Values]:
    """``P[T, j]``; the mean over tasks is AvgAcc (arXiv 2507.05386)."""
    return list(stages[-1])


def best(stages: Stages, base_in_max: bool = False) -> list[Values]:
    """``max_t P[t, j]``: on each task the values of the stage that is the best, for each seed.

    Args:
        stages: the values.
        base_in_max: the base counts as a stage.
    """
    first = 0 if base_in_max else 1
    accuracy = matrix(stages)[:, first:]
    # A stage without any graded problem is not the best one.
    at = first + np.where(np.isnan(accuracy), -np.inf, accuracy).argmax(1)
    return [
        np.stack([stages[t][j][seed] for seed, t in enumerate(at[:, j])])
        for j in range(len(stages[0]))
    ]


def forgetting(stages: Stages, base_in_max: bool = False) -> list[Values]:
    """``P[T, j] - max_t P[t, j]``, over all tasks: FM of arXiv 2507.05386, at most 0.

    Args:
        stages: the values.
        base_in_max: the base counts as a stage.
    """
    pairs = zip(final(stages), best(stages, base_in_max), strict=True)
    return [last - most for last, most in pairs]


def after_own_stage(stages: Stages) -> list[Values]:
    """``P[T, k] - P[k, k]`` for k < T: forgetting as CGL counts it, above 0 where more is known."""
    return [last - stages[k][k - 1] for k, last in enumerate(final(stages)[:-1], 1)]


def learnt(stages: Stages) -> list[Values]:
    """``P[k, k] - P[k - 1, k]``: what each stage adds on its own task, without which little can be
    forgotten either."""
    pairs = zip(stages[1:], stages, strict=False)
    return [after[k] - before[k] for k, (after, before) in enumerate(pairs)]

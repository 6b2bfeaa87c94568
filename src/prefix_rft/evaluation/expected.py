"""What a step of RL can expect of a start model: solved rows, and groups that teach nothing.

Of the rows of a step, lambda = rows times success without a prefix are solved on average. Far below
one, reinforcement learning from the prompt alone sees no reward to follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from prefix_rft.evaluation.estimates import LEVEL, Estimate, student_t
from prefix_rft.support.errors import UserError


def success(correct: Sequence[int], samples: Sequence[int]) -> Estimate:
    """The share of samples that are correct, with an interval that holds near 0 and 1.

    Samples of one problem are alike, so the interval is that of Clopper and Pearson at the
    effective number of samples (Korn and Graubard, Survey Methodology 24, 1998, pages 193 to 201):
    the samples over the design effect, which is the variance between problems over that of
    independent samples, and over (t_{P-1} / t_{n-1})^2 for having estimated it from P problems.
    Where nothing or all is correct, nothing says how alike they are, and they count as independent.

    Args:
        correct: correct samples of each problem.
        samples: graded samples of each problem, those without any left out.

    Raises:
        UserError: nothing was graded.
    """
    c, k = np.asarray(correct, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    c, k = c[k > 0], k[k > 0]
    problems, n = len(k), float(k.sum())
    if not problems:
        raise UserError("no sample could be graded, so nothing says how often the model succeeds")
    p = float(c.sum()) / n
    effective = n if p in (0, 1) else 1.0  # one problem says nothing of others
    if 0 < p < 1 and problems > 1:
        # The linearised variance of a ratio of sums.
        variance = problems / (problems - 1) * float(((c - p * k) ** 2).sum()) / n**2
        independent = n if variance == 0 else p * (1 - p) / variance
        penalty = (student_t(n - 1) / student_t(problems - 1)) ** 2
        effective = min(n, independent * penalty)
    hits, tail = p * effective, (1 - LEVEL) / 2
    low = 0.0 if p == 0 else float(betaincinv(hits, effective - hits + 1, tail))
    high = 1.0 if p == 1 else float(betaincinv(hits + 1, effective - hits, 1 - tail))
    return Estimate(p, low, high, problems)


@dataclass(frozen=True)
class Flat:
    """Groups whose rewards are all alike, of which no advantage is left.

    Attributes:
        wrong: the share of groups without a solved row.
        right: the share of groups of solved rows alone.
    """

    wrong: float
    right: float


def flat_groups(correct: Sequence[int], samples: Sequence[int], group: int) -> Flat | None:
    """The share of groups to expect whose rows are all wrong, or all right.

    Without bias: the chance that so many samples, drawn without replacement, are all wrong,
    ``C(n - c, g) / C(n, g)``, averaged over problems; likewise for all right. It is one less the
    pass@k of Chen et al. (arXiv 2107.03374, equation 1).

    Args:
        correct: correct samples of each problem.
        samples: graded samples of each problem.
        group: g, rows of a group.

    Returns:
        None where no problem has as many samples as a group has rows.
    """
    pairs = [(c, n) for c, n in zip(correct, samples, strict=True) if n >= group]
    if not pairs:
        return None
    ways = [math.comb(n, group) for _, n in pairs]
    wrong = [math.comb(n - c, group) / w for (c, n), w in zip(pairs, ways, strict=True)]
    right = [math.comb(c, group) / w for (c, _), w in zip(pairs, ways, strict=True)]
    return Flat(sum(wrong) / len(pairs), sum(right) / len(pairs))

"""Evaluations along the way: numbers for a run's log, at the cost of time alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from prefix_rft.evaluation.scores import Problem, scores


def seed_along(seed: int) -> int:
    """The seed of samples along the way, the same at every step, and of none at the end.

    What is chosen by them is evaluated in the end with samples that had no part in the choice.

    Args:
        seed: the run's seed, at least 0.
    """
    return -1 - seed


def metrics_along(problems: Sequence[Problem]) -> dict[str, float]:
    """The numbers of an evaluation under the names of the log; NaN for what nobody could grade.

    Args:
        problems: the problems with their samples, at least one.
    """
    summary = scores(problems)
    solved = summary.pass_at.get(summary.samples)
    return {
        "eval_avg": math.nan if summary.avg is None else summary.avg.mean,
        "eval_pass": math.nan if solved is None else solved.mean,
        "eval_no_answer": summary.no_answer,
        "eval_truncated": summary.truncated,
        "eval_ungraded": summary.ungraded / sum(len(p.samples) for p in problems),
        "eval_tokens": summary.tokens,
    }


@contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """Put the global random states back on leaving, whatever a grader has drawn from them.

    Args:
        device: the device of the model; its random state is one of them.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([] if device.type in ("cpu", "mps") else [device]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

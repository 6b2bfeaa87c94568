"""Gold answers that a grader cannot read, found without any completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefix_rft.rewards.completions import grade_texts
from prefix_rft.rewards.verdict import ERROR, GOLD_UNPARSEABLE, TIMEOUT

BATCH = 512
UNUSABLE = (GOLD_UNPARSEABLE, TIMEOUT, ERROR)
"""Verdicts on an empty completion with which a row is dropped before training."""


def unreadable_golds(
    judge: Callable[..., Any], rows: Any, tick: Callable[[int], None] = lambda done: None
) -> list[int]:
    """The rows of a dataset whose gold answer a reward cannot read; none if it does not say so.

    Args:
        judge: the reward.
        rows: a dataset.
        tick: hears how many rows are done.
    """
    if not getattr(judge, "tests_gold", False):
        return []
    bad: list[int] = []
    for start in range(0, len(rows), BATCH):
        tick(start)
        part = [dict(r) for r in rows.select(range(start, min(start + BATCH, len(rows))))]
        verdicts = grade_texts(judge, part, [""] * len(part))
        bad += [start + i for i, v in enumerate(verdicts) if v.status in UNUSABLE]
    return bad

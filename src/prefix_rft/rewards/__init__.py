"""Verdicts out: graders in TRL's reward signature, run where they can be stopped.

Nothing here needs torch: a grader's process starts in a fraction of a second.
"""

from prefix_rft.rewards.checked import RewardError, checked
from prefix_rft.rewards.completions import (
    as_completion,
    grade,
    grade_texts,
    missing_columns,
    visible,
)
from prefix_rft.rewards.graded import Graded, close_all
from prefix_rft.rewards.pool import GraderPool, Limits
from prefix_rft.rewards.registry import BUILT_IN, load_rewards, parse_rewards
from prefix_rft.rewards.verdict import STATUSES, Verdict

__all__ = [
    "BUILT_IN",
    "STATUSES",
    "Graded",
    "GraderPool",
    "Limits",
    "RewardError",
    "Verdict",
    "as_completion",
    "checked",
    "close_all",
    "grade",
    "grade_texts",
    "load_rewards",
    "missing_columns",
    "parse_rewards",
    "visible",
]

"""Verdicts out: reward functions with TRL's signature, checked at every call."""

from prefix_rft.rewards.checked import RewardError, checked

__all__ = ["RewardError", "checked"]

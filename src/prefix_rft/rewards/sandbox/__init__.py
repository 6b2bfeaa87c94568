"""Programs of strangers, run where they can do no harm, and watched from outside."""

from prefix_rft.rewards.sandbox.run import Allowance, Outcome, refuse_where_impossible, run

__all__ = ["Allowance", "Outcome", "refuse_where_impossible", "run"]

"""``prefix-rft compare``: the same base, rows, budget and evaluator for every arm."""

from prefix_rft.compare.command import run_compare

__all__ = ["run_compare"]

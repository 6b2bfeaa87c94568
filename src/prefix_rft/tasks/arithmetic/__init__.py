"""The arithmetic task: sums of several terms, worked demonstrations, and SmolLM2 as its base."""

from prefix_rft.tasks.arithmetic.files import write

__all__ = ["write"]

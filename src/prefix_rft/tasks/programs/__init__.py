"""The programs task: small functions from examples, with tests as the reward."""

from prefix_rft.tasks.programs.files import write
from prefix_rft.tasks.programs.problem import functions, solve

__all__ = ["functions", "solve", "write"]

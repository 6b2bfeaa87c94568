"""The chain task: a hidden rule, many dependent steps, few demonstrations."""

from prefix_rft.tasks.chain.files import write
from prefix_rft.tasks.chain.grade import reward, steps

__all__ = ["reward", "steps", "write"]

"""The programs task: small functions described in words, with tests as the reward."""

from prefix_rft.tasks.programs.files import write

__all__ = ["write"]

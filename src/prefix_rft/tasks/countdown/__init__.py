"""The bundled Countdown task: numbers to a target, verified by arithmetic."""

from prefix_rft.tasks.countdown.files import write
from prefix_rft.tasks.countdown.grade import arithmetic, grade, reward
from prefix_rft.tasks.countdown.puzzle import Puzzle, Rules, generate

__all__ = ["Puzzle", "Rules", "arithmetic", "generate", "grade", "reward", "write"]

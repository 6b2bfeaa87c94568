"""Every method's loss from its published formula, one row and one token at a time.

Sources stand at each method; where a paper leaves a constant or a normaliser open, it is the one
that the method's docstring in the package states. ``FORMULAS[name](step)`` is the loss of a step
with the options ``step.o``; ``MISTAKES[name]`` are what ``step.wrong`` may be to get it wrong, and
``LAYOUT[name]`` the rows of ``random_steps`` that the method is for.
"""

from second.objective import (  # noqa: F401  they register methods
    rollouts,
    teachers,
    with_demonstrations,
)
from second.objective.parts import FORMULAS, LAYOUT, MISTAKES, Step

__all__ = ["FORMULAS", "LAYOUT", "MISTAKES", "Step"]

"""What a run is doing, and how far it is with it, for whoever shows that."""

from __future__ import annotations

from collections.abc import Callable


class Phases:
    """The present phase of a run, such as ``sampling 12 of 128``.

    One object goes to everything that may take long; it tells its hearer of each change and does
    not know how it is shown.

    Args:
        hear: called after every change, also when nothing but time has passed.
    """

    def __init__(self, hear: Callable[[], None] = lambda: None) -> None:
        self.hear = hear
        self.what = ""
        self.done = 0
        self.total: int | None = None

    def __str__(self) -> str:
        if self.total is not None:
            return f"{self.what} {self.done} of {self.total}"
        return f"{self.what} {self.done}" if self.done else self.what

    def begin(self, what: str, total: int | None = None) -> None:
        """Begin another phase.

        Args:
            what: what begins, in words.
            total: how many steps it has; None where they are not counted.
        """
        self.what, self.done, self.total = what, 0, total
        self.hear()

    def at(self, done: int) -> None:
        """So many of the phase's steps are done."""
        self.done = done
        self.hear()

    def next(self) -> None:
        """The phase's next step begins."""
        self.at(self.done + 1)

"""What a grader may use, and one completion on its way through a worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefix_rft.rewards.process import Worker
from prefix_rft.rewards.verdict import ERROR, Verdict
from prefix_rft.support.errors import UserError

ATTEMPTS = 2
"""A death may be an earlier item's doing, so an item is blamed for the second one."""


@dataclass(frozen=True)
class Limits:
    """What one item may use: processor ``seconds``, and ``memory`` in megabytes (None: any)."""

    seconds: float = 5.0
    memory: int | None = 2048

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 86400:
            raise UserError(
                f"a reward's timeout must be above 0 and at most a day, got {self.seconds}"
            )
        if self.memory is not None and not 1 <= self.memory <= 2**30:
            raise UserError(
                f"a reward's memory must be at least 1 and at most 2**30 megabytes, got "
                f"{self.memory}"
            )


@dataclass
class GraderCall:
    """The items of one call, as JSON, and what is known about them."""

    items: list[str]
    tick: Callable[[int], None] = lambda done: None
    offset: int = 0
    waiting: deque[int] = field(init=False)
    again: deque[int] = field(default_factory=deque)
    verdicts: list[Verdict | None] = field(init=False)
    attempts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = deque(range(len(self.items)))
        self.verdicts = [None] * len(self.items)
        self.attempts = [0] * len(self.items)

    @property
    def open(self) -> bool:
        """Whether items wait to be given to a worker."""
        return bool(self.waiting or self.again)

    def blame(self, worker: Worker, why: str) -> None:
        """A worker fell at its first item: once more in a fresh one, then the item is at fault."""
        if not worker.given:
            return
        index = worker.given.popleft()
        self.attempts[index] += 1
        if self.attempts[index] < ATTEMPTS:
            self.again.append(index)
        else:
            self.verdicts[index] = Verdict(ERROR, detail=why)

    def take_back(self, worker: Worker) -> None:
        """The other items of a worker that is gone."""
        self.waiting.extendleft(reversed(worker.given))
        worker.given.clear()

    def line(self, indices: Sequence[int]) -> str:
        """What a worker is sent: numbers that no other call has used, with their items."""
        return "[" + ",".join(f"[{self.offset + i},{self.items[i]}]" for i in indices) + "]"

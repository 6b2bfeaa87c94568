"""Rollouts of one prompt wait for one another, where a group may be sampled again.

verl starts all rollouts of a prompt side by side in one process, and knows nothing of groups there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


@dataclass
class GroupBarrier:
    """The meetings that are open, by prompt and by what they are held for.

    Attributes:
        open: what those who have come brought, and what they wait for.
        gone: prompts of which a rollout failed, so that no meeting of theirs takes place.
    """

    open: dict[tuple[str, str], tuple[dict[int, Any], asyncio.Future[list[Any]]]] = field(
        default_factory=dict
    )
    gone: set[str] = field(default_factory=set)

    async def meet(self, prompt: str, what: str, rollout: int, of: int, brings: Any) -> list[Any]:
        """What all rollouts bring, in their order, once all have come.

        Args:
            prompt: the id of their prompt.
            what: what they meet for, once only.
            rollout: the place of the one that comes.
            of: how many there are.
            brings: what it brings.

        Raises:
            RuntimeError: one of them has failed.
        """
        if prompt in self.gone:
            raise RuntimeError(f"another rollout of prompt {prompt} has failed")
        key = (prompt, what)
        if key not in self.open:
            self.open[key] = ({}, asyncio.get_running_loop().create_future())
        brought, all_here = self.open[key]
        brought[rollout] = brings
        if len(brought) == of:
            del self.open[key]
            all_here.set_result([brought[r] for r in sorted(brought)])
        return await all_here

    def leave(self, prompt: str) -> None:
        """A rollout of this prompt has failed: nobody needs to wait for it."""
        self.gone.add(prompt)
        for key in [k for k in self.open if k[0] == prompt]:
            _, all_here = self.open.pop(key)
            all_here.set_exception(RuntimeError(f"another rollout of prompt {prompt} has failed"))


def all_wrong(brought: list[tuple[float, bool]], solved_above: float) -> bool:
    """Whether no rollout of a group is solved, among those that were sampled and have a reward.

    Args:
        brought: reward (NaN where there is none) of each row, and whether it is a demonstration.
        solved_above: a row is solved if its reward exceeds this.
    """
    graded = [r for r, whole in brought if not whole and r == r]
    return bool(graded) and all(r <= solved_above for r in graded)

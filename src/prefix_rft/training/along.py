"""Evaluations along the way: when one is due."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from prefix_rft.recipe.along import refuse_unreached


class EvaluatesAlong(TrainerCallback):
    """Ask for an evaluation every so many optimizer steps.

    Args:
        every: the optimizer steps from one evaluation to the next.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look whether there will be one.

        Raises:
            UserError: the run ends before.
        """
        refuse_unreached(self.every, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for one where it is due, and for the line of the log that comes before it."""
        if state.global_step % self.every == 0:
            control.should_evaluate = True
            control.should_log |= args.logging_strategy != "no"

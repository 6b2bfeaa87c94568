"""Loud failures: what every trainer here looks at in each optimizer step, and how to set it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from prefix_rft.engines.tripwires import Tripwires
from prefix_rft.engines.trl.finite import POLICIES, Finite
from prefix_rft.support.errors import RunError, check_range, choose
from prefix_rft.support.phases import Phases

logger = logging.getLogger("prefix_rft")


@dataclass
class WatchConfig:
    """Arguments for what stops a run, or is warned of."""

    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "A loss or gradient that is not finite stops the run before the update (stop) "
            "or leaves the update out (skip)."
        },
    )
    nonfinite_limit: int = field(
        default=10, metadata={"help": "The most updates that a run may leave out."}
    )
    tripwires: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "warn (default), stop or off by sign, e.g. {'constant_reward': 'stop'}."},
    )
    tripwire_steps: int = field(
        default=20, metadata={"help": "A tripwire acts when its sign has shown for so many steps."}
    )

    def check_watch(self) -> None:
        """Raise UserError for a value that cannot be used."""
        choose("on_nonfinite", self.on_nonfinite, POLICIES)
        check_range("nonfinite_limit", self.nonfinite_limit, 0)
        check_range("tripwire_steps", self.tripwire_steps, 1)
        self.read_tripwires()

    def read_tripwires(self) -> Tripwires:
        """The tripwires as set."""
        given: Any = self.tripwires
        return Tripwires.read(given, self.tripwire_steps)


class Watched:
    """Mixin for trainers: numbers that are not finite, and signs that a run teaches nothing.

    Attributes:
        notes: what a user is told when training begins.
        phases: what the trainer tells of where it is; by default nobody hears it.
    """

    args: Any
    accelerator: Any

    def __init__(self, *args: Any, phases: Phases | None = None, **kwargs: Any) -> None:
        self.phases = phases or Phases()
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self.finite = Finite(trainer)
        self.tripwires: Tripwires = self.args.read_tripwires()
        self.notes: list[str] = []
        trainer.add_callback(LooksAtLines(trainer))
        trainer.add_callback(TellsNotes(trainer))

    def warn(self, words: str) -> None:
        """Tell the user of something that does not stop the run."""
        if self.accelerator.is_main_process:
            logger.warning(words)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; before an update its numbers are looked at.

        Raises:
            RunError: one is not finite.
        """
        loss: Tensor = super().training_step(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.finite.loss(loss)
        if self.accelerator.sync_gradients:
            self.finite.before_update()
        return loss


class TellsNotes(TrainerCallback):
    """Tells a trainer's notes once."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell them, now that the trainer's way to warn has been settled."""
        for words in self.trainer.notes:
            self.trainer.warn(words)
        self.trainer.notes.clear()


class LooksAtLines(TrainerCallback):
    """Shows each line of the log to the tripwires."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps count from the last line, which a resumed run may have in its middle."""
        self.step = self.trainer._globalstep_last_logged

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Warn or stop."""
        if not logs or "loss" not in logs:
            return
        steps, self.step = state.global_step - self.step, state.global_step
        for action, words in self.trainer.tripwires.look(logs, steps):
            if action == "stop":
                raise RunError(f"stopped at step {state.global_step} by the tripwire {words}")
            self.trainer.warn(f"step {state.global_step}: tripwire {words}")

"""Loud failures: what every trainer here looks at in each optimizer step, and how to set it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from prefix_rft.engines.tripwires import Tripwires
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.safety.deepspeed import refuse_lost_gradients
from prefix_rft.engines.trl.safety.finite import POLICIES, Finite
from prefix_rft.engines.trl.safety.run_state import RunState
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
        processes: the processes that share the run.
    """

    args: Any
    accelerator: Any
    model: Any
    optimizer: Any
    state: Any
    is_deepspeed_enabled: bool
    run_state: RunState
    add_callback: Callable[[Any], None]
    add_metrics: Callable[[Mapping[str, float]], None]

    def __init__(self, *args: Any, phases: Phases | None = None, **kwargs: Any) -> None:
        self.phases = phases or Phases()
        super().__init__(*args, **kwargs)
        self.processes = Processes(self.accelerator)
        config = self.args
        if self.is_deepspeed_enabled:
            plugin = self.accelerator.state.deepspeed_plugin
            refuse_lost_gradients(plugin, config.gradient_accumulation_steps)
        self.finite = Finite(
            self.processes, config.on_nonfinite, config.nonfinite_limit, self.is_deepspeed_enabled
        )
        self.tripwires: Tripwires = config.read_tripwires()
        self.notes: list[str] = []

        def warn(words: str) -> None:
            self.warn(words)  # which may be another one by then

        state = self.run_state
        self.add_callback(ObservesMetrics(self.tripwires, warn, lambda: state.last_logged))
        self.add_callback(TellsNotes(self.notes, warn))

    @property
    def policy(self) -> Any:
        """The model that is trained, out of what accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

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
            step, scaled = self.state.global_step, self.accelerator.scaler is not None
            why = self.finite.before_update(self.policy, self.optimizer, step, scaled)
            if why is not None:
                self.add_metrics({"nonfinite/skipped": 1.0})
                self.warn(f"step {step + 1} is left out: {why} ({self.finite.skipped} so far)")
        return loss


class TellsNotes(TrainerCallback):
    """Tells notes once.

    Args:
        notes: sentences, empty once they are told.
        warn: how a user is told.
    """

    def __init__(self, notes: list[str], warn: Callable[[str], None]) -> None:
        self.notes, self.warn = notes, warn

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell them, now that the way to warn has been settled."""
        for words in self.notes:
            self.warn(words)
        self.notes.clear()


class ObservesMetrics(TrainerCallback):
    """Shows each line of the log to the tripwires.

    Args:
        tripwires: the tripwires that are looked out for.
        warn: how a user is told.
        last_logged: the optimizer step of the last line, when training begins.
    """

    def __init__(
        self, tripwires: Tripwires, warn: Callable[[str], None], last_logged: Callable[[], int]
    ) -> None:
        self.tripwires, self.warn, self.last_logged = tripwires, warn, last_logged
        self.step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Steps count from the last line, which a resumed run may have in its middle."""
        self.step = self.last_logged()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Warn or stop.

        Raises:
            RunError: a tripwire stops the run.
        """
        if not logs or "loss" not in logs:
            return
        steps, self.step = state.global_step - self.step, state.global_step
        for action, words in self.tripwires.observe(logs, steps):
            if action == "stop":
                raise RunError(f"stopped at step {state.global_step} by the tripwire {words}")
            self.warn(f"step {state.global_step}: tripwire {words}")

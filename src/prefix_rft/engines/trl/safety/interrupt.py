"""Ctrl-C, SIGTERM and the signals of a scheduler: finish the step, save, stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.safety.whole_record import WholeRecord

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
"""A scheduler's notice: SLURM preempts with SIGTERM, and sends what ``--signal`` names."""


ECHO_SECONDS = 5.0
"""A launcher passes a signal on to processes that have heard it already, as itself (torchrun) or as
SIGTERM: that is no second signal."""

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun."""


class StopOnSignal(TrainerCallback):
    """Stop a run at the end of its optimizer step, with a checkpoint, when a signal arrives.

    A second signal ends the process at once. Processes of a run agree: one that was told is enough.
    Handlers are installed in the context only; outside the main thread, where Python does not allow
    any, there are none.

    Args:
        processes: the run's processes.
        record: the run's record, which stays open where the run is to go on.
        say: how a user is told of a signal.

    Attributes:
        caught: number of the signal; None while there was none.
        stopped: the run has ended because of it.
    """

    def __init__(
        self, processes: Processes, record: WholeRecord, say: Callable[[str], None]
    ) -> None:
        self.processes, self.record, self.say = processes, record, say
        self.caught: int | None = None
        self.at = 0.0
        self.stopped = False
        self.former: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        main = threading.current_thread() is threading.main_thread()
        for name in NAMES if main else ():
            if hasattr(signal, name):
                number = getattr(signal, name)
                self.former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            soon = time.monotonic() <= self.at + ECHO_SECONDS
            if not (soon and (number != self.caught or LAUNCHED in os.environ)):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.caught, self.at = number, time.monotonic()
        name = signal.Signals(number).name
        self.say(f"{name}: finishing this step and saving; once more to leave at once")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop if a process was told to."""
        number = self.caught or 0
        if self.processes.count > 1:
            told = torch.tensor([number], device=self.processes.device)
            number = int(self.processes.gather(told).max())
        if number:
            self.caught, self.stopped = number, True
            # After the last step nothing comes that could be in the same line.
            self.record.open = state.global_step < state.max_steps
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch has not ended for a run that is to go on: nothing more is due."""
        if self.stopped and self.record.open:
            control.should_log = control.should_evaluate = control.should_save = False

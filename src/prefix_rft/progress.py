"""One live line in a terminal; plain lines elsewhere. Metrics always go to ``metrics.jsonl``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback

from prefix_rft.run_folder import SUMMARY, append_metrics

PLAIN_LINES = 20
SHOWN = (
    ("loss", "loss", "{:.4f}"),
    ("policy/reward", "on-policy reward", "{:.3f}"),
    ("prefix/reward", "hybrid reward", "{:.3f}"),
    ("prefix/length", "prefix", "{:.1f} tok"),
    ("entropy", "entropy", "{:.2f}"),
)


class Steadfast(Console):
    """A console whose reader may leave (``| tee`` hears Ctrl-C too): a run goes on without it."""

    def on_broken_pipe(self) -> None:
        """Write to nobody from now on."""
        self.quiet = True
        nobody = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nobody, sys.stdout.fileno())
        os.close(nobody)


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress(TrainerCallback):
    """Report a run to a console and to its folder.

    Rewards are noisy from step to step, so the line shows an average with a memory of about ten.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self.console = console
        self.folder = folder
        self.smooth: dict[str, float] = {}
        self.live: Live | None = None
        self.started = 0.0
        self.first = 0  # step from which this process goes on

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock and, in a terminal, the live line."""
        self.started, self.first = time.monotonic(), state.global_step
        if self.console.is_terminal and state.is_world_process_zero:
            self.live = Live(Text("starting"), console=self.console, refresh_per_second=4)
            self.live.start()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write the metrics and refresh the line."""
        if not state.is_world_process_zero or not logs:
            return
        append_metrics(self.folder, state.global_step, logs)
        if SUMMARY in logs:
            return
        for key, _, _ in SHOWN:
            value = logs.get(key)
            if isinstance(value, (int, float)):
                old = self.smooth.get(key, value)
                self.smooth[key] = 0.9 * old + 0.1 * value
        line = self.line(state.global_step, state.max_steps)
        if self.live is not None:
            self.live.update(Text(line, overflow="ellipsis", no_wrap=True))
        elif state.global_step % max(1, state.max_steps // PLAIN_LINES) == 0:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def line(self, step: int, total: int) -> str:
        """``step 20/200  10%  0:12 left 1:48  loss ...``."""
        spent = time.monotonic() - self.started
        left = spent / max(step - self.first, 1) * (total - step)
        parts = [f"step {step}/{total}", f"{clock(spent)} spent, {clock(left)} left"]
        parts += [
            f"{name} {form.format(self.smooth[key])}"
            for key, name, form in SHOWN
            if key in self.smooth
        ]
        return "  ".join(parts)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last line standing."""
        if self.live is not None:
            self.live.stop()
            self.live = None

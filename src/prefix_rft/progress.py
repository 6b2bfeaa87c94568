"""One live line in a terminal; elsewhere a plain one at least every minute.

Metrics always go to ``metrics.jsonl``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text
from transformers import TrainerCallback

from prefix_rft.phases import Phases
from prefix_rft.run_folder import SUMMARY, append_metrics

PLAIN_LINES = 20
"""A fast run prints as many."""
SILENCE = 60.0
"""The most seconds without a line."""
LOOK_SECONDS = 1.0
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


class Display:
    """What a run is doing, for its reader, from entering to leaving the context.

    In a terminal one line at the bottom, always as things are. Elsewhere a plain line where
    something is worth one, and at least one a minute: whatever takes long tells ``phases`` of its
    progress, and a thread looks at the clock for what cannot. A quiet console shows nothing.

    Attributes:
        phases: to be handed to whatever takes long.
        before: what stands before the phase, asked for anew for each line.
        behind: what stands behind it.

    Args:
        console: to show it on.
        now: a clock in seconds.
        thread: look at the clock from a thread as well.
    """

    def __init__(
        self, console: Console, now: Callable[[], float] = time.monotonic, thread: bool = True
    ) -> None:
        self.console = console
        self.now = now
        self.phases = Phases(self._heard)
        self.before: Callable[[], str] = self.spent
        self.behind: Callable[[], str] = str
        self.thread = threading.Thread(target=self._watch, daemon=True) if thread else None
        self.live: Live | None = None
        self.spinner = Spinner("dots")
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._soon = False
        self._began = self._last = now()

    def __enter__(self) -> Self:
        self._began = self._last = self.now()
        if self.console.quiet:
            return self
        if self.console.is_terminal:
            self.live = Live(
                console=self.console,
                get_renderable=self._moving,
                refresh_per_second=4,
                transient=True,
            )
            self.live.start()
        elif self.thread is not None:
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.thread is not None and self.thread.is_alive():
            self.thread.join()

    def line(self) -> str:
        """``step 20/200  0:12 spent, 1:48 left  sampling 12 of 128  loss ...``."""
        parts = (self.before(), str(self.phases), self.behind())
        return "  ".join(part for part in parts if part)

    def spent(self) -> str:
        """The time since the display was entered."""
        return f"{clock(self.now() - self._began)} spent"

    def soon(self) -> None:
        """Print the next phase as soon as it begins, away from a terminal."""
        self._soon = True

    def leave(self, line: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._last, self._soon = self.now(), False
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _heard(self, changed: bool = True) -> None:
        """Print a line if one is due."""
        if self.live is not None or self._over.is_set():
            return
        with self._lock:
            if (changed and self._soon) or self.now() - self._last >= SILENCE:
                self.leave(self.line())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self._heard(changed=False)

    def _moving(self) -> Text:
        frame = self.spinner.render(self.console.get_time())
        return Text(f"{frame} {self.line()}", overflow="ellipsis", no_wrap=True)


def by_job(display: Display) -> Callable[[str, int, int], None]:
    """What is called with a job's name, the problems done, and those to do."""
    jobs: set[str] = set()

    def progress(job: str, done: int, total: int) -> None:
        if job not in jobs:
            jobs.add(job)
            display.soon()
            display.phases.begin(f"{job}: problem", total)
        display.phases.at(done)

    return progress


class Progress(TrainerCallback):
    """Report a run's steps to a display, and its metrics to its folder.

    Rewards are noisy from step to step, so the line shows an average with a memory of about ten.
    """

    def __init__(self, display: Display, folder: Path) -> None:
        self.display = display
        self.folder = folder
        self.smooth: dict[str, float] = {}
        self.started = self.ended = 0.0
        self.first = self.step = self.total = 0  # ``first``: from where this process goes on
        self.shown = -1  # the step of the last line that was due

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = self.ended = self.display.now()
        self.first = self.step = self.shown = state.global_step
        self.total = state.max_steps
        if state.is_world_process_zero:
            self.display.phases.begin("starting")
            self.display.before, self.display.behind = self.steps, self.values
            self.display.soon()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step; its metrics may come behind."""
        self.step, self.ended = state.global_step, self.display.now()
        if state.is_world_process_zero and not control.should_log:
            self._due()

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
        self._due()

    def _due(self) -> None:
        """Print the line after the first step, and some twenty times in a run."""
        every = max(1, self.total // PLAIN_LINES)
        if self.step > self.shown and (self.step % every == 0 or self.step == self.first + 1):
            self.shown = self.step
            if self.display.live is None:
                self.display.leave(self.line())

    def line(self) -> str:
        """``step 20/200  0:12 spent, 1:48 left  loss ...``."""
        return "  ".join(part for part in (self.steps(), self.values()) if part)

    def steps(self) -> str:
        """Steps done, and the time."""
        now = self.display.now()
        found = f"step {self.step}/{self.total}  {clock(now - self.started)} spent"
        if self.step == self.first:
            return found
        each = (self.ended - self.started) / (self.step - self.first)
        left = each * (self.total - self.step) - (now - self.ended)
        return f"{found}, {clock(max(left, 0.0))} left"

    def values(self) -> str:
        """What was measured."""
        known = [(k, name, form) for k, name, form in SHOWN if k in self.smooth]
        return "  ".join(f"{name} {form.format(self.smooth[k])}" for k, name, form in known)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last line standing."""
        if state.is_world_process_zero:
            if self.display.live is not None or self.shown < self.step:
                self.display.leave(self.line())
            self.display.before, self.display.behind = self.display.spent, str

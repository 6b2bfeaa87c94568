"""A run's steps for its display, and its metrics for its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefix_rft.runs.best import CHOOSES, best_of, history_of
from prefix_rft.runs.metric_names import EVALUATION, PROGRESS
from prefix_rft.runs.metrics import SUMMARY, append_metrics
from prefix_rft.support.display import Display, clock

PLAIN_LINES = 20
"""A fast run prints as many."""


class Progress(TrainerCallback):
    """Report a run's steps to a display, and its metrics to its folder.

    Rewards are noisy from step to step, so the line shows an average with a memory of about ten; of
    evaluations it shows the last one, and the best by the metric that ``chooses``.
    """

    def __init__(self, display: Display, folder: Path, chooses: str | None = None) -> None:
        self.display = display
        self.folder = folder
        self.chooses, self.best = chooses, ""
        self.smooth: dict[str, float] = {}
        self.started = self.ended = 0.0
        self.first = self.step = self.total = 0  # ``first``: from where this process goes on
        self.shown = -1  # the step of the last line that was due

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = self.ended = self.display.now()
        self.first = self.step = self.shown = state.global_step
        self.total = state.max_steps
        self._look_for_best(state)
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
        for key, _, _ in PROGRESS:
            value = logs.get(key)
            if isinstance(value, (int, float)):
                old = value if key.startswith(EVALUATION) else self.smooth.get(key, value)
                self.smooth[key] = 0.9 * old + 0.1 * value
        self._due()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print what was measured: evaluations are few, and a reader waits for them."""
        self._look_for_best(state)
        if state.is_world_process_zero and self.display.live is None:
            measured = self.values(EVALUATION)
            self.display.leave(f"step {state.global_step}/{self.total}  {measured}")

    def _look_for_best(self, state: Any) -> None:
        if self.chooses is not None:
            best = best_of(history_of(state.log_history, self.chooses))
            name = "" if self.chooses == CHOOSES[0] else f" {self.chooses}"
            self.best = "" if best is None else f"best{name} {best.value:.3f} at step {best.step}"

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
        text = f"step {self.step}/{self.total}  {clock(now - self.started)} spent"
        if self.step == self.first:
            return text
        each = (self.ended - self.started) / (self.step - self.first)
        left = each * (self.total - self.step) - (now - self.ended)
        return f"{text}, {clock(max(left, 0.0))} left"

    def values(self, beginning: str = "") -> str:
        """What was measured, of metrics whose names begin so."""
        known = [x for x in PROGRESS if x[0] in self.smooth and x[0].startswith(beginning)]
        measured = [f"{name} {form.format(self.smooth[k])}" for k, name, form in known]
        return "  ".join([*measured, *([self.best] if self.best else [])])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last line standing."""
        if state.is_world_process_zero:
            if self.display.live is not None or self.shown < self.step:
                self.display.leave(self.line())
            self.display.before, self.display.behind = self.display.spent, str

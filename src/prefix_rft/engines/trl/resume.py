"""Where a resumed run goes on, and what it finds written by the run that it goes on with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefix_rft.errors import UserError

WRITTEN = re.compile(r"(step|kept)_([0-9]{6,})\.jsonl")


class ResumesExactly:
    """Mixin for trainers: a run resumed from its last checkpoint trains nothing more.

    transformers' Trainer takes one step beyond ``max_steps`` before it notices.
    """

    state: Any
    control: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.add_callback(WholeRecord())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


class WholeRecord(TrainerCallback):
    """Every step of a run is in exactly one line of its log and one generation of its rollouts.

    Metrics wait in memory for the next line. One is due at each checkpoint, or a run resumed from
    it would never tell of the steps before it; and before each evaluation and the end of the run,
    for what waits when the trainer was last evaluating is never logged.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take away the rollouts of steps that a resumed run does anew."""
        if state.is_world_process_zero and state.global_step:
            cut_rollouts(Path(args.output_dir) / "rollouts", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due."""
        due = control.should_save or control.should_evaluate or control.should_training_stop
        if due and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due."""
        self.on_step_end(args, state, control)


def cut_rollouts(folder: Path, step: int) -> None:
    """Take away what a run has written of the optimizer steps from ``step`` on.

    Rollouts made before ``step`` stay, but later updates on them leave ``kept_N.jsonl``.

    Raises:
        UserError: a file is damaged.
    """
    for path in sorted(folder.glob("*.jsonl")):
        if not (name := WRITTEN.fullmatch(path.name)):
            continue
        if int(name[2]) >= step:
            path.unlink()
        elif name[1] == "kept":
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run may have left half a line, of an update behind its last checkpoint.
            whole = [line for line in lines if line.endswith("\n")]
            try:
                before = [line for line in whole if json.loads(line)["step"] < step]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
            if len(before) < len(lines):
                path.write_text("".join(before), encoding="utf-8")

"""Log and rollouts of a run that tell of every step once, also where it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefix_rft.engines.trl.safety.run_state import RunState
from prefix_rft.runs.checkpoints import go_back
from prefix_rft.runs.rollouts import cut_rollouts


class WholeRecord(TrainerCallback):
    """Every step of a run is in exactly one line of its log and one generation of its rollouts.

    Metrics wait in memory for the next line. One is due before each evaluation and the end of the
    run, for what waits when the trainer was last evaluating is never logged.

    Args:
        run_state: what a checkpoint has brought and transformers has set to zero since.

    Attributes:
        resumed_from: the checkpoint that the run goes on from; None where it begins.
        open: the run stops here but is to go on: what waits is in its checkpoint.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state
        self.resumed_from: Path | None = None
        self.open = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take away what tells of steps that a resumed run does anew."""
        run, checkpoint = Path(args.output_dir), self.resumed_from
        same_run = checkpoint is not None and checkpoint.resolve().parent == run.resolve()
        if state.is_world_process_zero and state.global_step and same_run:
            cut_rollouts(run / "rollouts", state.global_step)
            go_back(run, state.global_step)
        # transformers goes on with the rhythm of lines and checkpoints that the run began with.
        state.compute_steps(args, state.max_steps)
        self.run_state.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due."""
        due = control.should_evaluate or control.should_training_stop
        if due and not self.open and args.logging_strategy != "no":
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a line where one is due."""
        self.on_step_end(args, state, control)

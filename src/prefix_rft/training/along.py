"""Evaluations along the way: when one is due, and what it has for consequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from prefix_rft.engines.setup import Setup
from prefix_rft.recipe.along import refuse_unreached
from prefix_rft.runs.best import (
    BEST,
    NOTE,
    Chosen,
    best_of,
    drop_surpassed,
    history_of,
    settle,
    since_best,
)
from prefix_rft.support.errors import UserError
from prefix_rft.support.phases import Phases
from prefix_rft.training.held_out import measure


def evaluate_along(
    setup: Setup, trainer: Any, rows: Dataset, phases: Phases, say: Callable[[str], None]
) -> None:
    """Have a trainer evaluate its model along the way, keep the best and stop, as the recipe says.

    Args:
        setup: the resolved recipe, with ``eval_every``.
        trainer: the run's trainer.
        rows: the held-out rows.
        phases: hear how far an evaluation is.
        say: hears why the run ends early.

    Raises:
        UserError: the weights are spread over processes, which cannot be kept so yet.
    """
    recipe = setup.recipe
    trainer.held_out = lambda: measure(setup, trainer, rows, phases)
    trainer.add_callback(EvaluatesAlong(recipe.eval_every or 1))
    run, metric = Path(setup.args.output_dir), recipe.chooses
    if recipe.keep is not None and metric is not None:
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise UserError(
                "keep: best cannot be used with sharded weights (FSDP, DeepSpeed) yet: leave it out"
            )
        trainer.add_callback(KeepsBest(run, metric, trainer.save_whole_model))
    if recipe.stop_after is not None and metric is not None:
        trainer.add_callback(StopsAfter(recipe.stop_after, metric, say))


def settle_best(setup: Setup, trainer: Any) -> Chosen | None:
    """Give the best weights their last name; which they are, None where none are kept."""
    metric = setup.recipe.chooses
    if setup.recipe.keep is None or metric is None:
        return None
    run, history = Path(setup.args.output_dir), history_of(trainer.state.log_history, metric)
    best = best_of(history)
    if best is not None and trainer.accelerator.is_main_process:
        drop_surpassed(run, history)  # what a run has left that was killed before it did
        settle(run, best.step)
    trainer.accelerator.wait_for_everyone()
    return best


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


class KeepsBest(TrainerCallback):
    """Keep the weights of the best evaluation, each time that there is a better one.

    Args:
        run: the run's folder.
        metric: the metric by which they are chosen.
        save: saves the model as it is to a folder, with notes beside it; called on all processes.
    """

    def __init__(
        self, run: Path, metric: str, save: Callable[[Path, Mapping[str, Any]], None]
    ) -> None:
        self.run, self.metric, self.save = run, metric, save

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model if it is the best now."""
        best = best_of(history_of(state.log_history, self.metric))
        if best is not None and best.step == state.global_step:
            self.save(self.run / f"{BEST}-{best.step}", {NOTE: best.note(self.metric)})
            self.on_save(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete what was the best once, and is for no checkpoint any more."""
        if state.is_world_process_zero:
            drop_surpassed(self.run, history_of(state.log_history, self.metric))


class StopsAfter(TrainerCallback):
    """End a run after so many evaluations in a row that are not the best, as if it were done.

    Args:
        patience: the number of these evaluations.
        metric: the metric that says which one is the best.
        say: hears that the run ends, and why.
    """

    def __init__(self, patience: int, metric: str, say: Callable[[str], None]) -> None:
        self.patience, self.metric, self.say = patience, metric, say

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End at once where a run goes on that was to end."""
        self._look(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run, with a checkpoint as at its last step, if it is enough."""
        if self._look(state, control):
            control.should_save |= args.save_strategy == "steps"

    def _look(self, state: Any, control: Any) -> bool:
        history = history_of(state.log_history, self.metric)
        count, best = since_best(history), best_of(history)
        if count < self.patience or state.global_step >= state.max_steps:
            return False
        control.should_training_stop = True
        than = "had a value" if best is None else f"was above {best.value:.3f} of step {best.step}"
        self.say(
            f"stopped after step {state.global_step} (stop_after): {self.metric} of the last "
            f"{count} evaluations never {than}"
        )
        return True

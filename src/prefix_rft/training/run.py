"""One run: load, train, evaluate and save, in a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from prefix_rft.checks.preflight import preflight
from prefix_rft.data import DataError, load_rows
from prefix_rft.data.moment import tells_time
from prefix_rft.engines.models import load_model
from prefix_rft.engines.new_adapter import to_put_on
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.trl import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.trl.clock import stop_clock
from prefix_rft.engines.trl.policy import trained_weights
from prefix_rft.engines.trl.reward_model import LearntReward
from prefix_rft.engines.trl.safety.interrupt import StopOnSignal
from prefix_rft.engines.trl.safety.watch import ObservesMetrics
from prefix_rft.engines.trl.update.sparse_adapter import choose_places
from prefix_rft.recipe.resolved import resolved
from prefix_rft.recipe.rif_options import Filter
from prefix_rft.runs.best import BEST
from prefix_rft.runs.evaluations import HeldOut, write_evaluations
from prefix_rft.runs.folder import alone, begun, taken, write_start
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.console import say
from prefix_rft.support.display import Display
from prefix_rft.support.errors import Interrupted, UserError, one_line
from prefix_rft.support.phases import Phases
from prefix_rft.support.writing import check_folder, write_json
from prefix_rft.training.agreement import agree, agree_to_start, hears_others
from prefix_rft.training.along import evaluate_along, settle_best
from prefix_rft.training.held_out import evaluate_model, summarise
from prefix_rft.training.progress import Progress
from prefix_rft.training.resume import (
    ResumePoint,
    changes,
    clear,
    go_on_with,
    refuse_another_choice,
    refuse_another_model,
)
from prefix_rft.training.reward_learning import (
    LearningStage,
    compare_with_base,
    learn_reward,
    rows_of_stage,
)
from prefix_rft.training.rif import choose_rows, filter_rows, recorded

FILTERING = "sampling every prompt, to leave out those that teach nothing:"


@dataclass(frozen=True)
class Command:
    """How the run was asked for."""

    recipe: str
    overrides: tuple[str, ...]

    def to_go_on(self, start: ResumePoint, folder: Path) -> str:
        """The command that goes on with it."""
        return go_on_with(self.recipe, self.overrides, start, folder)


def run(setup: Setup, display: Display, start: ResumePoint, command: Command) -> Path:
    """Load, train, evaluate and save; returns the run folder.

    Args:
        setup: the resolved recipe.
        display: the display to report to.
        start: where the run goes on.
        command: the command, as it was asked for.
    """
    recipe, args = setup.recipe, setup.args
    console, phases = display.console, display.phases
    folder = Path(args.output_dir)
    check_folder(folder, "the run folder")
    phases.begin("reading the rows")
    rows, held_out = read_all(setup)
    phases.begin("loading the model")
    model, tokenizer = load_model(
        recipe.model_source(), recipe.folder, trainable=True, **recipe.model_options
    )
    if args.chat_template_date is None and tells_time(tokenizer):
        args.chat_template_date = start.date()
    stop_clock(args, tokenizer)
    rows, held_out = preflight(setup, model, tokenizer, rows, held_out, console, phases)
    filtered, stage, rewards = None, LearningStage.of(setup), setup.rewards
    if recipe.rif is not None:
        rows, filtered = filter_prompts(setup, model, tokenizer, rows, display)
    if stage is not None:
        rewards = [LearntReward(recipe.reward_learning or {})]
        rows = rows_of_stage(rows, stage.options, recipe.turn, args.seed)
    agree(rows)
    # Looked at before the trainer is made, which writes what TRL and trackers want there.
    others = start.folder is None and taken(folder)
    phases.begin("making the trainer")
    with stage.compares(model) if stage is not None else nullcontext():
        trainer = make_trainer(setup, model, tokenizer, rows, rewards, phases)
    main = trainer.accelerator.is_main_process
    with ExitStack() as stack:
        refused = claim(setup, start, stack, others) if main else None
        agree_to_start(refused, start)
        if start.checkpoint is not None:
            trainer.verify_checkpoint(start.checkpoint)
        elif main:
            begin(setup, start, console)
        if main and filtered is not None:
            write_json(folder / "rif.json", filtered)
        trainer.add_callback(Loaded(lambda: begin(setup, start, console), start))
        with hears_others(trainer, lambda: command.to_go_on(start, folder)):
            if stage is not None:
                compare_with_base(trainer.policy, recipe.turn)
                learn_reward(setup, stage, trainer, rewards[0], display)
            return work(setup, display, trainer, held_out, lambda: command.to_go_on(start, folder))


def read_all(setup: Setup) -> tuple[Dataset, Dataset | None]:
    """The rows to train on, and the held-out ones where they can be graded."""
    recipe = setup.recipe
    reading = recipe.reading(setup.args.seed)
    rows = load_rows(recipe.train_data, folder=recipe.folder, reading=reading)
    if recipe.eval_data is None or not setup.rewards:
        return rows, None
    return rows, load_rows(
        recipe.eval_data, folder=recipe.folder, reading=reading, limit=recipe.eval_problems
    )


def filter_prompts(
    setup: Setup, model: Any, tokenizer: Any, rows: Dataset, display: Display
) -> tuple[Dataset, dict[str, Any]]:
    """The rows that the recipe's ``rif`` leaves, and its record; a run that goes on has one."""
    args, console = setup.args, display.console
    rule, record = Filter.read(setup.recipe.rif or {}), Path(args.output_dir) / "rif.json"
    if args.resume_from_checkpoint and record.is_file():
        return choose_rows(rule, rows, recorded(rule, rows, record), console)
    display.soon()
    display.phases.begin(FILTERING, len(rows))
    tick = display.phases.at
    return filter_rows(rule, model, tokenizer, rows, setup.rewards[0], args, console, tick)


def make_trainer(
    setup: Setup, model: Any, tokenizer: Any, rows: Dataset, rewards: list[Any], phases: Phases
) -> Any:
    """The trainer of the recipe's method; folders that it made for nothing are taken back.

    Raises:
        UserError: a setting or a row that it cannot use.
    """
    folder = Path(setup.args.output_dir)
    new = [f for f in (folder, folder.parent) if not f.exists()]
    shared: dict[str, Any] = {
        "train_dataset": rows,
        "processing_class": tokenizer,
        "phases": phases,
    }
    shared["peft_config"] = to_put_on(model, setup.recipe.peft)
    try:
        choose_places(shared["peft_config"], model, tokenizer, rows, setup.args)
        if setup.method.samples:
            return PrefixRFTTrainer(model, rewards, setup.args, **shared)
        return DemonstrationTrainer(model, setup.args, **shared)
    except DataError as error:
        remove_empty(new)
        raise UserError(f"data '{setup.recipe.train_data}': {error}") from error
    except UserError:
        remove_empty(new)
        raise
    except (ValueError, ImportError) as error:
        remove_empty(new)
        raise UserError(f"the trainer cannot be made: {one_line(error)}") from error


def claim(setup: Setup, start: ResumePoint, stack: ExitStack, others: bool) -> str | None:
    """Take the run folder for this process while ``stack`` is open; why it cannot be had, if so.

    Args:
        setup: the resolved recipe.
        start: where the run goes on.
        stack: holds the folder's lock.
        others: someone had written into the new folder before the trainer was made.
    """
    folder = Path(setup.args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone(folder))
        start.verify_unchanged()
        if start.checkpoint is not None:
            before = RunFolder(folder).recipe()
            now = resolved(setup.recipe, setup.method, setup.args)
            refuse_another_model(folder, before, now)
            refuse_another_choice(start.checkpoint, before, now)
        if others or (start.folder is None and begun(folder)):
            raise UserError(f"another run has taken the folder '{folder}': start again")
    except UserError as error:
        return str(error)
    return None


class Loaded(TrainerCallback):
    """A run that goes on changes its folder once its checkpoint has been loaded, not before."""

    def __init__(self, begin: Callable[[], None], start: ResumePoint) -> None:
        self.begin, self.waits = begin, start.checkpoint is not None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the run is now."""
        if self.waits and state.is_world_process_zero:
            self.begin()


def begin(setup: Setup, start: ResumePoint, console: Console) -> None:
    """Write what the run is, and clear what an earlier part of it left behind its checkpoint."""
    folder = Path(setup.args.output_dir)
    recipe = resolved(setup.recipe, setup.method, setup.args)
    if start.folder is None:
        write_start(folder, recipe)
        return
    changed = changes(RunFolder(folder).recipe(), recipe)
    clear(start)
    for key, (before, after) in changed.items():
        say(console, f"changed since the run began: {key}: {before} -> {after}")
    write_start(folder, recipe, {"step": start.step, "changed": changed})


def work(
    setup: Setup,
    display: Display,
    trainer: Any,
    held_out: Dataset | None,
    go_on: Callable[[], str],
) -> Path:
    """Train, evaluate before and after, save."""
    args, folder = setup.args, Path(setup.args.output_dir)
    console, phases = display.console, display.phases
    main = trainer.accelerator.is_main_process
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(display, folder, setup.recipe.chooses))
    trainer.add_callback(trainer.pop_callback(ObservesMetrics))  # what it stops is written first
    trainer.warn = lambda words: say(console, f"warning: {words}", style="yellow")
    if main:
        say(console, f"{setup.method.name}: {setup.method.about.summary}")
        say(console, str(trainer.demonstrations))
        say(console, str(setup.plan))
        say(console, trained_weights(trainer.policy))

    # Every process evaluates, with the same samples: a sharded model needs them all.
    evaluations: dict[str, HeldOut] = {}

    def evaluate_as(name: str, step: int | None = None) -> None:
        if held_out is None:
            return
        if step is not None and step == trainer.state.global_step:
            evaluations[name] = replace(evaluations["trained"], step=step)  # the same weights
        else:
            display.soon()
            phases.begin(f"evaluating the {name} model", len(held_out))
            evaluations[name] = evaluate_model(setup, trainer, held_out, phases.at, step)
        if main:
            write_evaluations(folder, evaluations)

    if held_out is not None and setup.recipe.eval_every is not None:
        evaluate_along(setup, trainer, held_out, phases, lambda words: say(console, words))
    evaluate_as("base")
    with StopOnSignal(trainer.processes, trainer.record, lambda words: say(console, words)) as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if stop.stopped and stop.caught is not None:
        saved = f"stopped after step {trainer.state.global_step}, which is saved"
        if args.save_only_model:
            raise Interrupted(f"{saved} as weights alone (save_only_model)", stop.caught)
        raise Interrupted(f"{saved}; go on with: {go_on()}", stop.caught)
    trainer.save_whole_model(folder / "model")
    best = settle_best(setup, trainer)
    evaluate_as("trained")
    if best is not None:
        evaluate_as(BEST, best.step)
    if main:
        summarise(console, folder, evaluations)
    trainer.accelerator.wait_for_everyone()  # the next stage reads what one process has written
    return folder


def remove_empty(folders: Sequence[Path]) -> None:
    """Take back new folders that no file was written to, the inner one first."""
    for folder in folders:
        if folder.is_dir() and all(p.is_dir() for p in folder.rglob("*")):
            shutil.rmtree(folder)

"""``prefix-rft train``: from a recipe to a trained, evaluated model in a run folder."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback

from prefix_rft.configure import Setup, configure, is_checkpoint
from prefix_rft.core import Method
from prefix_rft.data import DataError, load_rows
from prefix_rft.data.rows import PLACE
from prefix_rft.engines.trl import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.errors import UserError
from prefix_rft.evaluate import Evaluation, Request, evaluate
from prefix_rft.models import load_model, one_line, quiet
from prefix_rft.preflight import preflight
from prefix_rft.progress import Progress
from prefix_rft.recipe import Recipe, read_recipe, stage_names
from prefix_rft.rif import Filter, choose_rows, filter_rows, recorded
from prefix_rft.run_folder import cut_metrics, write_json, write_start


def train(path: str, overrides: Sequence[str], console: Console) -> Path:
    """Train as the recipe says, stage by stage; returns the last run folder.

    Raises:
        UserError: anything in the recipe, data, model or reward that cannot be used.
    """
    quiet()
    data = read_recipe(path, overrides)
    names = stage_names(data)
    first, model = resumed_stage(data, names)
    # All stages are resolved before the first one runs: a fault in the last costs no time.
    for stage in range(first, len(names)) if len(names) > 1 else ():
        configure(path, overrides, stage, model).close()
    folder = Path()
    for stage in range(first, len(names)):
        if len(names) > 1:
            console.print(f"stage {stage + 1} of {len(names)}: {names[stage]}", highlight=False)
        later = overrides if stage == first else without_resume(overrides)
        with closing(configure(path, later, stage, model)) as setup:
            folder = run(setup, console)
        model = str((folder / "model").resolve())
        gc.collect()  # a trainer and its callbacks know each other: free it before the next one
    return folder


def resumed_stage(data: dict[str, Any], names: Sequence[str]) -> tuple[int, str | None]:
    """The stage that a run goes on from, and the model that this stage had started from.

    Raises:
        UserError: the checkpoint belongs to no stage.
    """
    checkpoint = data.get("resume_from_checkpoint")
    if checkpoint is None or len(names) == 1:
        return 0, None
    is_checkpoint(checkpoint)
    folder = Path(str(checkpoint)).resolve().parent
    for stage, name in enumerate(names):
        if re.fullmatch(rf"{re.escape(name)}(-\d+)?", folder.name):
            known = read_recipe(folder / "recipe.yaml")
            return stage, None if stage == 0 else str(known["model"])
    raise UserError(
        f"resume_from_checkpoint '{checkpoint}' is of none of the stages {', '.join(names)}"
    )


def without_resume(overrides: Sequence[str]) -> list[str]:
    """The overrides for a stage that begins."""
    return [*overrides, "resume_from_checkpoint=null"]


def run(setup: Setup, console: Console) -> Path:
    """Load, train, evaluate and save; returns the run folder."""
    recipe, method, rewards = setup.recipe, setup.method, setup.rewards
    args, plan = setup.args, setup.plan
    if int(os.environ.get("RANK", "0")):
        console = Console(quiet=True)  # one process speaks for all
    rows = load_rows(recipe.train_data, folder=recipe.folder, reading=recipe.reading(args.seed))
    held_out = None
    if recipe.eval_data is not None and rewards:
        held_out = load_rows(
            recipe.eval_data,
            folder=recipe.folder,
            reading=recipe.reading(args.seed),
            limit=recipe.eval_problems,
        )
    kwargs = dict(recipe.trainer.get("model_init_kwargs") or {})
    model, tokenizer = load_model(recipe.model_source(), **kwargs)

    rows, held_out = preflight(setup, model, tokenizer, rows, held_out, console)
    folder = Path(args.output_dir)
    filtered = None
    if recipe.rif is not None:
        rule, record = Filter.read(recipe.rif), folder / "rif.json"
        if args.resume_from_checkpoint and record.is_file():
            rows, filtered = choose_rows(rule, rows, recorded(rule, rows, record), console)
        else:
            with console.status("sampling every prompt, to leave out those that teach nothing"):
                rows, filtered = filter_rows(
                    rule, model, tokenizer, rows, rewards[0], args, console
                )
    agree(rows)
    new = [f for f in (folder, folder.parent) if not f.exists()]
    shared: dict[str, Any] = {"train_dataset": rows, "processing_class": tokenizer}
    try:
        if method.samples:
            trainer: Any = PrefixRFTTrainer(model, rewards, args, **shared)
        else:
            trainer = DemonstrationTrainer(model, args, **shared)
    except DataError as error:
        remove_empty(new)
        raise UserError(f"data '{recipe.train_data}': {error}") from error
    except UserError:
        remove_empty(new)
        raise
    except (ValueError, ImportError) as error:
        remove_empty(new)
        raise UserError(f"the trainer cannot be made: {one_line(error)}") from error
    main = trainer.accelerator.is_main_process
    if main:
        write_start(folder, resolved(recipe, method, args))
        if filtered is not None:
            write_json(folder / "rif.json", filtered)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(console, folder))
    if main:
        console.print(f"{method.name}: {method.summary}", highlight=False)
        console.print(str(trainer.demonstrations), highlight=False)
        console.print(str(plan), highlight=False)

    # Every process evaluates, with the same samples: a sharded model needs them all.
    evaluations: dict[str, Evaluation] = {}
    if held_out is not None:
        with console.status("evaluating the base model"):
            evaluations["base"] = evaluate_model(recipe, args, model, tokenizer, held_out, rewards)
    if main and args.resume_from_checkpoint:
        cut_metrics(folder, int(Path(args.resume_from_checkpoint).name.rpartition("-")[2]))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(str(folder / "model"))
    if held_out is not None:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        with console.status("evaluating the trained model"):
            evaluations["trained"] = evaluate_model(
                recipe, args, trained, tokenizer, held_out, rewards
            )
    if main:
        # A pickle with the arguments, of no use to anyone who loads the model.
        (folder / "model" / "training_args.bin").unlink(missing_ok=True)
        if evaluations:
            write_json(folder / "eval.json", {k: asdict(v) for k, v in evaluations.items()})
        summarise(console, folder, evaluations)
    trainer.accelerator.wait_for_everyone()  # the next stage reads what one process has written
    return folder


def agree(rows: Dataset) -> None:
    """Make sure that all processes train on the same rows, whatever their graders said.

    Raises:
        UserError: they do not.
    """
    kept = [(row[PLACE], len(row["demonstration"])) for row in _cells(rows)]
    own = hashlib.sha256(repr(kept).encode()).hexdigest()
    if len(set(gather_object([own]))) > 1:
        raise UserError(
            "processes disagree on which rows and demonstrations can be graded: "
            "let the grader give the same verdict each time"
        )


def _cells(rows: Dataset) -> Iterator[Any]:
    yield from rows.select_columns([PLACE, "demonstration"])


def remove_empty(folders: Sequence[Path]) -> None:
    """Take back new folders that nothing was written to, the inner one first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def evaluate_model(
    recipe: Recipe, args: Any, model: Any, tokenizer: Any, rows: Any, rewards: list[Any]
) -> Evaluation:
    """Held-out avg@k of the first reward function."""
    request = Request(
        samples=recipe.eval_samples,
        temperature=recipe.eval_temperature,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
        template_kwargs=getattr(args, "chat_template_kwargs", None),
    )
    return evaluate(model, tokenizer, rows, rewards[0], request)


def resolved(recipe: Recipe, method: Method, args: Any) -> dict[str, Any]:
    """Everything that decided the run, as plain data."""
    ours = {k: v for k, v in asdict(recipe).items() if k not in ("trainer", "folder", "method")}
    options = {k: asdict(v) if hasattr(v, "kind") else v for k, v in method.options.items()}
    init = dict(recipe.trainer.get("model_init_kwargs") or {})
    trainer = {k: v for k, v in args.to_dict().items() if v is not None}
    named = {"name": recipe.method_name, **options}
    return _plain({**ours, "method": named, "model_init_kwargs": init, "trainer": trainer})


SECRETS = ("token", "hub_token", "push_to_hub_token", "use_auth_token", "api_key", "password")
"""Keys that never reach the run folder, at any depth."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if k not in SECRETS}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def summarise(console: Console, folder: Path, evaluations: dict[str, Evaluation]) -> None:
    """The table at the end, and where the files are."""
    if evaluations:
        first = next(iter(evaluations.values()))
        table = Table(title=f"{first.problems} held-out problems")
        for column in ("model", f"avg@{first.samples}", "95 % interval", "truncated", "no answer"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in evaluations.items():
            interval = f"{e.low:.1%} to {e.high:.1%}"
            table.add_row(
                name, f"{e.mean:.1%}", interval, f"{e.truncated:.1%}", f"{e.no_answer:.1%}"
            )
        console.print(table)
    console.print(f"model, metrics and rollouts: {folder}", highlight=False, soft_wrap=True)

"""``prefix-rft train``: from a recipe to a trained, evaluated model in a run folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from prefix_rft.core import Method
from prefix_rft.data import load_rows
from prefix_rft.engines.trl import DemonstrationTrainer, PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.engines.trl.sft import DemonstrationConfig
from prefix_rft.errors import UserError, check_types
from prefix_rft.evaluate import Evaluation, evaluate
from prefix_rft.imports import load_function
from prefix_rft.methods import load
from prefix_rft.progress import Progress
from prefix_rft.recipe import BatchPlan, Recipe, load_recipe, plan_batches
from prefix_rft.run_folder import free_run_folder, write_json, write_start


def train(path: str, overrides: Sequence[str], console: Console) -> Path:
    """Train as the recipe says; returns the run folder.

    Raises:
        UserError: anything in the recipe, data, model or reward that cannot be used.
    """
    quiet()
    recipe = load_recipe(path, overrides)
    method = load(recipe.method_name, **recipe.method_options)
    config_class = PrefixRFTConfig if method.samples else DemonstrationConfig
    keys = [f.name for f in fields(config_class) if f.init]
    recipe = load_recipe(path, overrides, keys)
    rewards = reward_functions(recipe, method)
    rows = load_rows(recipe.path(recipe.train_data), recipe.columns)
    held_out = None
    if recipe.eval_data is not None and rewards:
        held_out = load_rows(recipe.path(recipe.eval_data), recipe.columns)
        if recipe.eval_problems is not None:
            held_out = held_out.select(range(min(recipe.eval_problems, len(held_out))))
    args, plan = trainer_arguments(recipe, method, config_class)
    kwargs = dict(recipe.trainer.get("model_init_kwargs") or {})
    model, tokenizer = load_model(recipe.model_source(), **kwargs)

    folder = Path(args.output_dir)
    shared: dict[str, Any] = {"train_dataset": rows, "processing_class": tokenizer}
    try:
        if method.samples:
            trainer: Any = PrefixRFTTrainer(model, rewards, args, **shared)
        else:
            trainer = DemonstrationTrainer(model, args, **shared)
    except UserError:
        raise
    except (ValueError, ImportError) as error:
        raise UserError(f"the trainer cannot be made: {_one_line(error)}") from error
    main = trainer.accelerator.is_main_process
    if main:
        write_start(folder, resolved(recipe, method, args))
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
    trainer.train()
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
    return folder


def quiet() -> None:
    """Silence other libraries' bars and notices: a run has one line of its own."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # TRL reads a name that transformers has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")


def reward_functions(recipe: Recipe, method: Method) -> list[Any]:
    """The recipe's reward functions.

    Raises:
        UserError: one cannot be imported, or a method that samples has none.
    """
    paths = [recipe.reward] if isinstance(recipe.reward, str) else list(recipe.reward or [])
    if method.samples and not paths:
        raise UserError(
            f"method '{method.name}' needs a reward: add reward: package.module:function"
        )
    return [load_function(path, recipe.folder) for path in paths]


def trainer_arguments(recipe: Recipe, method: Method, config_class: type) -> tuple[Any, BatchPlan]:
    """The trainer's configuration, and how the rows of a step are split.

    Raises:
        UserError: numbers that do not divide, or a value that TRL refuses.
    """
    given = {k: v for k, v in recipe.trainer.items() if k != "model_init_kwargs"}
    kinds = {f.name: getattr(f.type, "__name__", str(f.type)) for f in fields(config_class)}
    check_types("recipe key", given, kinds)
    if given.get("learning_rate", 0.0) < 0 or given.get("seed", 0) < 0:
        raise UserError("recipe keys 'learning_rate' and 'seed' must be at least 0")
    generations = int(given.get("num_generations", 8)) if method.samples else 1
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    plan = plan_batches(recipe.prompts_per_step, generations, recipe.micro_batch_size, processes)
    defaults: dict[str, Any] = {
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
    }
    if method.samples:
        defaults |= {"num_generations": generations, "log_rollouts": True}
    if not torch.accelerator.is_available():
        defaults |= {"use_cpu": True, "bf16": False, "activation_checkpointing": False}
    derived = {
        "output_dir": str(free_run_folder(Path(recipe.runs), recipe.name)),
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "method": recipe.method_name,
        "method_options": recipe.method_options,
    }
    try:
        return config_class(**{**defaults, **given, **derived}), plan
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"the recipe's trainer settings are refused: {_one_line(error)}") from error


def load_model(source: str, **kwargs: Any) -> tuple[Any, Any]:
    """Model and tokenizer, from safetensors, without running code that comes with them.

    Args:
        source: a folder or a Hub name.
        kwargs: for ``from_pretrained``, such as ``dtype`` (float32 unless given: weights in
            bfloat16 swallow the small steps of RL) or ``attn_implementation``.

    Raises:
        UserError: there is none at ``source``.
    """
    options = {"dtype": "float32", **kwargs, "trust_remote_code": False, "use_safetensors": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"model '{source}' cannot be loaded: {_one_line(error)}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    embeddings: Any = model.get_input_embeddings()
    known = embeddings.num_embeddings
    if len(tokenizer) > known:
        raise UserError(
            f"model '{source}': the tokenizer has {len(tokenizer)} tokens, the model knows {known}"
        )
    return model, tokenizer


def _one_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def evaluate_model(
    recipe: Recipe, args: Any, model: Any, tokenizer: Any, rows: Any, rewards: list[Any]
) -> Evaluation:
    """Held-out avg@k of the first reward function."""
    return evaluate(
        model,
        tokenizer,
        rows,
        rewards[0],
        samples=recipe.eval_samples,
        temperature=recipe.eval_temperature,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
    )


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
        for column in ("model", f"avg@{first.samples}", "95 % interval", "truncated"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in evaluations.items():
            interval = f"{e.low:.1%} to {e.high:.1%}"
            table.add_row(name, f"{e.mean:.1%}", interval, f"{e.truncated:.1%}")
        console.print(table)
    console.print(f"model, metrics and rollouts: {folder}", highlight=False, soft_wrap=True)

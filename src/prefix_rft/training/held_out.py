"""How good a run's model is on its held-out rows: before, along the way, and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table

from prefix_rft.engines.models import load_model
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.evaluation.along import metrics_along, same_random_state, seed_along
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate, sampled
from prefix_rft.evaluation.table import few_of
from prefix_rft.runs.best import BEST
from prefix_rft.runs.evaluations import HeldOut
from prefix_rft.support.console import say
from prefix_rft.support.phases import Phases


def request_of(setup: Setup, tokenizer: Any, samples: int, seed: int) -> Request:
    """How held-out rows are sampled, as the recipe says.

    Args:
        setup: the resolved recipe.
        tokenizer: the model's tokenizer.
        samples: the samples of each problem.
        seed: the seed of the samples.
    """
    recipe, args = setup.recipe, setup.args
    return Request(
        samples=samples,
        temperature=recipe.eval_temperature,
        max_completion_length=args.max_completion_length,
        seed=seed,
        batch_size=args.per_device_train_batch_size,
        template_kwargs=template_kwargs(args, tokenizer),
    )


def evaluate_model(
    setup: Setup,
    trainer: Any,
    rows: Dataset,
    tick: Callable[[int], None] = lambda done: None,
    step: int | None = None,
) -> HeldOut:
    """Held-out avg@k of the first reward function.

    Args:
        setup: the resolved recipe.
        trainer: the run's trainer.
        rows: the held-out rows.
        tick: called with how many problems are sampled.
        step: the step whose weights were the best and are to be evaluated, at the end of a run
            whose last ones are needed no more; None for the model as it is.
    """
    recipe, tokenizer, model = setup.recipe, trainer.processing_class, trainer.policy
    if step is not None:
        model.to("cpu")  # one model at a time
        best = str((Path(setup.args.output_dir) / BEST).resolve())
        model, _ = load_model(best, recipe.folder, **recipe.model_options)
        model.to(trainer.accelerator.device)
    request = request_of(setup, tokenizer, recipe.eval_samples, setup.args.seed)
    # In the precision of training, which accelerate gives to the model once it is being trained.
    with trainer.accelerator.autocast():
        found = evaluate(model, tokenizer, rows, setup.rewards[0], request, tick)
    return replace(found, step=step)


def measure(setup: Setup, trainer: Any, rows: Dataset, phases: Phases) -> dict[str, float]:
    """The numbers of one evaluation along the way; nothing of the run's own state is changed.

    Args:
        setup: the resolved recipe.
        trainer: the run's trainer.
        rows: the held-out rows.
        phases: hear how far it is.
    """
    started, tokenizer, model = time.monotonic(), trainer.processing_class, trainer.policy
    samples, seed = setup.recipe.eval_every_samples or 1, seed_along(setup.args.seed)
    request = request_of(setup, tokenizer, samples, seed)
    phases.begin("evaluating", len(rows))
    with same_random_state(trainer.accelerator.device), trainer.accelerator.autocast():
        problems = sampled(model, tokenizer, rows, setup.rewards[0], request, phases.at)
    return {**metrics_along(problems), "eval_runtime": time.monotonic() - started}


def summarise(console: Console, folder: Path, evaluations: dict[str, HeldOut]) -> None:
    """The table at the end, and where the files are."""
    if evaluations:
        first = next(iter(evaluations.values()))
        most = max(e.problems for e in evaluations.values())
        table = Table(title=f"{most} held-out problems")
        for column in ("model", f"avg@{first.samples}", "95 % interval", "truncated", "no answer"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for name, e in evaluations.items():
            few = few_of(e.problems, most)
            interval = f"{e.low:.1%} to {e.high:.1%}{' ' * bool(few)}{few}"
            of_step = "" if e.step is None else f", step {e.step}"
            table.add_row(
                name + of_step,
                f"{e.mean:.1%}",
                interval,
                f"{e.truncated:.1%}",
                f"{e.no_answer:.1%}",
            )
        console.print(table)
    if BEST in evaluations:
        say(
            console,
            f"{folder / BEST} was chosen on these problems, so its number flatters it: evaluate it "
            "on others (prefix-rft eval) before you report it",
        )
    say(console, f"model, metrics and rollouts: {folder}")

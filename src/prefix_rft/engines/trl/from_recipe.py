"""``engine: trl``: what of a recipe is particular to TRL's trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Never

from rich.console import Console

from prefix_rft.core import Method
from prefix_rft.engines.new_adapter import adapter_config
from prefix_rft.recipe.batches import BatchPlan
from prefix_rft.recipe.recipe import Recipe

RUNS_ITSELF = False
DROPS_UNREADABLE = True


def refuse(recipe: Recipe, method: Method) -> None:
    """A recipe's keys are TRL's, whose configuration refuses by itself; an adapter's are not.

    Raises:
        UserError: an option of ``peft`` that peft does not have.
    """
    if recipe.peft is not None:
        adapter_config(recipe.peft)


def verify_settings(recipe: Recipe, args: Any) -> str | None:
    """Nothing is left to verify: ``args`` are TRL's own configuration."""
    return None


def prompts_per_generation(plan: BatchPlan, args: Any) -> int:
    """Prompts that are sampled from together; rows that do not fill one are left out."""
    return args.generation_batch_size // plan.generations


def steps_of_epoch(plan: BatchPlan, args: Any, method: Method, rows: int) -> int:
    """Optimizer steps of one pass over so many rows, as the trainers count them."""
    if method.samples:
        # TRL's sampler leaves out what does not fill a generation.
        generations = rows // prompts_per_generation(plan, args)
        batches = generations * args.num_iterations * args.steps_per_generation
    else:
        # Batches go round the processes; the last one and the last round are filled up.
        size, processes = plan.micro_batch_size, plan.processes
        drop = args.dataloader_drop_last
        batches = rows // size if drop else -(-rows // size)
        batches = batches // processes if drop else -(-batches // processes)
    return -(-batches // args.gradient_accumulation_steps)


def iterations(args: Any) -> int:
    """How often the prompts of a step are counted for one generation of rollouts."""
    return getattr(args, "num_iterations", 1)


def refuse_changes(
    folder: Path, changed: dict[str, list[str | None]], recipe: dict[str, Any]
) -> None:
    """Nothing is refused here: a checkpoint knows the settings that it was made with."""


def run(recipe: Recipe, args: Any, folder: Path, console: Console, resume: bool) -> Never:
    """The trainers do not run by themselves: ``training`` does."""
    raise NotImplementedError("engine trl is run by prefix_rft.training")

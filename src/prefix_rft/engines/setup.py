"""From a recipe to a method, rewards and the trainer's configuration; no model is loaded."""

from __future__ import annotations

import math
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    is_azureml_available,
)
from transformers.integrations.integration_utils import is_flytekit_available

from prefix_rft.core import Method
from prefix_rft.data import find_source
from prefix_rft.engines.options import SHARED, resolve
from prefix_rft.engines.packages import check_packages
from prefix_rft.engines.trl import DemonstrationConfig, PrefixRFTConfig
from prefix_rft.engines.trl.ranges import check_numbers
from prefix_rft.engines.trl.update.parameter_mask import MaskOptions
from prefix_rft.engines.verl import from_recipe as cluster
from prefix_rft.recipe.batches import BatchPlan, plan_batches
from prefix_rft.recipe.recipe import RECOMPUTE, Recipe, load_recipe
from prefix_rft.recipe.rif_options import Filter
from prefix_rft.rewards import BUILT_IN, close_all, load_rewards
from prefix_rft.runs.folder import free_run_folder
from prefix_rft.support.errors import UserError, check_types, choose, one_line
from prefix_rft.support.imports import load_function


@dataclass(frozen=True)
class Setup:
    """Everything that a recipe decides.

    Attributes:
        recipe: as it stands, with overrides.
        method: the one that is estimated, written, and trained, with all its options.
        rewards: functions with TRL's signature; ``verdicts`` are those of the last call.
        args: the trainer's configuration.
        plan: how the rows of a step are split.
    """

    recipe: Recipe
    method: Method
    rewards: list[Any]
    args: Any
    plan: BatchPlan

    @property
    def prompts_per_generation(self) -> int:
        """Prompts that are sampled from together; rows that do not fill one are left out."""
        if self.recipe.engine == "verl":
            return self.plan.prompts
        return self.args.generation_batch_size // self.plan.generations

    def steps_of_epoch(self, rows: int) -> int:
        """Optimizer steps of one pass, as the trainers count them; see :meth:`total_steps`."""
        args = self.args
        if self.recipe.engine == "verl":  # a batch is one step, however often it is used
            return rows // self.plan.prompts
        if self.method.samples:
            # TRL's sampler leaves out what does not fill a generation.
            generations = rows // self.prompts_per_generation
            batches = generations * args.num_iterations * args.steps_per_generation
        else:
            # Batches go round the processes; the last one and the last round are filled up.
            size, processes = self.plan.micro_batch_size, self.plan.processes
            drop = args.dataloader_drop_last
            batches = rows // size if drop else -(-rows // size)
            batches = batches // processes if drop else -(-batches // processes)
        return -(-batches // args.gradient_accumulation_steps)

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the run.

        Args:
            rows: that are trained on: demonstrations for a method that does not sample.
        """
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self.steps_of_epoch(rows))

    def close(self) -> None:
        """End the rewards' processes."""
        close_all(self.rewards)


def configure(
    path: str,
    overrides: Sequence[str],
    stage: int = 0,
    model: str | None = None,
    folder: Path | None = None,
) -> Setup:
    """Read a recipe and resolve it.

    Args:
        path: of the recipe.
        overrides: ``key=value`` strings.
        stage: index of the stage, for a recipe with several.
        model: in place of the recipe's, as a later stage has it.
        folder: of the run, in place of a new one.

    Raises:
        UserError: anything in it that cannot be used.
    """
    recipe = load_recipe(path, overrides, None, stage, model)
    if ":" in recipe.method_name:  # a module beside the recipe can be named too
        load_function(recipe.method_name, recipe.folder, "method")
    method = resolve(
        recipe.method_name,
        recipe.method_options,
        {k: recipe.trainer[k] for k in SHARED if k in recipe.trainer},
        "as a key of the recipe",
        "under method",
    )
    config_class = PrefixRFTConfig if method.samples else DemonstrationConfig
    keys = [f.name for f in fields(config_class) if f.init]
    recipe = load_recipe(path, overrides, keys, stage, model)
    if recipe.engine == "verl":
        cluster.refuse(recipe, method)
    mask = recipe.trainer.get("parameter_mask")
    if mask is not None:
        data = MaskOptions.read(mask).data
        if data is not None and (recipe.folder / data).exists():  # paths are those of the recipe
            mask = {**mask, "data": str(recipe.folder / data)}
            recipe = replace(recipe, trainer={**recipe.trainer, "parameter_mask": mask})
        elif data is not None:
            find_source(data, recipe.folder)
    if recipe.rif is not None:
        Filter.read(recipe.rif)
        if not recipe.reward:
            raise UserError("rif needs a reward, which says what is solved")
    rewards, weights = reward_functions(recipe, method)
    args, plan = trainer_arguments(recipe, method, config_class, folder)
    check_trackers(args.report_to)
    check_packages(args, recipe.model_options)
    if method.samples and args.reward_weights is None:
        args.reward_weights = weights
    return Setup(recipe, args.resolve_method(), rewards, args, plan)


def reward_functions(recipe: Recipe, method: Method) -> tuple[list[Any], list[float]]:
    """The recipe's reward functions and their weights.

    Raises:
        UserError: one cannot be used, or a method that samples has none.
    """
    rewards, weights = load_rewards(recipe.reward, recipe.folder)
    if method.samples and not rewards:
        raise UserError(
            f"method '{method.name}' needs a reward: add reward: {', '.join(BUILT_IN)}, or "
            "package.module:function"
        )
    if any(w != 1.0 for w in weights) and "reward_weights" in recipe.trainer:
        raise UserError("give weights with the rewards or as reward_weights, not both")
    return rewards, weights


def is_checkpoint(path: Any) -> None:
    """Raise UserError unless this is a checkpoint's folder."""
    folder = Path(str(path))
    numbered = folder.name.startswith("checkpoint-") and folder.name[11:].isdigit()
    if not numbered or not (folder / "trainer_state.json").is_file():
        raise UserError(
            f"resume_from_checkpoint '{path}' is no checkpoint: name a folder RUN/checkpoint-N"
        )


REFUSALS = (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError, AssertionError)
"""What TRL, transformers and accelerate raise for a setting that they cannot use."""

UNLISTED = {"azure_ml": is_azureml_available, "flyte": is_flytekit_available}
"""Trackers that transformers may leave out of its list although they can be used."""

FIXES = {
    "azure_ml": "pip install azureml-sdk",
    "comet_ml": "pip install comet-ml",
    "flyte": "pip install flytekit",
    "kubeflow": "set KUBEFLOW_TRAINER_SERVER_URL",
}
"""What makes a tracker usable, where it is not a package of its name."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that transformers does not know, or that is not installed."""
    listed = get_available_reporting_integrations() if names else ()
    for name in names:
        if isinstance(name, str) and "," in name:
            raise UserError(f"report_to must be a list for several trackers: [{name}]")
        choose("tracker in report_to", name, INTEGRATION_TO_CALLBACK)
        if name not in listed and not (name in UNLISTED and UNLISTED[name]()):
            raise UserError(
                f"report_to: tracker '{name}' is not installed or not configured: "
                f"{FIXES.get(name, f'pip install {name}')}, or leave report_to out "
                "(metrics.jsonl is always written)"
            )


def kind_of(annotation: Any) -> str:
    """The kind of values that an annotation of TRL's means, in the words of ``check_types``."""
    if isinstance(annotation, str):  # as our own classes have them
        return re.sub(r"(dict|list)\[[^]]*\]", r"\1", annotation)
    found = []
    for part in typing.get_args(annotation) or (annotation,):
        if typing.get_origin(annotation) in (dict, list):
            part = annotation
        plain = typing.get_origin(part) or part
        if isinstance(plain, type) and issubclass(plain, Enum):
            plain = str  # a recipe names it
        found.append("None" if plain is type(None) else plain.__name__)
    return " | ".join(dict.fromkeys(found))


def trainer_arguments(
    recipe: Recipe, method: Method, config_class: type, folder: Path | None = None
) -> tuple[Any, BatchPlan]:
    """The trainer's configuration, and how the rows of a step are split.

    Args:
        recipe: as it stands.
        method: of the recipe.
        config_class: of the trainer that serves the method.
        folder: of the run, in place of a new one.

    Raises:
        UserError: numbers that do not divide, or a value that TRL refuses.
    """
    given = {k: v for k, v in recipe.trainer.items() if k != "model_init_kwargs"}
    for key in ("save_strategy", "logging_strategy"):
        if given.get(key) is False:  # YAML reads no as false
            given[key] = "no"
    if "report_to" in given and given["report_to"] in (None, False, "no"):
        given["report_to"] = "none"
    kinds = {f.name: kind_of(f.type) for f in fields(config_class)}
    check_types("recipe key", given, kinds)
    check_numbers(given)
    both = [key for key in RECOMPUTE if given.get(key) is not None]
    if len({given[key] for key in both}) > 1:
        raise UserError(f"recipe keys '{both[0]}' and '{both[1]}' are two names of one: leave one")
    if given.get("num_generations", 8) is None:
        raise UserError("recipe key 'num_generations' must be a whole number, got None")
    generations = int(given.get("num_generations", 8)) if method.samples else 1
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as torchrun and accelerate set it
    plan = plan_batches(recipe.prompts_per_step, generations, recipe.micro_batch_size, processes)
    defaults: dict[str, Any] = {
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 0.1,  # of the run
        "save_total_limit": 2,
        "lr_scheduler_type": "constant",
    }
    if method.samples:
        defaults |= {"num_generations": generations, "log_rollouts": True}
    if not torch.accelerator.is_available():
        defaults |= {"use_cpu": True, "bf16": False}
        if not both:  # the newer name, where TRL has it, would win over the other one as given
            defaults[next(k for k in RECOMPUTE if k in kinds)] = False
    checkpoint = given.get("resume_from_checkpoint")
    if checkpoint is not None:
        is_checkpoint(checkpoint)
    new = folder or free_run_folder(Path(recipe.runs), recipe.name)
    derived = {
        "output_dir": str(new if checkpoint is None else Path(checkpoint).resolve().parent),
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "method": recipe.method_name,
        "method_options": {
            **recipe.method_options,
            **{k: recipe.trainer[k] for k in SHARED if k in recipe.trainer},
        },
    }
    try:
        return config_class.of(method, **{**defaults, **given, **derived}), plan
    except UserError:
        raise
    except REFUSALS as error:
        raise UserError(f"the recipe's trainer settings are refused: {one_line(error)}") from error

"""A recipe's settings as the trainer's configuration: TRL's, whichever engine runs them."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields
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
from prefix_rft.engines.options import SHARED
from prefix_rft.engines.trl import DemonstrationConfig, PrefixRFTConfig
from prefix_rft.engines.trl.ranges import check_numbers
from prefix_rft.engines.trl.update.mask_options import MaskOptions
from prefix_rft.recipe.batches import BatchPlan, plan_batches
from prefix_rft.recipe.recipe import RECOMPUTE, Recipe, recompute_key
from prefix_rft.runs.folder import free_run_folder
from prefix_rft.support.errors import UserError, check_types, choose, one_line


def config_class(method: Method) -> type:
    """The class of the trainer's configuration that serves a method."""
    return PrefixRFTConfig if method.samples else DemonstrationConfig


def keys(method: Method) -> list[str]:
    """The keys of a recipe that are settings of the trainer."""
    return [f.name for f in fields(config_class(method)) if f.init]


def of_rollouts(recipe: Iterable[str]) -> list[str]:
    """The keys among a recipe's that a method without rollouts has no use for.

    Its rows in a micro-batch are others, too.
    """
    known = {f.name for f in fields(DemonstrationConfig)}
    unknown = {f.name for f in fields(PrefixRFTConfig)} - known
    return [key for key in recipe if key in unknown or key == "micro_batch_size"]


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
    names = []
    for part in typing.get_args(annotation) or (annotation,):
        if typing.get_origin(annotation) in (dict, list):
            part = annotation
        plain = typing.get_origin(part) or part
        if isinstance(plain, type) and issubclass(plain, Enum):
            plain = str  # a recipe names it
        names.append("None" if plain is type(None) else plain.__name__)
    return " | ".join(dict.fromkeys(names))


def trainer_arguments(
    recipe: Recipe, method: Method, folder: Path | None = None
) -> tuple[Any, BatchPlan]:
    """The trainer's configuration, and how the rows of a step are split.

    Args:
        recipe: the recipe as it stands.
        method: the recipe's method.
        folder: the run's folder, in place of a new one.

    Raises:
        UserError: numbers that do not divide, or a value that TRL refuses.
    """
    config: Any = config_class(method)
    settings = {k: v for k, v in recipe.trainer.items() if k != "model_init_kwargs"}
    for key in ("save_strategy", "logging_strategy"):
        if settings.get(key) is False:  # YAML reads no as false
            settings[key] = "no"
    if "report_to" in settings and settings["report_to"] in (None, False, "no"):
        settings["report_to"] = "none"
    if settings.get("parameter_mask") is not None:
        settings["parameter_mask"] = seen_from_here(settings["parameter_mask"], recipe.folder)
    kinds = {f.name: kind_of(f.type) for f in fields(config)}
    check_types("recipe key", settings, kinds)
    check_numbers(settings)
    both = [key for key in RECOMPUTE if settings.get(key) is not None]
    if len({settings[key] for key in both}) > 1:
        raise UserError(f"recipe keys '{both[0]}' and '{both[1]}' are two names of one: leave one")
    if settings.get("num_generations", 8) is None:
        raise UserError("recipe key 'num_generations' must be a whole number, got None")
    generations = int(settings.get("num_generations", 8)) if method.samples else 1
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
            defaults[recompute_key(kinds)] = False
    checkpoint = settings.get("resume_from_checkpoint")
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
        return config.of(method, **{**defaults, **settings, **derived}), plan
    except UserError:
        raise
    except REFUSALS as error:
        raise UserError(f"the recipe's trainer settings are refused: {one_line(error)}") from error


def seen_from_here(mask: Any, folder: Path) -> Any:
    """The options of a parameter mask, with the paths of its data no longer the recipe's.

    Args:
        mask: options, as the recipe gives them.
        folder: the recipe's folder.

    Raises:
        UserError: the options cannot be used, or there is no such data.
    """
    options, here = MaskOptions.read(mask), {}
    for key in ("data", "forget"):
        data = getattr(options, key)
        if data is None:
            continue
        if (folder / data).exists():
            here[key] = str(folder / data)
        else:
            find_source(data, folder)
    return {**mask, **here}

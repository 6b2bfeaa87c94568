"""``prefix-rft eval``: from its options to sets of problems, samples and tables."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from prefix_rft.cli.numbers import refuse_below_one
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.run import TEMPERATURES, EvalPlan, run_eval
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.sets import EvalSet, distinct, named_set, read_suite
from prefix_rft.evaluation.table import show_eval
from prefix_rft.rewards import BUILT_IN
from prefix_rft.runs.best import BEST
from prefix_rft.support.console import say
from prefix_rft.support.display import Display, by_job
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import check_folder

LENGTH = 256


def run(args: argparse.Namespace, console: Console) -> None:
    """Evaluate as the options say.

    Raises:
        UserError: options, a model, data or a reward that cannot be used.
    """
    quiet()
    plan = plan_of(args)
    folder = Path(args.output) if args.output else Path("evals") / name_of_model(args.model)
    if folder.is_file() or (args.output and not folder.parent.is_dir()):
        raise UserError(f"--output '{folder}' is no folder, or the folder it is in does not exist")
    check_folder(folder, "--output" if args.output else "the folder of results")
    with Display(console) as display:
        display.phases.begin("loading the model")
        result = run_eval(plan, folder, by_job(display))
    show_eval(console, result)
    say(console, f"result.json and all samples: {folder}")


def plan_of(args: argparse.Namespace) -> EvalPlan:
    """The plan behind the options.

    Raises:
        UserError: they do not go together, or a value is out of range.
    """
    refuse_below_one(args, "samples", "max_completion_length", "batch_size", "limit")
    temperatures = tuple(dict.fromkeys(args.temperature or TEMPERATURES))
    for temperature in temperatures:
        if not 0 <= temperature < math.inf:
            raise UserError(f"--temperature must be at least 0, got {temperature}")
    from_recipe = _from_recipe(args.recipe) if args.recipe else {}
    sets = _sets(args, from_recipe)
    models = {"model": args.model}
    if args.base:
        models = {"base": args.base, **models}
    request = Request(
        samples=args.samples,
        max_completion_length=args.max_completion_length or from_recipe.get("length", LENGTH),
        seed=args.seed,
        batch_size=args.batch_size,
        template_kwargs=from_recipe.get("template_kwargs"),
    )
    return EvalPlan(models, sets, temperatures, request, tuple(args.by or ()))


def _from_recipe(path: str) -> dict[str, Any]:
    setup = configure(path, [])
    setup.close()
    recipe, args = setup.recipe, setup.args
    return {
        "data": recipe.eval_data,
        "reward": recipe.reward,
        "columns": recipe.columns,
        "system_prompt": recipe.system_prompt,
        "limit": recipe.eval_problems,
        "folder": recipe.folder,
        "length": args.max_completion_length,
        "template_kwargs": getattr(args, "chat_template_kwargs", None),
    }


def _sets(args: argparse.Namespace, from_recipe: dict[str, Any]) -> list[EvalSet]:
    if args.forgetting:
        if not args.base:
            raise UserError("--forgetting compares with the model before training: give --base")
        if args.data or args.recipe or args.reward:
            raise UserError("--forgetting brings its own data and rewards: leave out the others")
        return read_suite(args.forgetting)
    reward = args.reward or from_recipe.get("reward")
    if not reward:
        raise UserError(f"give --reward ({', '.join(BUILT_IN)} or module:function), or --recipe")
    rest: dict[str, Any] = {
        "columns": {**from_recipe.get("columns", {}), **_columns(args.columns or [])},
        "system_prompt": args.system_prompt or from_recipe.get("system_prompt"),
        "limit": args.limit or from_recipe.get("limit"),
    }
    if args.data:
        # A recipe's reward is looked for in the recipe's folder, data where the command runs.
        folder = Path() if args.reward else from_recipe["folder"]
        sets = [named_set(text, reward=reward, folder=folder, **rest) for text in args.data]
        return distinct([_seen_from(folder, eval_set) for eval_set in sets])
    if from_recipe.get("data") is None:
        raise UserError("give --data FILE, or --recipe of a recipe with eval_data")
    data = from_recipe["data"]
    name = Path(data if isinstance(data, str) else str(data.get("path"))).stem
    return [EvalSet(name, data, reward, folder=from_recipe["folder"], **rest)]


def _seen_from(folder: Path, eval_set: EvalSet) -> EvalSet:
    """The set with the path of its local file as seen from ``folder``."""
    local = isinstance(eval_set.data, str) and Path(eval_set.data).exists()
    return (
        replace(eval_set, data=os.path.relpath(str(eval_set.data), folder)) if local else eval_set
    )


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {name: column for name, _, column in (p.partition("=") for p in pairs)}
    for name, column in columns.items():
        if not name or not column:
            raise UserError(f"--columns takes NAME=COLUMN, got '{name}'")
    return columns


def name_of_model(source: str) -> str:
    """A folder's name for a model: that of its run, with ``best`` or ``checkpoint-N`` behind it."""
    parts = [p for p in Path(source).parts if p not in ("/", ".", "..")] or ["model"]
    of_run = parts[-1] == BEST or parts[-1].startswith("checkpoint-")
    if len(parts) > 1 and (parts[-1] == "model" or of_run):
        return "-".join(parts[-2:]) if of_run else parts[-2]
    return parts[-1]

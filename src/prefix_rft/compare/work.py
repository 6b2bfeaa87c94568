"""One run of a comparison, in a process of its own: train, evaluate, leave ``done.json``.

``python -m prefix_rft.compare JOB.json``
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from prefix_rft.compare.arm import overrides_of
from prefix_rft.compare.collect import collect_rows
from prefix_rft.compare.costs import Costs, costs_of, parameters_of
from prefix_rft.compare.trajectory import measures, trajectory
from prefix_rft.engines.models import quiet
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.run import EvalPlan, read_problems, run_eval, samples_file
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import Problem
from prefix_rft.evaluation.sets import EvalSet, distinct, read_suite
from prefix_rft.recipe.recipe import Recipe
from prefix_rft.rewards.verdict import NO_ANSWER
from prefix_rft.runs.checkpoints import newest_whole
from prefix_rft.runs.lines import read_lines
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.display import Display, by_job
from prefix_rft.support.errors import Interrupted, RunError, UserError
from prefix_rft.support.writing import write_json, write_text
from prefix_rft.training.train import train

DONE = "done.json"
HELD_OUT = "held-out"
VALIDATION = "validation"
WATCH_SECONDS = 0.5


def main(path: str) -> int:
    """Do the job; 0 when it is done, 1 for a run that failed, 2 for unusable input."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        # A comparison that was killed may leave a process that has not noticed yet.
        with FileLock(Path(path).with_suffix(".lock")):
            if job.get("collect"):
                collect_rows(job, Path(job["folder"]) / DONE)
            else:
                work(job)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    return 0


def _end_with(parent: int) -> None:
    """Leave at once when the comparison is gone: its next start begins this run again."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def work(job: Mapping[str, Any]) -> None:
    """Train and evaluate as the job says, from where an earlier process was interrupted."""
    quiet()
    folder = Path(job["folder"])
    costs = Costs()
    if job["train"]:
        costs = _train(job, folder)
    model = str(folder / "model") if job["train"] else job["model"]
    plan = plan_of(job, {"model": model})
    with Display(Console(highlight=False)) as display:
        run_eval(plan, folder / "eval", by_job(display))
    record = {
        "spec": job["spec"],
        "costs": asdict(costs),
        "inputs": {one.name: one.settings() for one in plan.sets},
        "machine": {**describe_machine(), "git": git_state()},
        "sets": {one.name: _of_set(plan, folder / "eval", one) for one in plan.sets},
        "columns": _columns(plan, folder / "eval", job["by"]),
    }
    shared = overrides_of(job["shared"])
    if job["trajectory"] and job["train"]:
        steps = int(job["spec"]["steps"])
        every = saved_every(job)
        record["trajectory"] = trajectory(folder, job["recipe"], shared, steps, every)
    elif job["trajectory"]:
        record["trajectory"] = [{"step": 0, **measures(model, job["recipe"], shared)}]
    write_text(folder / DONE, json.dumps(record) + "\n")


def _train(job: Mapping[str, Any], folder: Path) -> Costs:
    """Train unless that is done; the model is the last thing that training writes."""
    record = folder / "costs.json"
    if record.is_file():
        return Costs(**json.loads(record.read_text(encoding="utf-8")))
    keys = {
        **job["keys"],
        **_saving(job),
        "name": folder.name,
        "runs": str(folder.parent),
        "eval_data": None,
    }
    checkpoint = newest_whole(folder, print)
    if checkpoint is not None:
        keys["resume_from_checkpoint"] = str(checkpoint)
    elif folder.exists():
        shutil.rmtree(folder)  # it holds a part of this very job's run, of no use
    started = time.monotonic()
    run_folder = train(job["recipe"], overrides_of(keys), Console(highlight=False))
    seconds = time.monotonic() - started
    if run_folder.resolve() != folder.resolve():
        raise UserError(f"the run was left in '{run_folder}', not in '{folder}'")
    costs = costs_of(RunFolder(folder).metrics(), parameters_of(folder / "model"), seconds)
    write_json(record, asdict(costs))
    return costs


def _saving(job: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys that save the models of a trajectory."""
    if not job["trajectory"]:
        return {}
    return {
        "save_strategy": "steps",
        "save_steps": saved_every(job),
        "save_total_limit": None,
    }


def saved_every(job: Mapping[str, Any]) -> int:
    """Optimizer steps between the models of a trajectory."""
    return max(1, round(int(job["spec"]["steps"]) / job["trajectory"]))


def plan_of(job: Mapping[str, Any], models: Mapping[str, str]) -> EvalPlan:
    """What is evaluated: the held-out rows, or those that a swept value is chosen on."""
    setup = configure(job["recipe"], overrides_of(job["shared"]))
    setup.close()
    args = setup.args
    sets = [EvalSet(**{**one, "folder": Path(one["folder"])}) for one in job["sets"]]
    request = Request(
        samples=job["samples"],
        max_completion_length=args.max_completion_length,
        seed=job["eval_seed"],
        batch_size=job["eval_batch_size"],
        template_kwargs=getattr(args, "chat_template_kwargs", None),
    )
    return EvalPlan(models, sets, job["temperatures"], request)


def sets_of(
    recipe: Recipe, validation_data: Any, forgetting: str | None, tasks: Sequence[EvalSet] = ()
) -> list[EvalSet]:
    """The sets of problems that every model of a comparison is evaluated on.

    Args:
        recipe: the recipe that all runs share.
        validation_data: rows to choose swept values on, if there are others than the held-out ones.
        forgetting: a suite of other tasks.
        tasks: the held-out rows of several tasks, in place of those of the recipe.

    Raises:
        UserError: a suite that cannot be used.
    """
    rest: dict[str, Any] = {
        "columns": recipe.columns,
        "system_prompt": recipe.system_prompt,
        "folder": recipe.folder,
    }
    rows: Any = recipe.eval_data  # a comparison without it is refused before
    held_out = EvalSet(HELD_OUT, rows, recipe.reward, limit=recipe.eval_problems, **rest)
    sets = list(tasks) or [held_out]
    if validation_data is not None:
        sets.append(EvalSet(VALIDATION, validation_data, recipe.reward, **rest))
    if forgetting:
        sets += read_suite(str(recipe.folder / forgetting))
    return distinct(sets)


def _of_set(plan: EvalPlan, folder: Path, eval_set: EvalSet) -> dict[str, Any]:
    """By temperature, what is needed of every problem for any table, without the texts."""
    tables = {}
    for temperature in plan.temperatures:
        problems = read_problems(samples_file(folder, "model", eval_set, temperature))
        tables[f"{temperature:g}"] = compact(problems)
    return tables


def compact(problems: Sequence[Problem]) -> dict[str, Any]:
    """What is needed of every problem, in few bytes, and means over all samples.

    ``graded`` is one number where it is the same for all problems; ``reward`` (the mean of each
    problem) is left out where it is ``correct / graded``.
    """
    samples = [s for p in problems for s in p.samples]
    correct = [sum(s.correct for s in p.graded) for p in problems]
    graded = [len(p.graded) for p in problems]
    table: dict[str, Any] = {
        "correct": correct,
        "graded": graded[0] if len(set(graded)) == 1 else graded,
        "truncated": sum(s.truncated for s in samples) / len(samples),
        "no_answer": sum(s.verdict.status == NO_ANSWER for s in samples) / len(samples),
        "tokens": sum(s.tokens for s in samples) / len(samples),
    }
    shares = [c / n if n else None for c, n in zip(correct, graded, strict=True)]
    rewards = [p.reward for p in problems]
    if rewards != shares:
        table["reward"] = rewards
    return table


def expand(table: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`compact` left out."""
    graded = table["graded"]
    graded = [graded] * len(table["correct"]) if isinstance(graded, int) else graded
    shares = [c / n if n else None for c, n in zip(table["correct"], graded, strict=True)]
    return {**table, "graded": graded, "reward": table.get("reward", shares)}


def _columns(plan: EvalPlan, folder: Path, by: Sequence[str]) -> dict[str, list[Any]]:
    first = samples_file(folder, "model", plan.sets[0], plan.temperatures[0])
    rows = [line["columns"] for line in read_lines(first)]
    for column in by:
        if not any(column in row for row in rows):
            raise UserError(f"the held-out rows have no column '{column}' to split by")
    return {column: [row.get(column) for row in rows] for column in by}

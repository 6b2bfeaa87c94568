"""Evaluate models on sets of problems: samples are stored, so that nothing is drawn twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from prefix_rft.data import load_rows
from prefix_rft.data.files import PLACE
from prefix_rft.data.forgetting import refuse_shared
from prefix_rft.data.moment import pinned
from prefix_rft.data.render import Renderer
from prefix_rft.engines.fingerprint import fingerprint
from prefix_rft.engines.models import give_template, load_model
from prefix_rft.evaluation.folder import (
    done_file,
    is_done,
    note,
    open_folder,
    rendering_file,
    samples_file,
)
from prefix_rft.evaluation.samples import Request, sample_and_grade
from prefix_rft.evaluation.scores import Problem, difference, scores, split_by
from prefix_rft.evaluation.sets import FORGET, RETAIN, EvalSet
from prefix_rft.evaluation.told import TOLD, prompts_of
from prefix_rft.rewards import close_all, load_rewards, missing_columns
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.golds import unreadable_golds
from prefix_rft.rewards.source import decided_by
from prefix_rft.runs.lines import read_lines
from prefix_rft.runs.machine import describe_machine
from prefix_rft.support.errors import UserError, choose
from prefix_rft.support.writing import append_text, write_json, write_text

SHORT = 200
"""Longer texts in a column are not worth repeating with the samples."""
GREEDY = 0.0
TEMPERATURES = (1.0, 0.6, GREEDY)
"""Of training, of the paper's evaluation (arXiv 2507.01679), and greedy."""


@dataclass(frozen=True)
class EvalPlan:
    """What an evaluation does.

    Attributes:
        models: source by role, ``model`` and perhaps ``base``.
        sets: the sets of problems.
        temperatures: the temperatures: each is sampled apart; 0 is greedy and takes one sample.
        request: how to sample; its temperature is not used.
        by: columns to split the numbers by.
    """

    models: Mapping[str, str]
    sets: Sequence[EvalSet]
    temperatures: Sequence[float]
    request: Request
    by: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        """Everything that decides the samples; more temperatures or other splits do not."""
        return {
            "models": {role: fingerprint(source) for role, source in self.models.items()},
            "sets": {s.name: s.settings() for s in self.sets},
            "samples": self.request.samples,
            "max_completion_length": self.request.max_completion_length,
            "seed": self.request.seed,
            "template_kwargs": dict(self.request.template_kwargs or {}),
        }

    def jobs(self) -> Iterable[tuple[str, EvalSet, float]]:
        """Each model, set and temperature."""
        for role in self.models:
            for eval_set in self.sets:
                for temperature in self.temperatures:
                    yield role, eval_set, temperature


def run_eval(plan: EvalPlan, folder: Path, progress: Any) -> dict[str, Any]:
    """Draw the samples that are not in ``folder`` yet; write and return the result.

    Args:
        plan: what to do.
        folder: the folder of samples and result; a former evaluation with the same settings goes
            on.
        progress: called with a job's name, the problems done, and those to do.

    Raises:
        UserError: a model, data or reward that cannot be used, or the folder holds an evaluation
            with other settings.
    """
    if any(not is_done(folder, *job) for job in plan.jobs()):
        for eval_set in plan.sets:
            check_golds(eval_set)
        refuse_forgotten(plan.sets)
    date = open_folder(folder, plan.settings())
    for role, source in plan.models.items():
        loaded = None
        for eval_set in plan.sets:
            todo = [t for t in plan.temperatures if not is_done(folder, role, eval_set, t)]
            if not todo:
                continue
            loaded = loaded or _load(source)
            _sample_set(plan, folder, role, eval_set, todo, loaded, date, progress)
    result = summarise(plan, folder)
    write_json(folder / "result.json", result)
    return result


def check_golds(eval_set: EvalSet) -> None:
    """Look whether any gold answer of a set can be read, before anything is sampled.

    Raises:
        UserError: there is none.
    """
    rewards, _ = load_rewards(eval_set.reward, eval_set.folder)
    with ExitStack() as stack:
        stack.callback(close_all, rewards)
        if rewards and getattr(rewards[0], "tests_gold", False):
            rows = eval_set.rows()
            if not missing_columns(rewards[:1], rows.column_names) and len(
                unreadable_golds(rewards[0], rows)
            ) == len(rows):
                raise UserError(
                    f"set '{eval_set.name}': '{name_of(rewards[0])}' can read no gold answer of "
                    f"its {len(rows)} problems: check the column, or use another reward"
                )


def refuse_forgotten(sets: Sequence[EvalSet]) -> None:
    """Look whether sets named ``forget`` and ``retain`` are distinct, where there are both.

    Raises:
        DataError: they share a prompt.
    """
    named = {s.name: s for s in sets}
    if FORGET in named and RETAIN in named:
        both = (named[name] for name in (FORGET, RETAIN))
        forget, retain = (load_rows(s.data, folder=s.folder, reading=s.reading) for s in both)
        refuse_shared(forget, retain, f"sets {FORGET} and {RETAIN}")


def _load(source: str) -> tuple[Any, Any]:
    model, tokenizer = load_model(source, dtype="auto")
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return model, tokenizer


def _sample_set(
    plan: EvalPlan,
    folder: Path,
    role: str,
    eval_set: EvalSet,
    temperatures: Sequence[float],
    loaded: tuple[Any, Any],
    date: str,
    progress: Any,
) -> None:
    model, tokenizer = loaded
    rows = eval_set.rows()
    for column in plan.by:
        choose(f"column of set '{eval_set.name}' to split by", column, rows.column_names)
    give_template(tokenizer, rows[0]["prompt"])
    kwargs = pinned(tokenizer, plan.request.template_kwargs, date)
    _write_rendering(folder, role, eval_set, next(prompts_of(rows)), tokenizer, kwargs)
    rewards, _ = load_rewards(eval_set.reward, eval_set.folder)
    if not rewards:
        raise UserError(f"set '{eval_set.name}' has no reward to grade with")
    with ExitStack() as stack:
        stack.callback(close_all, rewards)
        text = json.dumps(decided_by(rewards[0]), sort_keys=True)
        grader = {"name": name_of(rewards[0]), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        note(
            rendering_file(folder, role, eval_set).with_name(f"{eval_set.name}-reward.json"), grader
        )
        for temperature in temperatures:
            path = samples_file(folder, role, eval_set, temperature)
            name = f"{role} on {eval_set.name} at T={temperature:g}"
            request = _request(replace(plan.request, template_kwargs=kwargs), eval_set, temperature)

            def tick(done: int, name: str = name) -> None:
                progress(name, done, len(rows))

            for done in draw(path, rows, model, tokenizer, rewards[0], request, tick):
                tick(done)
            done_file(folder, role, eval_set, temperature).touch()


def _write_rendering(
    folder: Path,
    role: str,
    eval_set: EvalSet,
    prompt: Any,
    tokenizer: Any,
    kwargs: Mapping[str, Any],
) -> None:
    """Note how prompts of a set reach a model: its template, and the first one as text."""
    ids = Renderer(tokenizer, (), kwargs).prompt(prompt)
    template = None if isinstance(prompt, str) else str(tokenizer.chat_template)
    note(
        rendering_file(folder, role, eval_set),
        {
            "chat_template_sha256": template and hashlib.sha256(template.encode()).hexdigest(),
            "first_prompt": tokenizer.decode(ids),
        },
    )


def _request(request: Request, eval_set: EvalSet, temperature: float) -> Request:
    length = eval_set.max_completion_length or request.max_completion_length
    samples = 1 if temperature == GREEDY else request.samples
    return Request(
        samples, temperature, length, request.seed, request.batch_size, request.template_kwargs
    )


def draw(
    path: Path,
    rows: Dataset,
    model: Any,
    tokenizer: Any,
    reward: Any,
    request: Request,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterable[int]:
    """Append the problems that the file lacks, some at a time; yields how many it then has.

    Between them ``tick`` is called with how many are sampled. Of those that are sampled together
    all are stored or none: a batch has the rows that it would have had without an interruption.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = len(read_problems(path)) if path.is_file() else 0
    if (more := done % request.together) and done < len(rows):
        done -= more
        write_text(path, "".join(path.read_text("utf-8").splitlines(keepends=True)[:done]))
    yield done
    left = range(done, len(rows))
    if not left:
        return

    def further(sampled: int, before: int = done) -> None:
        tick(before + sampled)

    parts = sample_and_grade(model, tokenizer, rows.select(left), reward, request, left, further)
    for part in parts:
        lines = []
        for samples in part:
            row: Any = rows[done]
            lines.append(Problem(done, _short_columns(row), samples).to_json())
            done += 1
        append_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        yield done


def _short_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row that are short and plain, and where it stands."""
    short = {
        name: value
        for name, value in row.items()
        if name != TOLD
        and (
            isinstance(value, (bool, int, float))
            or (isinstance(value, str) and len(value) <= SHORT)
        )
    }
    place = short.pop(PLACE, None)
    return short if place is None else {**short, "row": place}


def read_problems(path: Path) -> list[Problem]:
    """The problems in a samples file; a last line that was cut off is taken out of it.

    Raises:
        UserError: another line is damaged.
    """
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # the process was killed while it wrote
            file.truncate(whole)
    problems = []
    for number, line in enumerate(read_lines(path)):
        try:
            problem = Problem.from_json(line)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{path}', line {number + 1} is damaged: it holds no problem"
            ) from error
        if problem.number != number:
            raise UserError(f"'{path}', line {number + 1} is damaged: it is of another problem")
        problems.append(problem)
    return problems


def summarise(plan: EvalPlan, folder: Path) -> dict[str, Any]:
    """The numbers of all samples in a folder, as plain data."""
    results, differences = [], []
    for role, eval_set, temperature in plan.jobs():
        problems = read_problems(samples_file(folder, role, eval_set, temperature))
        where = {"model": role, "set": eval_set.name, "temperature": temperature}
        by = {
            column: {
                label: asdict(scores(part)) for label, part in split_by(problems, column).items()
            }
            for column in plan.by
        }
        results.append({**where, **asdict(scores(problems)), "by": by})
        if role != "base" and "base" in plan.models:
            base = read_problems(samples_file(folder, "base", eval_set, temperature))
            if (estimate := difference(problems, base)) is not None:
                differences.append({**where, **asdict(estimate)})
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return {
        "settings": settings,
        "engine": "transformers",
        "prompts": {
            role: {
                eval_set.name: json.loads(
                    rendering_file(folder, role, eval_set).read_text(encoding="utf-8")
                )
                for eval_set in plan.sets
            }
            for role in plan.models
        },
        "machine": describe_machine(),
        "results": results,
        "differences": differences,
    }

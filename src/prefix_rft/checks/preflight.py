"""The cheap checks before a run: what cannot be trained on is refused, or dropped and counted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datasets import Dataset
from rich.console import Console

from prefix_rft.checks.rows import Scope, check_data
from prefix_rft.data import DataError, Renderer
from prefix_rft.data.files import PLACE
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import give_template
from prefix_rft.engines.setup import Setup
from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.rewards import Verdict, grade_texts, missing_columns
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.golds import unreadable_golds
from prefix_rft.rewards.verdict import CORRECT, ERROR, TIMEOUT
from prefix_rft.support.console import named, say
from prefix_rft.support.errors import UserError
from prefix_rft.support.phases import Phases

FIRST = 8
LOOKED_AT = Scope(rows=1000, graded=64)
BATCH = 512


def preflight(
    setup: Setup,
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    held_out: Dataset | None,
    console: Console,
    phases: Phases | None = None,
) -> tuple[Dataset, Dataset | None]:
    """The rows to train and to evaluate on.

    Rows whose gold answer cannot be read are dropped and counted, and demonstrations that are not
    correct if the recipe says so. The first rows are looked at as ``prefix-rft check`` looks at
    all, and what is found is printed.

    Raises:
        UserError: a reward that misses a column or fails on everything, a template that cannot be
            sampled from or refuses a prompt, or no row is left.
    """
    phases = phases or Phases()
    recipe, rewards = setup.recipe, setup.rewards
    parts = [(recipe.train_data, rows), *([(recipe.eval_data, held_out)] if held_out else [])]
    eos_ids = end_of_text_ids(tokenizer, model.generation_config)
    for name, part in parts:
        missing = missing_columns(rewards, part.column_names)
        if missing and (setup.method.samples or part is held_out):
            raise DataError(f"data '{name}': {missing[0]}")
        if give_template(tokenizer, part[0]["prompt"]):
            say(
                console,
                "warning: the tokenizer has no chat template: prompts are plain text with blank "
                "lines between messages",
            )
        template = template_kwargs(setup.args, tokenizer)
        render = Renderer(tokenizer, eos_ids, template)
        if isinstance(part[0]["prompt"], list) and (fault := render.template_fault()):
            raise DataError(fault)
    # With the template that the tokenizer has by now.
    render = Renderer(tokenizer, eos_ids, template_kwargs(setup.args, tokenizer))
    for reward in rewards:
        if not missing_columns([reward], rows.column_names):
            try_first(reward, rows, render)
    with ThreadPoolExecutor(1) as graders:
        positions = getattr(model.config, "max_position_embeddings", None)
        for name, part in parts:
            scope = LOOKED_AT if part is rows else Scope(LOOKED_AT.rows, 0, training=False)
            phases.begin("checking rows:")
            checked = check_data(
                setup, name, tokenizer, eos_ids, positions, graders, scope, phases.at
            )
            for finding in checked.findings.problems + checked.findings.notes:
                say(console, f"warning: {checked.name}: {finding}")
    if held_out is not None:
        check_prompts(held_out, render)
        held_out = drop_unreadable_golds(rewards[:1], held_out, console, phases)
    if setup.method.samples:
        rows = drop_unreadable_golds(rewards, rows, console, phases)
    if recipe.only_correct_demonstrations:
        if not rewards:
            raise UserError(
                "only_correct_demonstrations needs a reward that says which are correct"
            )
        rows = keep_correct(rewards[0], rows, render, console, phases)
    return rows, held_out


def demonstration_verdicts(
    reward: Callable[..., Any], rows: Sequence[dict[str, Any]], render: Renderer
) -> list[list[Verdict]]:
    """Verdicts on each demonstration of the rows, read as training reads it: from its ids."""
    texts = [text for row in rows for text in row["demonstration"]]
    ids = render.demonstrations(texts, not isinstance(rows[0]["prompt"], str))
    owners = [row for row in rows for _ in row["demonstration"]]
    graded = grade_texts(reward, owners, render.completions(ids), ids) if texts else []
    verdicts = iter(graded)
    return [[next(verdicts) for _ in row["demonstration"]] for row in rows]


def try_first(reward: Callable[..., Any], rows: Dataset, render: Renderer) -> None:
    """Grade the demonstrations of the first rows.

    Raises:
        UserError: not one of them could be graded.
    """
    first = [dict(row) for row in rows.select(range(min(FIRST, len(rows))))]
    texts = [row["demonstration"][:1] or [""] for row in first]
    one_each = [{**row, "demonstration": t} for row, t in zip(first, texts, strict=True)]
    verdicts = [v for row in demonstration_verdicts(reward, one_each, render) for v in row]
    if all(v.status in (ERROR, TIMEOUT) for v in verdicts):
        what = f"{verdicts[0].status}: {verdicts[0].detail}"
        raise UserError(
            f"reward '{name_of(reward)}' could grade none of the first {len(first)} "
            f"demonstrations ({what})"
        )


def check_prompts(rows: Dataset, render: Renderer) -> None:
    """Render each conversation once.

    Raises:
        DataError: the template refuses one; the message says which.
    """
    row: Any
    for row in rows.select_columns(["prompt", PLACE]):
        if isinstance(row["prompt"], list):
            try:
                render.text(row["prompt"])
            except DataError as error:
                raise DataError(f"{row[PLACE]}: {error}") from error


def drop_unreadable_golds(
    rewards: Sequence[Callable[..., Any]], rows: Dataset, console: Console, phases: Phases
) -> Dataset:
    """The rows whose gold answer every reward can read.

    Raises:
        UserError: there is none.
    """
    bad: dict[int, str] = {}
    for judge in rewards:
        phases.begin("reading gold answers", len(rows))
        bad |= dict.fromkeys(unreadable_golds(judge, rows, phases.at), name_of(judge))
    if not bad:
        return rows
    first = rows[min(bad)][PLACE]
    names = " and ".join(f"'{n}'" for n in dict.fromkeys(bad.values()))
    words = f"{len(bad)} of {len(rows)} rows have a gold answer that {names} cannot read"
    if len(bad) == len(rows):
        raise DataError(
            f"{first}: {words}: check the column, or use another reward (prefix-rft check)"
        )
    places = [rows[i][PLACE] for i in sorted(bad)[:5]]
    say(console, f"{words}; dropped: {named(places, len(bad))}")
    return rows.select([i for i in range(len(rows)) if i not in bad])


def keep_correct(
    reward: Callable[..., Any], rows: Dataset, render: Renderer, console: Console, phases: Phases
) -> Dataset:
    """The rows, with only the demonstrations that the reward finds correct."""
    before = after = 0
    phases.begin("grading the demonstrations of rows", len(rows))

    def keep(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal before, after
        names = list(batch)
        part = [
            dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        verdicts = demonstration_verdicts(reward, part, render)
        kept = [
            [t for t, v in zip(row["demonstration"], of_row, strict=True) if v.status == CORRECT]
            for row, of_row in zip(part, verdicts, strict=True)
        ]
        before, after = before + sum(map(len, verdicts)), after + sum(map(len, kept))
        phases.at(phases.done + len(part))
        return {"demonstration": kept}

    # Verdicts are not to be remembered under the name of this function: the grader may change.
    rows = rows.map(keep, batched=True, batch_size=BATCH, new_fingerprint=uuid.uuid4().hex)
    dropped = f"{before - after} of {before} demonstrations dropped"
    say(console, f"{dropped}: not correct to '{name_of(reward)}'")
    return rows

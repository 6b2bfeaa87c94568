"""The cheap checks before a run: what cannot be trained on is refused, or dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from rich.console import Console

from prefix_rft.configure import Setup
from prefix_rft.data import DataError, Renderer
from prefix_rft.errors import UserError
from prefix_rft.findings import named
from prefix_rft.models import give_template
from prefix_rft.rewards import Verdict, grade
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import CORRECT, ERROR, GOLD_UNPARSEABLE, TIMEOUT

FIRST = 8
BATCH = 512


def preflight(setup: Setup, rows: Dataset, tokenizer: Any, console: Console) -> Dataset:
    """The rows to train on.

    Rows whose gold answer cannot be read are dropped and counted, and demonstrations that are not
    correct if the recipe says so. Each reward is tried on the first demonstrations.

    Raises:
        UserError: a reward fails on everything, or no row is left.
    """
    if give_template(tokenizer, rows[0]["prompt"]):
        console.print(
            "the tokenizer has no chat template: prompts are plain text with blank lines between "
            "messages (docs/data.md)",
            highlight=False,
        )
    template: Any = getattr(setup.args, "chat_template_kwargs", None)
    if isinstance(rows[0]["prompt"], list):
        fault = Renderer(tokenizer, template_kwargs=template or {}).template_fault()
        if fault:
            raise DataError(fault)
    for reward in setup.rewards:
        try_first(reward, rows, console)
    if setup.method.samples:
        rows = drop_unreadable_golds(setup.rewards, rows, console)
    if setup.recipe.only_correct_demonstrations:
        if not setup.rewards:
            raise UserError(
                "only_correct_demonstrations needs a reward that says which are correct"
            )
        rows = keep_correct(setup.rewards[0], rows, console)
    return rows


def grade_texts(
    reward: Callable[..., Any], rows: Sequence[dict[str, Any]], texts: Sequence[str]
) -> list[Verdict]:
    """Verdicts on texts as if they were completions of the rows' prompts."""
    conversation = isinstance(rows[0]["prompt"], list)
    completions: list[Any] = list(texts)
    if conversation:
        completions = [[{"role": "assistant", "content": t}] for t in texts]
    names = [n for n in rows[0] if n not in ("prompt", "completion", "completion_ids")]
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["prompts"] = [row["prompt"] for row in rows]
    columns["completion_ids"] = [[] for _ in rows]
    return grade(reward, completions, columns)


def try_first(reward: Callable[..., Any], rows: Dataset, console: Console) -> None:
    """Grade the demonstrations of the first rows.

    Raises:
        UserError: not one of them could be graded.
    """
    first = [dict(row) for row in rows.select(range(min(FIRST, len(rows))))]
    texts = [row["demonstration"][0] if row["demonstration"] else "" for row in first]
    verdicts = grade_texts(reward, first, texts)
    if all(v.status in (ERROR, TIMEOUT) for v in verdicts):
        what = f"{verdicts[0].status}: {verdicts[0].detail}"
        raise UserError(
            f"reward '{name_of(reward)}' could grade none of the first {len(first)} "
            f"demonstrations ({what})"
        )
    shown = [v for v, text in zip(verdicts, texts, strict=True) if text]
    if shown and not any(v.reward and v.reward > 0 for v in shown):
        counts = ", ".join(
            f"{n} {status}" for status, n in Counter(v.status for v in shown).items()
        )
        console.print(
            f"warning: reward '{name_of(reward)}' gives nothing to the first demonstrations "
            f"({counts}); run prefix-rft check",
            highlight=False,
        )


def drop_unreadable_golds(
    rewards: Sequence[Callable[..., Any]], rows: Dataset, console: Console
) -> Dataset:
    """The rows whose gold answer every reward can read.

    Raises:
        UserError: there is none.
    """
    judges = [r for r in rewards if getattr(r, "tests_gold", False)]
    bad: set[int] = set()
    for judge in judges:
        for start in range(0, len(rows), BATCH):
            part = [dict(r) for r in rows.select(range(start, min(start + BATCH, len(rows))))]
            verdicts = grade_texts(judge, part, [""] * len(part))
            bad |= {start + i for i, v in enumerate(verdicts) if v.status == GOLD_UNPARSEABLE}
    if not bad:
        return rows
    words = (
        f"{len(bad)} of {len(rows)} rows have a gold answer that '{name_of(judges[0])}' cannot read"
    )
    if len(bad) == len(rows):
        raise UserError(f"{words}: check the column, or use another reward (prefix-rft check)")
    console.print(f"{words}; dropped (row {named(sorted(i + 1 for i in bad))})", highlight=False)
    return rows.select([i for i in range(len(rows)) if i not in bad])


def keep_correct(reward: Callable[..., Any], rows: Dataset, console: Console) -> Dataset:
    """The rows, with only the demonstrations that the reward finds correct."""
    before = after = 0

    def keep(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        nonlocal before, after
        names = list(batch)
        part = [
            dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)
        ]
        owners = [row for row in part for _ in row["demonstration"]]
        texts = [text for row in part for text in row["demonstration"]]
        right = iter(
            [v.status == CORRECT for v in grade_texts(reward, owners, texts)] if texts else []
        )
        kept = [[t for t in row["demonstration"] if next(right)] for row in part]
        before, after = before + len(texts), after + sum(map(len, kept))
        return {"demonstration": kept}

    rows = rows.map(keep, batched=True, batch_size=BATCH, load_from_cache_file=False)
    console.print(
        f"{before - after} of {before} demonstrations dropped: not correct to '{name_of(reward)}'",
        highlight=False,
    )
    return rows

"""Rollout-based instance filtering: before training, leave out prompts that teach nothing.

arXiv 2507.05386 (ICML 2026): prompts whose rollouts are never rewarded are dropped before training.
The paper's exact rule and number of rollouts could not be verified; the defaults here are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from rich.console import Console

from prefix_rft.engines.trl.clock import template_kwargs
from prefix_rft.evaluation.samples import Request, sample_and_grade
from prefix_rft.recipe.rif_options import Filter
from prefix_rft.support.console import say
from prefix_rft.support.errors import UserError


def filter_rows(
    rule: Filter,
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Any,
    args: Any,
    console: Console,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[Dataset, dict[str, Any]]:
    """The rows whose prompts the model solves often enough, and a record of all.

    Each process samples for its share of the prompts; ``tick`` is called with how many of all are
    done if the others are as far as this one.

    Raises:
        UserError: no row is left.
    """
    state = PartialState()
    places = list(range(state.process_index, len(rows), state.num_processes))
    solved: list[tuple[int, int]] = []
    if places:
        model.to(state.device)
        request = Request(
            samples=rule.samples,
            temperature=rule.temperature,
            max_completion_length=args.max_completion_length,
            seed=args.seed,
            batch_size=args.per_device_train_batch_size,
            template_kwargs=template_kwargs(args, tokenizer),
        )
        # A prompt's samples depend on its place among the rows, not on who draws them.
        share = rows.select(places)
        parts = sample_and_grade(
            model,
            tokenizer,
            share,
            reward,
            request,
            places,
            lambda done: tick(done * len(rows) // len(places)),
        )
        counts = [
            sum(s.reward is not None and s.reward > rule.solved_above for s in problem)
            for part in parts
            for problem in part
        ]
        solved = list(zip(places, counts, strict=True))
    counts = [n for _, n in sorted(gather_object(solved))]
    return choose_rows(rule, rows, counts, console)


def recorded(rule: Filter, rows: Dataset, record: Path) -> list[int]:
    """The counts of an earlier filtering of the same rows by the same rule.

    Raises:
        UserError: it was of other rows or by another rule, or the file is damaged.
    """
    try:
        data = json.loads(record.read_text(encoding="utf-8"))
        solved = [int(n) for n in data["solved"]]
        same = data["rule"] == asdict(rule) and len(solved) == len(rows)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{record}' is damaged: {type(error).__name__}: {error}") from error
    if not same:
        raise UserError(
            f"'{record}' is of other rows or of another rif: resume with the data and the rif that "
            "the run started with"
        )
    return solved


def choose_rows(
    rule: Filter, rows: Dataset, solved: list[int], console: Console
) -> tuple[Dataset, dict[str, Any]]:
    """The rows that stay, given how many rollouts of each were solved.

    Raises:
        UserError: no row is left.
    """
    top = rule.samples if rule.max_solved is None else rule.max_solved
    kept = [i for i, n in enumerate(solved) if rule.min_solved <= n <= top]
    few = sum(n < rule.min_solved for n in solved)
    words = (
        f"rif: {len(kept)} of {len(rows)} prompts stay; {few} have fewer than {rule.min_solved} "
        f"solved of {rule.samples} rollouts, {len(rows) - len(kept) - few} more than {top}"
    )
    if not kept:
        raise UserError(f"{words}: nothing is left to train on; lower min_solved")
    say(console, words)
    histogram = torch.bincount(torch.tensor(solved), minlength=rule.samples + 1).tolist()
    record = {"rule": asdict(rule), "solved": solved, "prompts_by_solved": histogram}
    return rows.select(kept), record

"""The dataset that rollouts are made from: how its texts become ids, and whether it serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from datasets import Dataset

from prefix_rft.core import Method
from prefix_rft.core.hint import Hint
from prefix_rft.data import DataError, tokenize_demonstrations
from prefix_rft.data.demonstrations import IDS, DemonstrationReport
from prefix_rft.data.pictures import IMAGE, IMAGES, asked
from prefix_rft.data.render import Renderer
from prefix_rft.engines.hints import longest_prompt
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.trl.rollout.backend import Backend
from prefix_rft.support.errors import UserError


def tokenized(
    rows: Any,
    renderer: Renderer,
    method: Method,
    args: Any,
    model: Any,
    backend: Backend,
    first: AbstractContextManager[None],
) -> tuple[Any, DemonstrationReport | None]:
    """The dataset with demonstrations as token ids, and what became of them.

    Args:
        rows: the rows as the trainer was given them.
        renderer: how prompts and demonstrations become ids.
        method: the method to be trained.
        args: the trainer's configuration.
        model: the model to be trained.
        backend: what samples where our own sampler does not.
        first: a context in which the main process goes first, so that the others find what it has
            written.

    Returns:
        The dataset, and a report; None for a stream, whose rows are not known beforehand.

    Raises:
        DataError: the dataset is smaller than a generation, or lacks what the method needs.
        UserError: a prompt and its completion are too long for the model or for a vLLM server, or
            the method goes back to rows of a stream.
    """
    budget, column = args.max_completion_length, args.demonstration_column
    with first:
        rows, report = tokenize_demonstrations(rows, renderer.tokenizer, budget, column, renderer)
    if isinstance(rows, Dataset):
        hint = method.planner.hint
        refuse_too_long(model, prompt_lengths(rows, renderer, hint), budget)
        if backend.limit is not None:
            longest = longest_context(rows, renderer, method.branches and hint is None)
            if hint is not None:
                longest = max(longest, *prompt_lengths(rows, renderer, hint))
            backend.refuse_too_long(longest, budget)
    if report is not None:
        _check_report(report, method, args)
    elif method.groups.interleave is not None or "resample" in (
        method.groups.all_wrong,
        method.groups.all_right,
    ):
        raise UserError(
            f"method '{method.name}' goes back to examples of the dataset, which a stream "
            "does not allow: give a dataset of known length"
        )
    return rows, report


def prompt_lengths(rows: Dataset, renderer: Renderer, hint: Hint | None) -> Iterator[int]:
    """Tokens of each prompt, with its longest demonstration in it where there are hints.

    Args:
        rows: the dataset, with demonstrations as token ids.
        renderer: how prompts become ids.
        hint: how a hint is written; None where the method has none.
    """
    for row in _asking(rows):
        yield len(longest_prompt(asked(row), row[IDS], hint, renderer))


def _asking(rows: Dataset) -> Any:
    """The columns that make prompts."""
    return rows.select_columns([n for n in ("prompt", IDS, IMAGE, IMAGES) if n in rows.features])


def longest_context(rows: Dataset, renderer: Renderer, branches: bool) -> int:
    """Tokens of the longest prompt with the longest prefix that a row may continue.

    Args:
        rows: the dataset, with demonstrations as token ids.
        renderer: how prompts become ids.
        branches: rows may start from prefixes.
    """
    # A prefix is shorter than its demonstration, or nothing would be left to sample.
    return max(
        len(renderer.prompt(asked(row)))
        + max((len(ids) - 1 for ids in row[IDS] if branches), default=0)
        for row in _asking(rows)
    )


def _check_report(report: DemonstrationReport, method: Method, args: Any) -> None:
    prompts = args.generation_batch_size // args.num_generations
    if report.rows < prompts:
        raise DataError(
            f"the dataset has {report.rows} rows, but one generation takes {prompts} prompts: "
            "nothing would be trained; lower the batch"
        )
    if method.needs_demonstrations and not report.demonstrations:
        dropped = f" ({report.drops})" if report.dropped else ""
        raise DataError(
            f"method '{method.name}' needs demonstrations, but no row has one in column "
            f"'{args.demonstration_column}'{dropped}; name the column with demonstration_column, "
            "or use dr_grpo"
        )

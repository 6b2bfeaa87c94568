"""A model's own right answers to the rows it is to train on, as demonstrations.

Prefixes of them are what PrefixRL starts from (arXiv 2601.18795), and imitating them is
rejection-sampled SFT. Samples are drawn and stored as those of an evaluation are, so that an
interrupted collection goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefix_rft.data import Renderer
from prefix_rft.data.moment import pinned
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import give_template, hub, load_configs, load_tokenizer
from prefix_rft.engines.setup import Setup, configure
from prefix_rft.evaluation.folder import begun
from prefix_rft.evaluation.samples import Request, Sample, prefilled
from prefix_rft.evaluation.scores import Problem
from prefix_rft.evaluation.sets import EvalSet
from prefix_rft.evaluation.start import sample_train_rows, train_rows
from prefix_rft.evaluation.told import prompts_of
from prefix_rft.rewards import visible
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_text


@dataclass(frozen=True)
class OwnAnswers:
    """What a collection found.

    Attributes:
        rows: the rows that were sampled.
        solved: those of which an answer was right, which were written.
        answers: right answers that were written.
        sampled: tokens that were sampled for them, in right and wrong answers.
        prefilled: prompt tokens that were read for them, see :func:`.samples.prefilled`.
    """

    rows: int
    solved: int
    answers: int
    sampled: int
    prefilled: int


def collect(
    recipe: str,
    overrides: Sequence[str],
    output: Path,
    request: Request,
    keep: int,
    limit: int | None,
    progress: Callable[[str, int, int], None],
) -> OwnAnswers:
    """Sample the recipe's model on its ``train_data``, never from a prefix; write what is right.

    Each row is written as the library knows it (``prompt``, ``answer`` and its other columns), with
    its own answers in the place of its demonstrations. Rows of which nothing was right are left
    out. The samples lie beside it, in a folder of the same name.

    Args:
        recipe: its path.
        overrides: ``key=value`` for it.
        output: the file to write, ``.jsonl``.
        request: how to sample; the length and the template's arguments are the recipe's.
        keep: the most answers of a row, which are the first different ones.
        limit: the first N rows only.
        progress: called with a job's name, the rows done, and those to do.

    Raises:
        UserError: the recipe cannot be used, nothing was right, or the folder holds other samples.
    """
    setup = configure(recipe, overrides)
    setup.close()
    model, folder = setup.recipe.model_source(), output.with_suffix("")
    found = sampled_rows(setup, model, train_rows(setup, limit), request, folder, progress)
    kept = [right_ones(problem.samples, keep) for problem in found.problems]
    solved = sum(map(bool, kept))
    if not solved:
        raise UserError(
            f"none of {len(kept)} rows was solved in {request.samples} samples: sample more, "
            "or train on demonstrations first"
        )
    write_text(output, "".join(lines_of(found.rows, kept)))
    answers = sum(map(len, kept))
    return OwnAnswers(len(kept), solved, answers, found.tokens, found.prefilled)


@dataclass(frozen=True)
class SampledRows:
    """Rows that a model was sampled on.

    Attributes:
        rows: the rows.
        problems: each with its samples.
        render: how the model was given prompts.
        tokens: tokens that were sampled.
        prefilled: prompt tokens that were read, see :func:`.samples.prefilled`.
    """

    rows: Dataset
    problems: list[Problem]
    render: Renderer
    tokens: int
    prefilled: int


def sampled_rows(
    setup: Setup,
    model: str,
    rows_of: EvalSet,
    request: Request,
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> SampledRows:
    """Sample a model on rows that a recipe trains on, and say what that has cost.

    Args:
        setup: the recipe.
        model: the model's folder or name.
        rows_of: the rows, see :func:`.start.train_rows`.
        request: how to sample.
        folder: the folder of the samples.
        progress: called with a job's name, the rows done, and those to do.

    Raises:
        UserError: see :func:`.start.sample_train_rows`.
    """
    problems = sample_train_rows(setup, model, rows_of, request, folder, progress)
    rows = rows_of.rows()
    render = _renderer(setup, load_tokenizer(model), rows[0]["prompt"], begun(folder))
    prompts = [render.prompt(prompt) for prompt in prompts_of(rows)]
    tokens = sum(s.tokens for p in problems for s in p.samples)
    return SampledRows(rows, problems, render, tokens, prefilled(prompts, request))


def policy_renderer(setup: Setup, prompt: Any, moment: Any) -> Renderer:
    """How the recipe's own model is given prompts.

    Args:
        setup: the recipe.
        prompt: a row's prompt, a text or a conversation.
        moment: the moment that its template tells; None leaves the clock running.
    """
    own = setup.recipe
    where = own.model_source(), own.folder
    tokenizer = load_tokenizer(*where, **hub(own.model_options))
    config = load_configs(*where, **hub(own.model_options))[1]
    return _renderer(setup, tokenizer, prompt, moment, end_of_text_ids(tokenizer, config))


def _renderer(
    setup: Setup, tokenizer: Any, prompt: Any, moment: Any, ends: tuple[int, ...] = ()
) -> Renderer:
    give_template(tokenizer, prompt)
    template = getattr(setup.args, "chat_template_kwargs", None)
    return Renderer(tokenizer, ends, pinned(tokenizer, template, moment))


def lines_of(rows: Dataset, kept: Sequence[Sequence[str]], others: bool = False) -> Iterator[str]:
    """The rows as lines of a file, with texts in the place of their demonstrations.

    Args:
        rows: the rows.
        kept: the texts of each.
        others: rows without a text are written too, with the demonstrations that they have.
    """
    for row, texts in zip(plain_rows(rows, shown=others), kept, strict=True):
        if texts or others:
            yield line_of({**row, "demonstration": list(texts)} if texts else row)


def plain_rows(rows: Any, shown: bool = False) -> Iterator[dict[str, Any]]:
    """The rows without columns of ours.

    Args:
        rows: a dataset.
        shown: those that have demonstrations keep them.
    """
    names = visible(rows.column_names)
    for row in rows.select_columns(names):
        kept = {k: v for k, v in row.items() if k != "demonstration" and v is not None}
        shows = shown and row["demonstration"]
        yield {**kept, "demonstration": row["demonstration"]} if shows else kept


def line_of(row: Mapping[str, Any]) -> str:
    """A row as a line of a file.

    Raises:
        UserError: it holds what JSON does not.
    """
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise UserError(
            f"a row cannot be written as JSON ({error}): give pictures as paths of files, not as "
            "bytes"
        ) from error


def right_ones(samples: Sequence[Sample], keep: int) -> list[str]:
    """The first different texts that are right and came to their end."""
    texts = dict.fromkeys(s.text for s in samples if s.correct and not s.truncated)
    return list(texts)[:keep]

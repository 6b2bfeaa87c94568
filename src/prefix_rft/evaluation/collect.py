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

from prefix_rft.data import Renderer, load_rows
from prefix_rft.data.moment import pinned
from prefix_rft.data.pictures import asked
from prefix_rft.engines.models import give_template, load_tokenizer
from prefix_rft.engines.setup import configure
from prefix_rft.evaluation.folder import begun
from prefix_rft.evaluation.samples import Request, Sample, prefilled
from prefix_rft.evaluation.start import sample_train_rows, train_rows
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
    own, folder = setup.recipe, output.with_suffix("")
    rows_of = train_rows(setup, limit)
    model = own.model_source()
    problems = sample_train_rows(setup, model, rows_of, request, folder, progress)
    rows = load_rows(own.train_data, folder=own.folder, reading=rows_of.reading, limit=limit)
    lines, answers = [], 0
    for row, problem in zip(plain_rows(rows), problems, strict=True):
        if found := right_ones(problem.samples, keep):
            answers += len(found)
            lines.append(line_of({**row, "demonstration": found}))
    if not lines:
        raise UserError(
            f"none of {len(problems)} rows was solved in {request.samples} samples: sample more, "
            "or train on demonstrations first"
        )
    write_text(output, "".join(lines))
    sampled = sum(s.tokens for p in problems for s in p.samples)
    template = getattr(setup.args, "chat_template_kwargs", None)
    read = prefilled(_prompts(model, rows, template, begun(folder)), request)
    return OwnAnswers(len(problems), len(lines), answers, sampled, read)


def _prompts(model: str, rows: Any, template: Any, moment: Any) -> list[list[int]]:
    """Token ids of the rows' prompts, as the model was given them."""
    tokenizer = load_tokenizer(model)
    give_template(tokenizer, rows[0]["prompt"])
    render = Renderer(tokenizer, (), pinned(tokenizer, template, moment))
    return [render.prompt(asked(row)) for row in rows]


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

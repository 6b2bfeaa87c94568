"""Demonstrations as token ids: tokenised once, EOS appended, never cut.

A prefix is later a slice of these ids. Nothing is decoded and encoded again on the way to the
model, so the tokens trained are the demonstration's own, whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from prefix_rft.data.cells import demonstration_texts, wanted
from prefix_rft.data.files import PLACE, DataError, Row
from prefix_rft.data.pictures import IMAGE, IMAGES, asked
from prefix_rft.data.render import Renderer

IDS = "prefix_rft_demonstration_ids"
EXAMPLE = "prefix_rft_example"
DROP_REASON = "prefix_rft_drop_reason"
ASKED = "prefix_rft_asked_"
"""What the names of columns begin with that hold the prompt of a demonstration with pictures."""

USABLE = "usable"
TOO_LONG = "longer than the budget"
EMPTY = "empty"
ENDS_INSIDE = "with an end-of-sequence token inside"
PICTURE_INSIDE = "with a token inside that stands for a picture"
DROPS = (TOO_LONG, EMPTY, ENDS_INSIDE, PICTURE_INSIDE)


@dataclass(frozen=True)
class DemonstrationReport:
    """What became of the demonstrations of a dataset.

    Attributes:
        rows: the number of the dataset's rows.
        rows_with_demonstration: rows that have one left.
        demonstrations: left over all rows.
        max_tokens: the budget.
        dropped: number of demonstrations dropped for each reason.
    """

    rows: int
    rows_with_demonstration: int
    demonstrations: int
    max_tokens: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        text = (
            f"{self.demonstrations} demonstrations in {self.rows_with_demonstration} "
            f"of {self.rows} rows"
        )
        return text + (f"; {self.drops}" if self.dropped else "")

    @property
    def drops(self) -> str:
        """``3 dropped: longer than 24 tokens; 1 dropped: empty``."""
        words = {TOO_LONG: f"longer than {self.max_tokens} tokens"}
        return "; ".join(f"{n} dropped: {words.get(why, why)}" for why, n in self.dropped.items())


def usable_or_why(ids: list[int], text: str, renderer: Renderer, max_tokens: int) -> str:
    """Whether a demonstration is kept, or why it is dropped.

    A longer one is dropped and not cut: it would lose its answer and its EOS.
    """
    if not text.strip() or len(ids) <= 1:
        return EMPTY
    if renderer.ends_inside(ids):
        return ENDS_INSIDE
    if not renderer.picture_ids.isdisjoint(ids):
        return PICTURE_INSIDE
    return USABLE if len(ids) <= max_tokens else TOO_LONG


def tokenize_demonstrations(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    column: str = "demonstration",
    renderer: Renderer | None = None,
) -> tuple[Dataset | IterableDataset, DemonstrationReport | None]:
    """Add the columns ``IDS`` (lists of token ids, EOS last) and ``EXAMPLE`` (the row's index).

    A demonstration that is empty, longer than ``max_tokens`` (EOS included) or ended by an EOS
    before its end is dropped and counted. The ids live in a memory-mapped file.

    Args:
        rows: the dataset; the column may be missing, then no row has a demonstration.
        tokenizer: must have an EOS token.
        max_tokens: completion budget.
        column: the column in which the demonstrations are.
        renderer: how texts become ids; by default the tokenizer's own EOS ends them.

    Returns:
        The dataset, and a report (None for a stream, whose rows are not known beforehand).

    Raises:
        DataError: the tokenizer has no EOS, a conversation has no template, or a cell of
            ``column`` holds something else than texts.
    """
    render = renderer or Renderer(tokenizer)

    def add_ids(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        cells = batch.get(column) or [None] * len(indices)
        conversation = isinstance(batch["prompt"][0], list)
        places = batch.get(PLACE) or [f"the dataset, row {index + 1}" for index in indices]
        if conversation:
            for place, prompt in zip(places, batch["prompt"], strict=True):
                try:
                    render.text(prompt)
                except DataError as error:
                    raise DataError(f"{place}: {error}") from error
        labels = batch.get("label") if column == "completion" else None
        texts_of = []
        for i, (index, cell) in enumerate(zip(indices, cells, strict=True)):
            row = Row("the dataset", index + 1, {"label": labels[i]} if labels else {})
            texts_of.append(demonstration_texts(row, cell, column) if wanted(row) else [])
        # One call for all rows: a fast tokenizer works on several texts at once.
        ids = iter(render.demonstrations([t for row in texts_of for t in row], conversation))
        added: dict[str, list[Any]] = {IDS: [], EXAMPLE: indices, DROP_REASON: []}
        for texts in texts_of:
            with_reasons = [
                (i, usable_or_why(i, t, render, max_tokens))
                for t, i in zip(texts, ids, strict=False)
            ]
            added[IDS].append([i for i, reason in with_reasons if reason == USABLE])
            added[DROP_REASON].append([reason for _, reason in with_reasons])
        return added

    options: dict[str, Any] = {"batched": True, "batch_size": 64, "with_indices": True}
    if isinstance(rows, IterableDataset):
        return rows.map(add_ids, **options).remove_columns([DROP_REASON]), None
    features = rows.features.copy()
    features.update({IDS: List(List(Value("int32"))), EXAMPLE: Value("int64")})
    features.update({DROP_REASON: List(Value("string"))})
    options |= {"writer_batch_size": 64, "desc": "demonstrations to ids"}
    mapped = rows.map(add_ids, features=features, **options)
    # Counted from a column of short words: the ids themselves stay on disk.
    reasons = list(mapped[DROP_REASON])
    report = DemonstrationReport(
        rows=len(mapped),
        rows_with_demonstration=sum(USABLE in row for row in reasons),
        demonstrations=sum(row.count(USABLE) for row in reasons),
        max_tokens=max_tokens,
        dropped={why: n for why in DROPS if (n := sum(row.count(why) for row in reasons))},
    )
    return mapped.remove_columns([DROP_REASON]), report


def imitation_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    column: str,
    renderer: Renderer | None = None,
) -> tuple[Dataset, DemonstrationReport]:
    """One row of ``input_ids`` and ``labels`` for each demonstration: only its tokens are targets.

    Where rows have pictures, prompts become ids batch by batch: ids and labels are those of the
    demonstration alone, and beside them stand the columns ``ASKED`` of the prompt and its pictures.

    Raises:
        DataError: no demonstration is left.
    """
    if not isinstance(rows, Dataset):
        raise DataError("imitation needs a dataset of known length, not a stream")
    render = renderer or Renderer(tokenizer)
    mapped: Any
    mapped, report = tokenize_demonstrations(rows, tokenizer, max_tokens, column, render)
    if report is None or not report.demonstrations:
        drops = f" ({report.drops})" if report and report.dropped else ""
        raise DataError(
            f"imitation needs demonstrations, but no row has one in column '{column}'{drops}"
        )

    pictures = [name for name in (IMAGE, IMAGES) if name in mapped.column_names]
    if pictures:
        return beside_prompts(mapped, pictures), report

    def join(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        ids, labels = [], []
        for prompt, demonstrations in zip(batch["prompt"], batch[IDS], strict=True):
            start = render.prompt(prompt) if demonstrations else []
            for demonstration in demonstrations:
                ids.append([*start, *demonstration])
                labels.append([-100] * len(start) + list(demonstration))
        return {"input_ids": ids, "labels": labels}

    joined: Any = mapped.map(join, batched=True, batch_size=64, remove_columns=mapped.column_names)
    return joined, report


def beside_prompts(rows: Dataset, pictures: list[str]) -> Dataset:
    """The demonstrations of rows with pictures, a row for each, with what their prompts are of.

    Args:
        rows: rows with demonstrations as token ids.
        pictures: the columns of pictures.
    """
    names = ["prompt", *pictures, *([PLACE] if PLACE in rows.column_names else [])]
    owners = [i for i, ids in enumerate(rows[IDS]) for _ in ids]
    ids = [demonstration for row in rows[IDS] for demonstration in row]
    taken = rows.select_columns(names).select(owners)
    taken = taken.rename_columns({name: ASKED + name for name in names if name != PLACE})
    int_lists = List(Value("int32"))
    for name in ("input_ids", "labels"):
        taken = taken.add_column(name, ids, feature=int_lists)  # pyright: ignore[reportCallIssue]
    return taken


def asked_again(row: Mapping[str, Any]) -> Any:
    """The prompt of such a row, with its pictures opened in it.

    Raises:
        DataError: a picture cannot be opened.
    """
    own = {k.removeprefix(ASKED): v for k, v in row.items() if k.startswith(ASKED) or k == PLACE}
    return asked(own)

"""Demonstrations as token ids: tokenised once, EOS appended, never cut.

A prefix is later a slice of these ids. Nothing is decoded and encoded again on the way to the
model, so the tokens trained are the demonstration's own, whatever the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from prefix_rft.data.files import DataError

IDS = "prefix_rft_demonstration_ids"
EXAMPLE = "prefix_rft_example"
KEPT = "prefix_rft_kept"
DROPPED = "prefix_rft_dropped"


@dataclass(frozen=True)
class DemonstrationReport:
    """What became of the demonstrations of a dataset."""

    rows: int
    rows_with_demonstration: int
    demonstrations: int
    dropped_too_long: int
    max_tokens: int

    def __str__(self) -> str:
        text = (
            f"{self.demonstrations} demonstrations in {self.rows_with_demonstration} "
            f"of {self.rows} rows"
        )
        if self.dropped_too_long:
            text += f"; {self.dropped_too_long} dropped: longer than {self.max_tokens} tokens"
        return text


def texts_of(value: Any, row: int, column: str) -> list[str]:
    """The demonstrations of one row: none, one text, or a list of texts.

    Raises:
        DataError: anything else.
    """
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        odd = (
            values
            if not isinstance(values, list)
            else next(v for v in values if not isinstance(v, str))
        )
        inside = "" if odd is values else " in the list"
        raise DataError(
            f"row {row + 1}, column '{column}': a demonstration must be a text or a list of texts, "
            f"got {type(odd).__name__}{inside}"
        )
    return [v for v in values if v.strip()]


def tokenize_demonstrations(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    column: str = "demonstration",
) -> tuple[Dataset | IterableDataset, DemonstrationReport | None]:
    """Add the columns ``IDS`` (lists of token ids, EOS last) and ``EXAMPLE`` (the row's index).

    A demonstration longer than ``max_tokens`` (EOS included) is dropped and counted, never cut: a
    cut one would lose its answer and its EOS. The ids live in a memory-mapped file.

    Args:
        rows: the dataset; the column may be missing, then no row has a demonstration.
        tokenizer: must have an EOS token.
        max_tokens: completion budget.
        column: where the demonstrations are.

    Returns:
        The dataset, and a report (None for a stream, whose rows are not known beforehand).
    """
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise DataError("the tokenizer has no EOS token, so a demonstration cannot end")

    def with_eos(ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == eos else [*ids, eos]

    def add_ids(row: dict[str, Any], index: int) -> dict[str, Any]:
        if isinstance(row.get("prompt"), list) and tokenizer.chat_template is None:
            raise DataError(
                f"row {index + 1}: the prompt is a conversation, but the tokenizer has "
                "no chat template"
            )
        texts = texts_of(row.get(column), index, column)
        ids = [with_eos(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
        kept = [i for i in ids if len(i) <= max_tokens]
        return {IDS: kept, EXAMPLE: index, KEPT: len(kept), DROPPED: len(ids) - len(kept)}

    if isinstance(rows, IterableDataset):
        return rows.map(add_ids, with_indices=True).remove_columns([KEPT, DROPPED]), None
    features = rows.features.copy()
    features.update({IDS: List(List(Value("int32"))), EXAMPLE: Value("int64")})
    features.update({KEPT: Value("int64"), DROPPED: Value("int64")})
    mapped = rows.map(add_ids, with_indices=True, features=features, desc="demonstrations to ids")
    # Counted from a column of numbers: the ids themselves stay on disk.
    counts = list(mapped[KEPT])
    report = DemonstrationReport(
        rows=len(mapped),
        rows_with_demonstration=sum(n > 0 for n in counts),
        demonstrations=sum(counts),
        dropped_too_long=sum(mapped[DROPPED]),
        max_tokens=max_tokens,
    )
    return mapped.remove_columns([KEPT, DROPPED]), report


def prompt_ids_of(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a prompt, as TRL's GRPOTrainer makes them: text, or messages with a template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    ids: Any = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return list(ids)


def imitation_rows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int, column: str
) -> tuple[Dataset, DemonstrationReport]:
    """One row of ``input_ids`` and ``labels`` for each demonstration: only its tokens are targets.

    Raises:
        DataError: no demonstration is left.
    """
    if not isinstance(rows, Dataset):
        raise DataError("imitation needs a dataset of known length, not a stream")
    mapped, report = tokenize_demonstrations(rows, tokenizer, max_tokens, column)
    if report is None or not report.demonstrations:
        dropped = report.dropped_too_long if report else 0
        raise DataError(
            f"imitation needs demonstrations, but no row has one in column '{column}' "
            f"({dropped} dropped: longer than {max_tokens} tokens)"
        )

    def join(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        ids, labels = [], []
        for prompt, demonstrations in zip(batch["prompt"], batch[IDS], strict=True):
            start = prompt_ids_of(prompt, tokenizer) if demonstrations else []
            for demonstration in demonstrations:
                ids.append([*start, *demonstration])
                labels.append([-100] * len(start) + list(demonstration))
        return {"input_ids": ids, "labels": labels}

    joined: Any = mapped.map(join, batched=True, remove_columns=mapped.column_names)
    return joined, report

"""Known shapes of rows, and how each becomes ``prompt``, ``demonstration`` and ``answer``.

Shapes and their columns: verl's parquet files as LUFFY extends them, TRL's dataset formats, chat
messages, and the problem/solution/answer of OpenR1-Math and its relatives.

Of data about preferences only what was preferred is a demonstration: ``chosen``, and a
``completion`` whose ``label`` is true. What a cell may hold is in :mod:`prefix_rft.data.cells`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefix_rft.data.cells import (
    checked_answer,
    checked_prompt,
    demonstration_texts,
    is_conversation,
    kind,
    refuse_stringified,
    split_conversation,
    wanted,
)
from prefix_rft.data.files import Row
from prefix_rft.data.pictures import checked_pictures
from prefix_rft.support.columns import OURS

RESERVED = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("tools", "environments"),
)
"""What TRL passes to reward functions beside the columns, or takes for tools."""

DEMONSTRATIONS = ("demonstration", "demonstrations")
QUESTIONS = ("problem", "question")


@dataclass(frozen=True)
class RowShape:
    """Where a row keeps what; None where it has none.

    Attributes:
        name: what to call it.
        prompt: column.
        demonstration: column; the last message of ``prompt`` itself where both are one.
        answer: column, with dots into nested ones.
        ask: the prompt is a question, to be asked as a user message.
        spent: columns that hold nothing more than these.
    """

    name: str
    prompt: str
    demonstration: str | None = None
    answer: str | None = None
    ask: bool = False
    spent: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"prompt from '{self.prompt}'"]
        parts += [f"demonstrations from '{self.demonstration}'"] if self.demonstration else []
        parts += [f"answer from '{self.answer}'"] if self.answer else []
        return f"{self.name}: {', '.join(parts)}"


def detect(row: Row) -> RowShape:
    """The shape of a row.

    Raises:
        DataError: no known shape, or a column whose name is taken.
    """
    columns = row.values
    reserved = next((c for c in columns if c in RESERVED or c.startswith(OURS)), None)
    if reserved:
        raise row.error("this name is taken by the trainer: rename it", reserved)

    def first(*names: str) -> str | None:
        return next((n for n in names if n in columns), None)

    answer = first("answer", "ground_truth", "final_answer")
    if "prompt" in columns and "reward_model" in columns:
        target = first("target_lst", "target", *DEMONSTRATIONS)
        truth = "reward_model.ground_truth"
        spent = ("target", "target_lst", "demonstrations")
        return RowShape("verl rows", "prompt", target, truth, spent=spent)
    if "prompt" in columns and "completion" in columns:
        answer = answer or first("solution")
        return RowShape(
            "prompt-completion rows", "prompt", "completion", answer, spent=("completion",)
        )
    if "chosen" in columns and "rejected" in columns and not first(*DEMONSTRATIONS):
        answer = answer or first("solution")
        # A conversation holds its prompt itself.
        asked = None if is_conversation(columns["chosen"]) else first("prompt", *QUESTIONS)
        ask = asked in QUESTIONS
        return RowShape("preference rows", asked or "chosen", "chosen", answer, ask, ("chosen",))
    if "prompt" in columns:
        demonstration = first(*DEMONSTRATIONS)
        return RowShape("prompt rows", "prompt", demonstration, answer, spent=("demonstrations",))
    question = first(*QUESTIONS)
    if question:
        demonstration = first(*DEMONSTRATIONS, "generations", "solution")
        spent = ("demonstrations", "generations")
        return RowShape("problem rows", question, demonstration, answer, True, spent)
    if "messages" in columns:
        answer = answer or first("solution")
        return RowShape("message rows", "messages", "messages", answer, spent=("messages",))
    raise row.error(
        "no column 'prompt', 'messages', 'problem' or 'question'; it has "
        f"{', '.join(columns) or 'none'} (map one with columns: {{prompt: NAME}})"
    )


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with columns under the names that the library knows; dots reach into nested ones.

    Raises:
        DataError: a column is missing, or its new name is taken.
    """
    values = dict(row.values)
    for name, present in columns.items():
        if name == present:
            continue
        if name in row.values:
            raise row.error(f"the name is taken, so '{present}' cannot have it", name)
        values[name] = _reach(row, present)
        values.pop(present, None)
    return replace(row, values=values)


def canonical(row: Row, shape: RowShape, system: str | None = None) -> dict[str, Any]:
    """``prompt`` (text or messages), ``demonstration`` (list of texts), ``answer``, and the rest.

    Args:
        row: the row as it stands in the data, renamed.
        shape: the shape of this row.
        system: system message for conversations that have none.

    Raises:
        DataError: something is missing, empty or of the wrong type.
    """
    prompt, demonstrations = row.values[shape.prompt], []
    if shape.demonstration == shape.prompt:
        prompt, demonstrations = split_conversation(row, prompt, shape.prompt)
    elif shape.demonstration:
        cell = row.values[shape.demonstration]
        demonstrations = demonstration_texts(row, cell, shape.demonstration)
        if shape.demonstration == "completion" and not wanted(row):
            demonstrations = []
    if shape.ask:
        if not isinstance(prompt, str | None):
            raise row.error(f"a question is a text, got {kind(prompt)}", shape.prompt)
        refuse_stringified(row, prompt, shape.prompt)
        prompt = [{"role": "user", "content": prompt or ""}]
    prompt = checked_prompt(row, prompt, shape.prompt, system)
    rest = {k: v for k, v in row.values.items() if k not in shape.spent}
    values = {**rest, "prompt": prompt, "demonstration": demonstrations}
    values |= checked_pictures(row, prompt, row.folder)
    if shape.answer:
        values["answer"] = checked_answer(row, _reach(row, shape.answer), shape.answer)
    return values


def _reach(row: Row, path: str) -> Any:
    """The value at ``a`` or ``a.b``; a column whose name has a dot comes first."""
    if path in row.values:
        return row.values[path]
    value: Any = row.values
    done = ""
    for name in path.split("."):
        if not isinstance(value, dict):
            raise row.error(f"an object with '{name}' is needed, got {kind(value)}", done)
        if name not in value:
            raise row.error(f"missing; there are {', '.join(map(str, value))}", path)
        value, done = value[name], f"{done}.{name}".removeprefix(".")
    return value

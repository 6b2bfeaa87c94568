"""Known shapes of rows, and how each becomes ``prompt``, ``demonstration`` and ``answer``.

Shapes and their columns: verl's parquet files as LUFFY extends them, TRL's dataset formats, chat
messages, and the problem/solution/answer of OpenR1-Math and its relatives.

Of data about preferences only what was preferred is a demonstration: ``chosen``, and a
``completion`` whose ``label`` is true.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefix_rft.data.files import Row
from prefix_rft.data.stringified import MESSAGES, stringified
from prefix_rft.support.columns import OURS

RESERVED = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("image", "images", "tools", "environments"),
)
"""What TRL passes to reward functions beside the columns, or takes for pictures and tools."""

DEMONSTRATIONS = ("demonstration", "demonstrations")
QUESTIONS = ("problem", "question")
ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")


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
        target = first("target_lst", "target")
        truth = "reward_model.ground_truth"
        return RowShape("verl rows", "prompt", target, truth, spent=("target", "target_lst"))
    if "prompt" in columns and "completion" in columns:
        answer = answer or first("solution")
        return RowShape(
            "prompt-completion rows", "prompt", "completion", answer, spent=("completion",)
        )
    if "chosen" in columns and "rejected" in columns and not first(*DEMONSTRATIONS):
        answer = answer or first("solution")
        # A conversation holds its prompt itself.
        asked = None if _is_conversation(columns["chosen"]) else first("prompt", *QUESTIONS)
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
    for wanted, present in columns.items():
        if wanted == present:
            continue
        if wanted in row.values:
            raise row.error(f"the name is taken, so '{present}' cannot have it", wanted)
        values[wanted] = _reach(row, present)
        values.pop(present, None)
    return Row(row.source, row.number, values)


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
        prompt, demonstrations = _split(row, prompt, shape.prompt)
    elif shape.demonstration:
        cell = row.values[shape.demonstration]
        demonstrations = demonstration_texts(row, cell, shape.demonstration)
        if shape.demonstration == "completion" and not wanted(row):
            demonstrations = []
    if shape.ask:
        if not isinstance(prompt, str | None):
            raise row.error(f"a question is a text, got {kind(prompt)}", shape.prompt)
        _refuse_stringified(row, prompt, shape.prompt)
        prompt = [{"role": "user", "content": prompt or ""}]
    prompt = _prompt(row, prompt, shape.prompt, system)
    rest = {k: v for k, v in row.values.items() if k not in shape.spent}
    found = {**rest, "prompt": prompt, "demonstration": demonstrations}
    if shape.answer:
        found["answer"] = _answer(row, _reach(row, shape.answer), shape.answer)
    return found


def kind(value: Any) -> str:
    """A value's kind in the words of a data file."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (write null where there is no value)"
    names = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}
    names |= {int: "a number", float: "a number", type(None): "null", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def demonstration_texts(row: Row, value: Any, column: str) -> list[str]:
    """The demonstrations in one cell: a text, an assistant message, or a list of either.

    A list of messages is one demonstration (verl, TRL); a list of such lists is several. Blank ones
    are kept here, and dropped and counted where they become ids.

    Raises:
        DataError: anything else.
    """
    if value is None:
        return []
    if isinstance(value, (str, dict)) or (isinstance(value, list) and _are_messages(value)):
        value = [value]
    if not isinstance(value, list):
        raise row.error(f"a demonstration is a text or a list of texts, got {kind(value)}", column)
    return [_demonstration(row, one, column) for one in value]


def wanted(row: Row) -> bool:
    """Whether a completion is to be learned from: not if its ``label`` is false, as KTO has it.

    Raises:
        DataError: a label that may mean so, and is neither true nor false.
    """
    if "label" not in row.values:
        return True
    label = row.values["label"]
    if isinstance(label, bool):
        return label
    if label is None or str(label).strip().lower() in UNCLEAR:
        raise row.error(
            f"is {label!r}, but says with true or false whether the completion is a good one: "
            "write that, or rename the column",
            "label",
        )
    return True


UNCLEAR = ("0", "1", "0.0", "1.0", "nan", "true", "false", "yes", "no", "")
"""Labels of another column's kind, or of one whose true and false were written otherwise."""


def _is_conversation(value: Any) -> bool:
    """Whether a cell holds messages that begin before the assistant's."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def _refuse_stringified(row: Row, value: Any, column: str) -> None:
    if stringified(value) == MESSAGES:
        raise row.error(
            "holds the text of a list of messages, not the list: read it with json.loads or "
            "ast.literal_eval, and write the list",
            column,
        )


def _are_messages(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(m, dict) for m in value)


def _demonstration(row: Row, one: Any, column: str) -> str:
    if isinstance(one, str):
        _refuse_stringified(row, one, column)
        return one
    messages = [one] if isinstance(one, dict) else one
    if not isinstance(messages, list) or not _are_messages(messages):
        raise row.error(
            f"a demonstration is a text or a list of texts, got {kind(one)} in the list", column
        )
    if len(messages) != 1:
        raise row.error(
            f"a demonstration is one assistant message, got {len(messages)} messages: "
            "earlier turns belong in the prompt",
            column,
        )
    message = _message(row, messages[0], column)
    if message["role"] != "assistant":
        raise row.error(
            f"a demonstration is an assistant message, got role '{message['role']}'", column
        )
    return message["content"]


def _split(row: Row, messages: Any, column: str) -> tuple[list[Any], list[str]]:
    """A conversation's messages before its last assistant message, and that one's text."""
    if not messages:
        raise row.error("the conversation is missing or empty", column)
    _refuse_stringified(row, messages, column)
    if not isinstance(messages, list):
        raise row.error(f"a conversation is a list of messages, got {kind(messages)}", column)
    last = _message(row, messages[-1], column)
    if last["role"] == "assistant":
        return messages[:-1], [last["content"]]
    return messages, []


def _prompt(row: Row, prompt: Any, column: str, system: str | None) -> Any:
    _refuse_stringified(row, prompt, column)
    if isinstance(prompt, str) and prompt.strip():
        if system is not None:
            raise row.error("system_prompt needs conversations, but the prompt is a text", column)
        return prompt
    if prompt is None or prompt == [] or isinstance(prompt, str):
        raise row.error("the prompt is missing or empty", column)
    if not isinstance(prompt, list):
        raise row.error(f"a prompt is a text or a list of messages, not {kind(prompt)}", column)
    messages = [_message(row, m, column) for m in prompt]
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        raise row.error("wrong order of roles: a system message must be the first", column)
    if roles[-1] != "user":
        raise row.error(
            f"wrong order of roles: a prompt ends with a user message, not '{roles[-1]}'", column
        )
    if not messages[-1]["content"].strip():
        raise row.error("the prompt is missing or empty", column)
    if system is not None and roles[0] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(row: Row, message: Any, column: str) -> dict[str, str]:
    """Role and text of a message; reasoning that is kept apart goes back between think tags."""
    if not isinstance(message, dict):
        raise row.error(
            f"a message is an object with role and content, got {kind(message)}", column
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise row.error(f"a message's role is one of {', '.join(ROLES)}, got {role!r}", column)
    if message.get("tool_calls"):
        raise row.error("tool calls are not supported", column)
    if isinstance(content, list) and all(_is_text_part(p) for p in content):
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise row.error(f"a message's content is a text, got {kind(content)}", column)
    reasoning = next((message[k] for k in REASONING if message.get(k)), None)
    if reasoning is not None and role == "assistant":
        if not isinstance(reasoning, str):
            raise row.error(f"a message's reasoning is a text, got {kind(reasoning)}", column)
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
    return {"role": role, "content": content}


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _answer(row: Row, answer: Any, column: str) -> Any:
    if isinstance(answer, float) and math.isnan(answer):
        raise row.error(f"the answer is {kind(answer)}", column)
    if not isinstance(answer, (str, int, float, list, dict, type(None))):
        raise row.error(f"an answer is a text or a number, got {kind(answer)}", column)
    if isinstance(answer, str) and "\n####" in answer:
        raise row.error(
            "holds a worked solution and '####', as GSM8K does: "
            "run prefix-rft convert gsm8k on the file",
            column,
        )
    return answer


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

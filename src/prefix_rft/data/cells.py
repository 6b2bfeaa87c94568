"""What a cell of a row may hold: a prompt, a demonstration, an answer, each checked."""

from __future__ import annotations

import math
from typing import Any

from prefix_rft.data.files import Row
from prefix_rft.data.pictures import texts_of
from prefix_rft.data.stringified import MESSAGES, stringified

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")


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


def is_conversation(value: Any) -> bool:
    """Whether a cell holds messages that begin before the assistant's."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def refuse_stringified(row: Row, value: Any, column: str) -> None:
    """Raise a DataError where a cell holds the text of a list of messages."""
    if stringified(value) == MESSAGES:
        raise row.error(
            "holds the text of a list of messages, not the list: read it with json.loads or "
            "ast.literal_eval, and write the list",
            column,
        )


def _are_messages(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(m, dict) for m in value)


def _demonstration(row: Row, demonstration: Any, column: str) -> str:
    if isinstance(demonstration, str):
        refuse_stringified(row, demonstration, column)
        return demonstration
    messages = [demonstration] if isinstance(demonstration, dict) else demonstration
    if not isinstance(messages, list) or not _are_messages(messages):
        raise row.error(
            f"a demonstration is a text or a list of texts, got {kind(demonstration)} in the list",
            column,
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


def split_conversation(row: Row, messages: Any, column: str) -> tuple[list[Any], list[str]]:
    """A conversation's messages before its last assistant message, and that one's text."""
    if not messages:
        raise row.error("the conversation is missing or empty", column)
    refuse_stringified(row, messages, column)
    if not isinstance(messages, list):
        raise row.error(f"a conversation is a list of messages, got {kind(messages)}", column)
    last = _message(row, messages[-1], column)
    if last["role"] == "assistant":
        return messages[:-1], [last["content"]]
    return messages, []


def checked_prompt(row: Row, prompt: Any, column: str, system: str | None) -> Any:
    """The prompt, a text or messages, with the system message in front that it lacks.

    Raises:
        DataError: it is empty, of another kind, or its roles stand in another order.
    """
    refuse_stringified(row, prompt, column)
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
    if not "".join(texts_of(messages[-1:])).strip():
        raise row.error("the prompt is missing or empty", column)
    if system is not None and roles[0] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _message(row: Row, message: Any, column: str) -> dict[str, Any]:
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
    if isinstance(content, list) and role == "user":
        return {"role": role, "content": [_block(row, part, column) for part in content]}
    if not isinstance(content, str):
        raise row.error(f"a message's content is a text, got {kind(content)}", column)
    reasoning = next((message[k] for k in REASONING if message.get(k)), None)
    if reasoning is not None and role == "assistant":
        if not isinstance(reasoning, str):
            raise row.error(f"a message's reasoning is a text, got {kind(reasoning)}", column)
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"
    return {"role": role, "content": content}


def _block(row: Row, part: Any, column: str) -> dict[str, str]:
    """A text, or the place of a picture, which itself stands in a column of its own."""
    if _is_text_part(part):
        return {"type": "text", "text": part["text"]}
    if not isinstance(part, dict) or part.get("type") != "image":
        raise row.error(
            f"a part of a message is a text or the place of a picture, got {part!r:.60}", column
        )
    if any(v is not None for k, v in part.items() if k not in ("type", "text")):
        raise row.error(
            'a picture stands in the column "image" or "images", and its place in the message is '
            'written {"type": "image"}',
            column,
        )
    return {"type": "image"}


def _is_text_part(part: Any) -> bool:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def checked_answer(row: Row, answer: Any, column: str) -> Any:
    """The answer as it stands.

    Raises:
        DataError: it is no text, number, list or object, or a worked solution.
    """
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

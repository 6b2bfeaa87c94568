"""Rows of well-known public datasets, in the shape of this library.

A converted row has ``prompt`` (messages), ``demonstration`` (a list of texts, maybe empty),
``answer`` (a text) and a few columns of its source. A row that does not fit is refused, never
dropped. The texts are untrusted: every scan below is linear in their length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prefix_rft.support.errors import UserError, choose

Row = dict[str, Any]


@dataclass(frozen=True)
class Converter:
    """How the rows of one public dataset become rows of this library.

    Attributes:
        name: what ``convert`` calls it.
        source: the dataset's name on the Hugging Face hub.
        summary: one line for a list of converters.
        columns: columns that every row must have.
        row: makes one row; its ``UserError`` starts with the column, ``convert`` adds the place.
    """

    name: str
    source: str
    summary: str
    columns: tuple[str, ...]
    row: Callable[[Mapping[str, Any]], Row]


def convert(name: str, rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Row]:
    """Convert ``rows`` with the converter ``name``, one by one.

    Args:
        name: a key of ``CONVERTERS``.
        rows: the rows of the dataset, for example a ``datasets.Dataset``.
        where: the file or dataset that they come from, for the messages.

    Raises:
        UserError: unknown name (at once); missing column, or a row that does not fit (when the
            row is reached).
    """
    choose("converter", name, CONVERTERS)
    return _converted(CONVERTERS[name], rows, where)


def _converted(
    converter: Converter, rows: Iterable[Mapping[str, Any]], where: str
) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        for column in converter.columns:
            if column not in row:
                raise UserError(
                    f"{where}, row {number}, {_missing(row, column)}, or use another converter "
                    f"than '{converter.name}'"
                )
        try:
            new = converter.row(row)
        except UserError as error:
            raise UserError(f"{where}, row {number}, {error}") from error
        yield new


def last_boxed(text: str, column: str) -> str:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}``, without white space around it.

    Escaped braces (``\{``) do not count. Without braces (``\boxed 7``) the content ends at white
    space or at the end of the formula, and punctuation of the sentence is left out.

    Raises:
        UserError: no box, an empty box, or braces that are not balanced.
    """
    tokens = list(TOKEN.finditer(text))
    boxes = [i for i, t in enumerate(tokens) if t[0] in (r"\boxed", r"\fbox")]
    if not boxes:
        raise _refusal(column, r"has no \boxed{...}, add one around the answer")
    start = boxes[-1] + 1
    while start < len(tokens) and tokens[start][0].isspace():
        start += 1
    braces = start < len(tokens) and tokens[start][0] == "{"
    depth, content = 0, []
    for piece in (t[0] for t in tokens[start:]):
        if not braces and depth == 0 and (piece.isspace() or piece in ENDS):
            break
        depth += (piece == "{") - (piece == "}")
        content.append(piece)
        if braces and depth == 0:
            content = content[1:-1]
            break
    if depth != 0:
        raise _refusal(column, r"has a \boxed whose braces are not balanced, close them")
    answer = "".join(content).strip()
    if not braces:
        answer = answer.rstrip(".,;:")
    if not answer:
        raise _refusal(column, r"has an empty \boxed, put the answer inside")
    return answer


# A command, an escaped character, white space, a formula's end, a brace, or other text.
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\s+|[${}]|[^\\\s${}]+|\\", re.DOTALL)
ENDS = ("$", "}", r"\)", r"\]", r"\\")


def _openr1_math_46k(row: Mapping[str, Any]) -> Row:
    """Elliott/Openr1-Math-46k-8192: the parquet file of LUFFY (arXiv 2504.14945), verl's columns.

    Messages and traces stay as they are, ``<think>`` tags too.
    """
    prompt = [_message(m, "prompt") for m in _list(row["prompt"], "prompt")]
    if not prompt:
        raise _refusal("prompt", "has no message, correct or remove the row")
    several = row.get("target_lst")
    texts = [] if row["target"] is None else _assistant(row["target"], "target")
    for one in [] if several is None else _list(several, "target_lst"):
        texts += _assistant([one] if isinstance(one, Mapping) else one, "target_lst")
    truth = _field(row, "reward_model", "ground_truth")
    number = type(truth) is int or (isinstance(truth, float) and math.isfinite(truth))
    split, index = _field(row, "extra_info", "split"), _field(row, "extra_info", "index")
    return {
        "prompt": prompt,
        "demonstration": list(dict.fromkeys(texts)),
        "answer": str(truth) if number else _text(truth, "reward_model.ground_truth"),
        "data_source": _text(row["data_source"], "data_source"),
        "id": f"{split}/{index}",
    }


def _gsm8k(row: Mapping[str, Any]) -> Row:
    r"""openai/gsm8k (arXiv 2110.14168): the solution without its calculator annotations.

    The final line ``#### 1,024`` becomes ``The answer is \boxed{1024}.``
    """
    reasoning, _, last = _text(row["answer"], "answer").strip().rpartition("\n")
    answer = last.removeprefix("####").strip()
    if not last.startswith("####") or not answer:
        raise _refusal("answer", f"the last line must be '#### ANSWER', got {last[:60]!r}")
    answer = THOUSANDS.sub(lambda match: match[0].replace(",", ""), answer)
    end = rf"The answer is \boxed{{{answer}}}."
    if last_boxed(end, "answer") != answer:
        raise _refusal("answer", f"the braces of {answer[:60]!r} are not balanced, close them")
    reasoning = ANNOTATION.sub("", reasoning).rstrip()
    return {
        "prompt": _user(_text(row["question"], "question")),
        "demonstration": [f"{reasoning}\n{end}" if reasoning else end],
        "answer": answer,
    }


ANNOTATION = re.compile(r"<<[^<>\n]*>>")
THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def _math(row: Mapping[str, Any]) -> Row:
    r"""MATH (arXiv 2103.03874), EleutherAI/hendrycks_math or HuggingFaceH4/MATH-500.

    The answer is in the last ``\boxed`` of the solution. An ``answer`` of the row's own (MATH-500)
    is the one that graders use, so it wins where the two differ.
    """
    subject = next((c for c in ("subject", "type") if row.get(c) is not None), None)
    if subject is None:
        raise _missing(row, "subject")
    solution = _text(row["solution"], "solution")
    answer = row.get("answer")
    new = {
        "prompt": _user(_text(row["problem"], "problem")),
        "demonstration": [solution],
        "answer": last_boxed(solution, "solution")
        if answer is None
        else _text(answer, "answer").strip(),
        "level": row["level"],
        "subject": row[subject],
    }
    return new | ({"id": row["unique_id"]} if "unique_id" in row else {})


def _openr1_math_220k(row: Mapping[str, Any]) -> Row:
    """open-r1/OpenR1-Math-220k: the traces that Math-Verify found right and that are complete.

    A missing verdict (null) counts as not verified.
    """
    generations = _list(row["generations"], "generations")
    keep = [True] * len(generations)
    for column in ("correctness_math_verify", "is_reasoning_complete"):
        flags = _list(row[column] if row[column] is not None else [None] * len(keep), column)
        if len(flags) != len(keep) or not all(f is None or isinstance(f, bool) for f in flags):
            raise _refusal(
                column, f"must be {len(keep)} times true or false, one for each of 'generations'"
            )
        keep = [k and f is True for k, f in zip(keep, flags, strict=True)]
    texts = [_text(g, "generations") for g in generations]
    return {
        "prompt": _user(_text(row["problem"], "problem")),
        "demonstration": [t for t, k in zip(texts, keep, strict=True) if k],
        "answer": _text(row["answer"], "answer"),
        "id": row["uuid"],
        "source": row["source"],
        "problem_type": row["problem_type"],
    }


def _refusal(column: str, what: str) -> UserError:
    return UserError(f"column '{column}': {what}")


def _missing(row: Mapping[str, Any], column: str) -> UserError:
    has = ", ".join(map(str, row)) or "nothing"
    return _refusal(column, f"missing, the row has {has}; rename the column that holds it")


def _must_be(column: str, wanted: str, value: Any) -> UserError:
    got = "null" if value is None else type(value).__name__
    return _refusal(column, f"must be {wanted}, got {got}; correct or remove the row")


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _must_be(column, "a text", value)
    if not value.strip():
        raise _refusal(column, "is empty, correct or remove the row")
    return value


def _list(value: Any, column: str) -> list[Any]:
    if not isinstance(value, list):
        raise _must_be(column, "a list", value)
    return value


def _field(row: Mapping[str, Any], column: str, field: str) -> Any:
    """``row[column][field]``."""
    if not isinstance(row[column], Mapping):
        raise _must_be(column, f"a mapping with '{field}'", row[column])
    if row[column].get(field) is None:
        raise _refusal(f"{column}.{field}", "missing, correct or remove the row")
    return row[column][field]


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _message(value: Any, column: str) -> dict[str, Any]:
    """A message as it is."""
    if not isinstance(value, Mapping):
        raise _must_be(column, "a list of messages with 'role' and 'content'", value)
    for key in ("role", "content"):
        if not isinstance(value.get(key), str):
            raise _must_be(f"{column}.{key}", "a text", value.get(key))
    return dict(value)


def _assistant(value: Any, column: str) -> list[str]:
    """The text of a list with one assistant message, or nothing for an empty list."""
    messages = [_message(m, column) for m in _list(value, column)]
    if len(messages) > 1 or any(m["role"] != "assistant" for m in messages):
        roles = ", ".join(m["role"] for m in messages)
        raise _refusal(column, f"must be one assistant message, got {roles[:60]}")
    return [_text(m["content"], f"{column}.content") for m in messages]


CONVERTERS: dict[str, Converter] = {
    c.name: c
    for c in (
        Converter(
            "openr1-math-46k",
            "Elliott/Openr1-Math-46k-8192",
            "46k problems with DeepSeek-R1 traces, the training set of LUFFY and Prefix-RFT",
            ("data_source", "prompt", "target", "reward_model", "extra_info"),
            _openr1_math_46k,
        ),
        Converter(
            "gsm8k",
            "openai/gsm8k",
            "grade-school word problems with short solutions",
            ("question", "answer"),
            _gsm8k,
        ),
        Converter(
            "math",
            "EleutherAI/hendrycks_math",
            "MATH competition problems with solutions; also MATH-500",
            ("problem", "level", "solution"),
            _math,
        ),
        Converter(
            "openr1-math-220k",
            "open-r1/OpenR1-Math-220k",
            "220k problems with several DeepSeek-R1 traces and their verdicts",
            (
                "problem",
                "answer",
                "generations",
                "correctness_math_verify",
                "is_reasoning_complete",
                "uuid",
                "source",
                "problem_type",
            ),
            _openr1_math_220k,
        ),
    )
}

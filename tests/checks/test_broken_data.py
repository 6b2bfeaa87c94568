"""Data that cannot be used, or not wholly: every one is said, with its place, by both commands.

An ``error`` stops training with one sentence; a ``drop`` is counted and training goes on; a
``note`` loses nothing, but the check says it; and some odd files are fine: they ``work``.
"""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from prefix_rft.cli import main
from tables import rest_slow
from tiny import CHAT_TEMPLATE, make_chat_tokenizer, make_model

pytestmark = pytest.mark.timeout(60)
Spoil = Callable[[Path], object]
Row = dict[str, Any]
BUDGET = 24
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
GONE = object()
"""In the place of a value: the row has no such key."""

GRADER = """
def slow(completions, answer, **kwargs):
    while "SLOW" in completions[0][-1]["content"]:
        pass
    return [1.0]
def raises(completions, answer, **kwargs):
    if "RAISE" in completions[0][-1]["content"]:
        raise KeyError("RAISE")
    return [1.0]
"""

LATE = """
import time
time.sleep(1.0)
def right(completions, answer, **kwargs):
    time.sleep(0.15)
    return [1.0]
"""


# ---- good data, in every shape -------------------------------------------------------------------


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def assistant(text: Any) -> Row:
    return {"role": "assistant", "content": text}


def system(text: Any) -> Row:
    return {"role": "system", "content": text}


def worked(i: int) -> str:
    return f"{i}+1={i + 1}, \\boxed{{{i + 1}}}"


def prompt_rows(first: int = 1) -> list[Row]:
    return [
        {"prompt": [user(f"{i}+1=?")], "demonstration": worked(i), "answer": str(i + 1)}
        for i in range(first, first + 4)
    ]


def text_rows() -> list[Row]:
    return [{**row, "prompt": row["prompt"][0]["content"]} for row in prompt_rows()]


def verl_rows() -> list[Row]:
    return [
        {
            "data_source": "made",
            "prompt": row["prompt"],
            "target": [assistant(row["demonstration"])],
            "reward_model": {"style": "rule", "ground_truth": row["answer"]},
        }
        for row in prompt_rows()
    ]


def completion_rows() -> list[Row]:
    return [
        {
            "prompt": row["prompt"],
            "completion": [assistant(row["demonstration"])],
            "answer": row["answer"],
        }
        for row in prompt_rows()
    ]


def message_rows() -> list[Row]:
    return [
        {
            "messages": [*row["prompt"], assistant(row["demonstration"])],
            "answer": row["answer"],
        }
        for row in prompt_rows()
    ]


def problem_rows() -> list[Row]:
    return [
        {"problem": row["prompt"], "solution": row["demonstration"], "answer": row["answer"]}
        for row in text_rows()
    ]


# ---- ways to spoil it ----------------------------------------------------------------------------


def recipe(**changes: Any) -> Spoil:
    def write(folder: Path) -> None:
        keys = {
            "model": "base",
            "train_data": "train.jsonl",
            "reward": "math",
            "name": "tiny",
            "prompts_per_step": 3,
            "num_generations": 2,
            "max_completion_length": BUDGET,
            "max_steps": 1,
            "learning_rate": 0.001,
            "eval_samples": 1,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump({**keys, **changes}))

    return write


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def jsonl(rows: list[Row], name: str = "train.jsonl") -> Spoil:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return lambda folder: (folder / name).write_text(text)


def third(rows: list[Row], **changes: Any) -> list[Row]:
    """The rows, with another third one."""
    new = {k: v for k, v in {**rows[2], **changes}.items() if v is not GONE}
    return [*rows[:2], new, *rows[3:]]


def row_3(**changes: Any) -> Spoil:
    return jsonl(third(prompt_rows(), **changes))


def every(rows: list[Row], **changes: Any) -> list[Row]:
    return [{**row, **changes} for row in rows]


def line_3(line: bytes) -> Spoil:
    """Another third line, as bytes."""

    def write(folder: Path) -> None:
        lines = (folder / "train.jsonl").read_bytes().splitlines()
        (folder / "train.jsonl").write_bytes(b"\n".join([*lines[:2], line, *lines[3:], b""]))

    return write


def whole(change: Callable[[bytes], bytes]) -> Spoil:
    """The good file's bytes, changed."""

    def write(folder: Path) -> None:
        (folder / "train.jsonl").write_bytes(change((folder / "train.jsonl").read_bytes()))

    return write


def file(name: str, data: bytes) -> Spoil:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        recipe(train_data=name.partition("/")[0])(folder)

    return write


def good_json(rows: Any) -> bytes:
    return json.dumps(rows, indent=1).encode()


def parquet(rows: list[Row] | pa.Table) -> Spoil:
    def write(folder: Path) -> None:
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
        pq.write_table(table, folder / "train.parquet")
        recipe(train_data="train.parquet")(folder)

    return write


def cut_parquet(folder: Path) -> None:
    parquet(prompt_rows())(folder)
    data = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(data[: len(data) // 2])


def zeros_in_parquet(folder: Path) -> None:
    """The footer is whole, the pages before it are not."""
    parquet(prompt_rows())(folder)
    data = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(data[:8] + bytes(200) + data[208:])


def column(name: str, values: Any) -> Spoil:
    """Good rows as parquet, but for one column."""
    table = pa.Table.from_pylist([{k: v for k, v in r.items() if k != name} for r in prompt_rows()])
    return parquet(table.append_column(name, values))


def latin_1_in_parquet() -> Spoil:
    raw = pa.array([*(worked(i).encode() for i in (1, 2)), b"caf\xe9", b"a"])
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())  # as a careless writer does it
    return column("demonstration", text)


def twice_in_parquet() -> Spoil:
    table = pa.Table.from_pylist(prompt_rows())
    return parquet(table.append_column("answer", pa.array(["7", "7", "7", "7"])))


def parts(*rows: list[Row]) -> Spoil:
    """A folder of jsonl files."""

    def write(folder: Path) -> None:
        (folder / "parts").mkdir()
        for i, part in enumerate(rows):
            jsonl(part, f"parts/part-{i}.jsonl")(folder)
        recipe(train_data="parts")(folder)

    return write


def template(text: str | None, **changes: Any) -> Spoil:
    """Another chat template, or none."""

    def write(folder: Path) -> None:
        path = folder / "base/chat_template.jinja"
        path.unlink() if text is None else path.write_text(text)
        recipe(**changes)(folder)

    return write


def bos(text: str = CHAT_TEMPLATE) -> Spoil:
    """A tokenizer that writes ``<s>`` in front of texts."""
    return lambda folder: make_chat_tokenizer(text, bos=True).save_pretrained(folder / "base")


def held_out(data: Spoil | list[Row], name: str = "test.jsonl", **changes: Any) -> Spoil:
    """Other rows for the evaluation."""
    write = jsonl(data, name) if isinstance(data, list) else data
    return both(write, recipe(eval_data=name, **changes))


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


TURNS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
IN_TURN = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
THINKS = TURNS + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
REWRITES = CHAT_TEMPLATE.replace("m['content']", "m['content'] | replace('boxed', 'fbox')")


# ---- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """How to spoil a good folder, what both commands must answer, and with which exit codes.

    Attributes:
        spoil: a good folder.
        train: exit code.
        check: exit code.
        train_says: words of its sentence, or of its output where it goes on.
        check_says: words of its report.
        row: that is to blame.
        column: that is to blame.
        file: that is to blame.
    """

    spoil: Spoil
    train: int
    check: int
    train_says: tuple[str, ...] = ()
    check_says: tuple[str, ...] = ()
    row: int | None = None
    column: str | None = None
    file: str = ""


def error(
    spoil: Spoil,
    *says: str,
    row: int | None = None,
    column: str | None = None,
    file: str = "train.jsonl",
    check: int = 1,
) -> Case:
    return Case(spoil, 2, check, says, says, row, column, file)


def drop(
    spoil: Spoil,
    train: str | tuple[str, ...],
    check: str,
    row: int | None = 3,
    serious: bool = False,
) -> Case:
    train = (train,) if isinstance(train, str) else train
    return Case(spoil, 0, int(serious), train, (check,), row)


def note(spoil: Spoil, says: str, row: int | None = None, train: tuple[str, ...] = ()) -> Case:
    return Case(spoil, 0, 0, train, (says,), row)


def works(spoil: Spoil, demonstrations: int = 4) -> Case:
    said = f"{demonstrations} demonstrations in {demonstrations} of 4 rows"
    return Case(spoil, 0, 0, (said,), (f"{demonstrations} demonstrations in", "ready:"))


def unknown(spoil: Spoil) -> Case:
    """It works, but the test's tokenizer does not know the characters."""
    words = "does not know a character of a demonstration"
    return Case(spoil, 0, 1, ("4 demonstrations in 4 of 4 rows", words), (words,), row=3)


def rejected(spoil: Spoil, status: str, row: int = 3) -> Case:
    """Kept, but its own grader gives it nothing: both commands say so."""
    says = f"a demonstration is '{status}' to its own grader"
    return drop(spoil, f"row {row}: {says}", says, row, serious=True)


def unread_gold(spoil: Spoil, row: int = 3, file: str = "train.jsonl") -> Case:
    words = "1 of 4 rows have a gold answer that 'math' cannot read; dropped: data file "
    words += f"'{file}', row {row}"
    return drop(spoil, words, "'math' cannot read the gold answer", row, serious=True)


DROPPED = "a demonstration is dropped: "
LEFT = "3 demonstrations in 3 of 4 rows; 1 dropped: "

FILES = {
    "no file": error(recipe(train_data="none.jsonl"), "does not exist", file="none.jsonl", check=2),
    "empty file": error(whole(lambda data: b""), "is empty", check=2),
    "blank lines only": error(whole(lambda data: b"\n \n\r\n"), "has no rows"),
    "BOM only": error(whole(lambda data: b"\xef\xbb\xbf"), "has no rows"),
    "UTF-16": error(whole(lambda data: data.decode().encode("utf-16")), "not UTF-8", row=1),
    "bytes of Latin-1": error(
        line_3(b'{"prompt": "caf\xe9"}'), "not UTF-8 (byte 0xe9 at position 16)", row=3
    ),
    "NUL bytes": error(line_3(bytes(50)), "not valid JSON", row=3),
    "line cut off": error(line_3(b'{"prompt": "1+1=?", "ans'), "not valid JSON", row=3),
    "two objects in a line": error(line_3(b'{"prompt": "a"} {"prompt": "b"}'), "JSON", row=3),
    "single quotes": error(line_3(b"{'prompt': 'a'}"), "not valid JSON", row=3),
    "old Mac line ends": error(whole(lambda data: data.replace(b"\n", b"\r")), "JSON", row=1),
    "key given twice": error(
        line_3(b'{"prompt": "a", "prompt": "b", "answer": "2"}'), "twice", row=3, column="prompt"
    ),
    "row that is a list": error(line_3(b'["1+1=?", "2"]'), "a row is an object", row=3),
    "row that is a number": error(line_3(b"3"), "a row is an object", row=3),
    "row that is null": error(line_3(b"null"), "a row is an object", row=3),
    "row that is an empty object": error(line_3(b"{}"), "no column 'prompt'", row=3),
    "gzip named jsonl": error(whole(gzip.compress), "not UTF-8", row=1),
    "json that is an object of rows": error(
        file("train.json", good_json({"data": prompt_rows()})), "list", file="train.json"
    ),
    "json that is a number": error(file("train.json", b"3"), "object", row=1, file="train.json"),
    "json that is an empty list": error(file("train.json", b"[]"), "no rows", file="train.json"),
    "json cut off": error(
        file("train.json", good_json(prompt_rows())[:-200]),
        "not valid JSON",
        "line ",
        file="train.json",
    ),
    "json with bytes of Latin-1": error(
        file("train.json", good_json(prompt_rows()).replace(b"3+1=?", b"caf\xe9")),
        "not UTF-8 (byte 0xe9 on line 26)",
        file="train.json",
    ),
    "json with a number among rows": error(
        file("train.json", good_json([*prompt_rows()[:2], 3])), "object", row=3, file="train.json"
    ),
    "number of many digits": error(
        line_3(b'{"prompt": "a", "answer": ' + b"9" * 5000 + b"}"), "digits", row=3
    ),
    "parquet named jsonl": error(
        both(
            parquet(prompt_rows()),
            lambda f: (f / "train.parquet").rename(f / "train.jsonl"),
            recipe(),
        ),
        "not ",
        row=1,
    ),
    "name that steers a terminal": error(
        file("tr\x1b[31m.jsonl", b"{}"), "no column 'prompt'", row=1, file="tr⟨ESC⟩[31m.jsonl"
    ),
    "name that looks like markup": error(
        both(file("a[/b].jsonl", b"{}"), recipe(train_data="a[/b].jsonl")),
        "no column 'prompt'",
        row=1,
        file="a[/b].jsonl",
    ),
    "too deep for JSON": error(
        line_3(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "too deep", row=3
    ),
    "folder without data": error(file("parts/a.txt", b"a"), "holds no file", file="parts", check=2),
    "folder with several splits": error(
        both(file("parts/test-0.jsonl", b"{}"), file("parts/train-0.jsonl", b"{}")),
        "several splits (test, train)",
        file="parts",
        check=2,
    ),
    "folder with an empty file": error(
        both(parts(prompt_rows()), file("parts/part-1.jsonl", b"")),
        "is empty",
        file="part-1.jsonl",
        check=2,
    ),
    "folder of two kinds of rows": error(
        parts(prompt_rows(), problem_rows()),
        "has the columns of problem rows",
        row=1,
        file="part-1.jsonl",
    ),
    "broken row in the second file": error(
        parts(prompt_rows(), third(prompt_rows(), prompt=None)),
        "missing or empty",
        row=3,
        column="prompt",
        file="part-1.jsonl",
    ),
    "dataset that is not there": error(
        recipe(train_data="nobody/nothing"), "cannot be loaded", file="nobody/nothing"
    ),
    "dataset with a broken row": error(
        both(parts(third(text_rows(), prompt=None)), recipe(train_data={"path": "parts"})),
        "missing or empty",
        row=3,
        column="prompt",
        file="parts",
    ),
    "dataset that is not JSON": error(
        both(
            file("parts/a.jsonl", b'{"prompt": "a"}\n{"pro'), recipe(train_data={"path": "parts"})
        ),
        "cannot be loaded",
        file="parts",
    ),
    "dataset without that split": error(
        both(parts(prompt_rows()), recipe(train_data={"path": "parts", "split": "dev"})),
        "cannot be loaded",
        file="parts",
    ),
}

PARQUET = {
    "parquet cut off": error(cut_parquet, "cannot be read", file="train.parquet"),
    "parquet with zeros inside": error(zeros_in_parquet, "cannot be read", file="train.parquet"),
    "gzip cut off, named parquet": error(
        file("train.parquet", gzip.compress(good_json(prompt_rows()))[:60]),
        "cannot be read",
        file="train.parquet",
    ),
    "parquet without rows": error(
        parquet(pa.Table.from_pylist(prompt_rows()).slice(0, 0)), "no rows", file="train.parquet"
    ),
    "parquet of nulls": error(
        parquet(every(prompt_rows(), prompt=None, demonstration=None, answer=None)),
        "missing or empty",
        row=1,
        column="prompt",
        file="train.parquet",
    ),
    "prompts NaN": error(
        column("prompt", pa.array([float("nan")] * 4)),
        "NaN",
        row=1,
        column="prompt",
        file="train.parquet",
    ),
    "demonstration NaN": error(
        column("demonstration", pa.array([None, None, float("nan"), None])),
        "NaN",
        row=3,
        column="demonstration",
        file="train.parquet",
    ),
    "answer NaN": error(
        column("answer", pa.array([2.0, 3.0, float("nan"), 5.0])),
        "NaN",
        row=3,
        column="answer",
        file="train.parquet",
    ),
    "prompts of bytes": error(
        column("prompt", pa.array([b"1+1=?"] * 4)),
        "bytes",
        row=1,
        column="prompt",
        file="train.parquet",
    ),
    "demonstrations of bytes": error(
        column("demonstration", pa.array([b"2"] * 4)),
        "bytes",
        row=1,
        column="demonstration",
        file="train.parquet",
    ),
    "answers of bytes": error(
        column("answer", pa.array([b"2", b"3", b"4", b"5"])),
        "bytes",
        row=1,
        column="answer",
        file="train.parquet",
    ),
    "answers of dates": error(
        column("answer", pa.array([date(2020, 1, 1)] * 4)),
        row=1,
        column="answer",
        file="train.parquet",
    ),
    "answers of decimals": error(
        column("answer", pa.array([Decimal(i) for i in (2, 3, 4, 5)])),
        row=1,
        column="answer",
        file="train.parquet",
    ),
    "bad UTF-8 in parquet": error(latin_1_in_parquet(), "UTF-8", row=3, file="train.parquet"),
    "parquet with a column twice": error(
        twice_in_parquet(), "answer", "twice", file="train.parquet"
    ),
}

COLUMNS = {
    "no known column": error(
        jsonl([{"query": "a"}]), "no column 'prompt'", "columns: {prompt: NAME}", row=1
    ),
    "prompt missing in one row": error(row_3(prompt=GONE), "no column 'prompt'", row=3),
    "prompt null": error(row_3(prompt=None), "missing or empty", row=3, column="prompt"),
    "prompt blank": error(row_3(prompt=[user(" \n")]), "empty", row=3, column="prompt"),
    "prompt a number": error(row_3(prompt=3), "not a number", row=3, column="prompt"),
    "prompt NaN": error(row_3(prompt=float("nan")), "NaN", row=3, column="prompt"),
    "prompt an object": error(row_3(prompt=user("a")), "not an object", row=3, column="prompt"),
    "prompt a text among conversations": error(
        row_3(prompt="3+1=?"), "the prompt is a text", "row 1 is a list", row=3, column="prompt"
    ),
    "prompt a list of texts": error(
        row_3(prompt=["3+1=?"]), "a message is an object", row=3, column="prompt"
    ),
    "prompt nested twice": error(
        row_3(prompt=[[user("3+1=?")]]), "got a list", row=3, column="prompt"
    ),
    "system message later": error(
        row_3(prompt=[user("a"), system("b"), user("c")]), "order of roles", row=3, column="prompt"
    ),
    "prompt that ends with the assistant": error(
        row_3(prompt=[user("a"), assistant("b")]), "not 'assistant'", row=3, column="prompt"
    ),
    "role of ShareGPT": error(
        row_3(prompt=[{"from": "human", "value": "a"}]), "role is one of", row=3, column="prompt"
    ),
    "content null": error(
        row_3(prompt=[user(None)]), "content is a text, got null", row=3, column="prompt"
    ),
    "content with an image": error(
        row_3(prompt=[user([{"type": "image", "url": "a"}])]),
        "a picture stands in the column",
        row=3,
        column="prompt",
    ),
    "tool calls": error(
        row_3(prompt=[{**assistant(""), "tool_calls": [{"name": "f"}]}, user("a")]),
        "tool calls are not supported",
        row=3,
        column="prompt",
    ),
    "demonstration a number": error(
        row_3(demonstration=3), "got a number", row=3, column="demonstration"
    ),
    "demonstration true": error(
        row_3(demonstration=True), "got true or false", row=3, column="demonstration"
    ),
    "demonstrations with null": error(
        row_3(demonstration=["2", None]), "null in the list", row=3, column="demonstration"
    ),
    "demonstrations nested": error(
        row_3(demonstration=[["2"]]), "a list in the list", row=3, column="demonstration"
    ),
    "demonstration of an unknown key": error(
        row_3(demonstration={"text": "2"}), "role is one of", row=3, column="demonstration"
    ),
    "answers of two kinds": error(row_3(answer=4), "a number", "string", row=3, column="answer"),
    "an answer of objects among texts": error(
        row_3(answer={"value": 4}), "an object", row=3, column="answer"
    ),
    "another column of two kinds": error(
        jsonl(third(every(prompt_rows(), level=1), level="hard")), "a text", row=3, column="level"
    ),
    "a number too large": error(
        jsonl(third([{**r, "n": i} for i, r in enumerate(prompt_rows())], n=10**30)),
        "large",
        row=3,
        column="n",
    ),
    "numbers too large from the start": error(
        jsonl(every(prompt_rows(), n=10**30)), "large", row=1, column="n"
    ),
    "another column too deep": error(row_3(meta=nested(400)), "deep", row=3, column="meta"),
    "surrogate in a prompt": error(
        row_3(prompt=[user("1+1=\ud800?")]), "surrogate", row=3, column="prompt"
    ),
    "surrogate in a text prompt": error(
        jsonl(third(text_rows(), prompt="1+1=\ud800?")), "surrogate", row=3, column="prompt"
    ),
    "surrogate in a demonstration": error(
        row_3(demonstration="\ud800 \\boxed{4}"), "surrogate", row=3, column="demonstration"
    ),
    "surrogate in an answer": error(row_3(answer="4\ud800"), "surrogate", row=3, column="answer"),
    "surrogate in a name": error(row_3(**{"\ud800": 1}), "surrogate", row=3, column="⟨U+D800⟩"),
    "reserved column": error(
        jsonl(every(prompt_rows(), completions="a")), "rename it", row=1, column="completions"
    ),
    "column of ours": error(
        row_3(prefix_rft_example=1), "rename it", row=3, column="prefix_rft_example"
    ),
    "answers of whole and other numbers": error(
        jsonl(
            [
                {**r, "answer": json.loads(a)}
                for r, a in zip(prompt_rows(), ["2", "3", "2.5", "5"], strict=True)
            ]
        ),
        "write all of them alike",
        row=3,
        column="answer",
    ),
    "column that methods have": works(jsonl(every(prompt_rows(), self="a"))),
    "column of pictures": error(
        jsonl(every(prompt_rows(), images=["a.png"])), "a.png', does not exist", row=1
    ),
    "column that steers a terminal": error(
        jsonl([{"pro\x1b[31mmpt": "a"}]), "it has pro⟨ESC⟩[31mmpt", row=1
    ),
    "column of two lines": error(jsonl([{"a\nprefix-rft: b": "a"}]), "no column 'prompt'", row=1),
    "role that steers a terminal": error(
        row_3(prompt=[{"role": "\x1b[2J\x07", "content": "a"}]),
        "role is one of",
        row=3,
        column="prompt",
    ),
    "mapped column missing": error(
        recipe(columns={"demonstration": "solution"}),
        "the name is taken",
        row=1,
        column="demonstration",
    ),
    "mapped column missing in one row": error(
        both(jsonl(third(problem_rows(), problem=GONE)), recipe(columns={"prompt": "problem"})),
        "missing; there are solution, answer",
        row=3,
        column="problem",
    ),
    "mapped into a null": error(
        both(
            jsonl(third(every(problem_rows(), m={"gold": "2"}), m=None)),
            recipe(columns={"final_answer": "m.gold"}),
        ),
        "an object with 'gold' is needed, got null",
        row=3,
        column="m",
    ),
    "mapped to an object": error(
        both(
            jsonl([{"q": {"text": r["prompt"]}, "demonstration": "2"} for r in text_rows()]),
            recipe(columns={"prompt": "q"}),
        ),
        "not an object",
        row=1,
        column="prompt",
    ),
    "mapped to a name that is taken": error(
        both(jsonl(every(prompt_rows(), q="a")), recipe(columns={"prompt": "q"})),
        "the name is taken, so 'q' cannot have it",
        row=1,
        column="prompt",
    ),
    "system_prompt with texts": error(
        both(jsonl(text_rows()), recipe(system_prompt="Be brief.")),
        "system_prompt needs conversations",
        row=1,
        column="prompt",
    ),
    "fewer rows than a step takes": error(
        jsonl(prompt_rows()[:2]), "2 rows, but one ", "takes 3 prompts"
    ),
    "no demonstration": error(
        jsonl(every(prompt_rows(), demonstration=None)), "needs demonstrations", "no row has one"
    ),
    "no answer column": error(
        jsonl([{k: v for k, v in r.items() if k != "answer"} for r in prompt_rows()]),
        "column 'answer'",
    ),
}

SHAPES = {
    "verl: target of two messages": error(
        parquet(third(verl_rows(), target=[assistant("a"), assistant("b")])),
        "got 2 messages",
        row=3,
        column="target",
        file="train.parquet",
    ),
    "verl: target of a user": error(
        parquet(third(verl_rows(), target=[user("a")])),
        "got role 'user'",
        row=3,
        column="target",
        file="train.parquet",
    ),
    "verl: target without content": error(
        parquet(third(verl_rows(), target=[assistant(None)])),
        "content is a text, got null",
        row=3,
        column="target",
        file="train.parquet",
    ),
    "verl: no ground_truth": error(
        parquet(every(verl_rows(), reward_model={"style": "rule"})),
        "missing",
        row=1,
        column="reward_model.ground_truth",
        file="train.parquet",
    ),
    "verl: ground_truth null": unread_gold(
        parquet(third(verl_rows(), reward_model={"style": "rule", "ground_truth": None})),
        file="train.parquet",
    ),
    "verl: ground_truth an object": error(
        parquet(every(verl_rows(), reward_model={"ground_truth": {"target": "2"}})),
        "gold answer",
        file="train.parquet",
    ),
    "verl: ground_truth a list": error(
        parquet(every(verl_rows(), reward_model={"ground_truth": ["2", "two"]})),
        "gold answer",
        file="train.parquet",
    ),
    "verl: reward_model null": error(
        parquet(third(verl_rows(), reward_model=None)),
        "null",
        row=3,
        column="reward_model",
        file="train.parquet",
    ),
    "verl: reward_model a text": error(
        parquet(every(verl_rows(), reward_model='{"ground_truth": "2"}')),
        "a text",
        row=1,
        column="reward_model",
        file="train.parquet",
    ),
    "verl: target null": works(parquet(third(verl_rows(), target=None)), 3),
    "verl: target an empty list": works(parquet(third(verl_rows(), target=[])), 3),
    "completion of a user": error(
        jsonl(third(completion_rows(), completion=[user("a")])),
        "got role 'user'",
        row=3,
        column="completion",
    ),
    "completion of two messages": error(
        jsonl(third(completion_rows(), completion=[assistant("a"), user("b")])),
        "got 2 messages",
        row=3,
        column="completion",
    ),
    "completion a number": error(
        jsonl(third(completion_rows(), completion=4)), "got a number", row=3, column="completion"
    ),
    "messages that end with the user": works(
        jsonl(third(message_rows(), messages=[user("3+1=?")])), 3
    ),
    "messages empty": error(
        jsonl(third(message_rows(), messages=[])), "empty", row=3, column="messages"
    ),
    "messages null": error(
        jsonl(third(message_rows(), messages=None)), "missing or empty", row=3, column="messages"
    ),
    "messages a text": error(
        jsonl(third(message_rows(), messages="a")), "got a text", row=3, column="messages"
    ),
    "messages of texts": error(
        jsonl(third(message_rows(), messages=["a", "b"])),
        "a message is an object",
        row=3,
        column="messages",
    ),
    "messages of the assistant alone": error(
        jsonl(third(message_rows(), messages=[assistant("a")])),
        "missing or empty",
        row=3,
        column="messages",
    ),
    "messages with two answers": error(
        jsonl(third(message_rows(), messages=[user("a"), assistant("b"), assistant("c")])),
        "ends with a user message, not 'assistant'",
        row=3,
        column="messages",
    ),
    "messages with reasoning that is no text": error(
        jsonl(third(message_rows(), messages=[user("a"), {**assistant("b"), "thinking": 3}])),
        "reasoning is a text, got a number",
        row=3,
        column="messages",
    ),
    "problem a number": error(
        jsonl(third(problem_rows(), problem=3)), "got a number", row=3, column="problem"
    ),
    "problem a list": error(
        jsonl(third(problem_rows(), problem=[user("a")])), "got a list", row=3, column="problem"
    ),
    "problem null": error(
        jsonl(third(problem_rows(), problem=None)), "missing or empty", row=3, column="problem"
    ),
    "problem with an answer of GSM8K": error(
        jsonl(third(problem_rows(), answer="3+1=4\n#### 4")),
        "convert gsm8k",
        row=3,
        column="answer",
    ),
}

TEMPLATES = {
    "no template": note(template(None), "has no chat template", train=("no chat template",)),
    "template without generation prompt": error(
        template(TURNS), "begins an assistant's turn with '<|assistant|>'", file="template"
    ),
    "template that is not one": error(template("{% for m in"), "chat template", file=""),
    "template that adds a text and a number": error(
        template("{% for m in messages %}{{ 'turn ' + loop.index }}{% endfor %}"),
        "chat template",
        file="",
    ),
    "template that refuses the system role": error(
        both(row_3(prompt=[system("a"), user("b")]), template(NO_SYSTEM + CHAT_TEMPLATE)),
        "no system role",
        row=3,
    ),
    "template that wants turns to alternate": error(
        both(row_3(prompt=[user("a"), user("b")]), template(IN_TURN + CHAT_TEMPLATE)),
        "roles must alternate",
        row=3,
    ),
    "template that rewrites the answer": note(template(REWRITES), "otherwise than it is written"),
    "template that writes BOS twice": drop(
        bos("<s><s>" + CHAT_TEMPLATE), "2 BOS tokens", "begins with 2 BOS tokens", None, True
    ),
    "template that forgets BOS": drop(
        bos(), "0 BOS tokens", "begins with 0 BOS tokens", None, True
    ),
    "BOS in a text": drop(
        both(bos(), jsonl(third(text_rows(), prompt="<s>3+1=?"))),
        "2 BOS tokens",
        "begins with 2 BOS tokens",
        serious=True,
    ),
    "think tags twice": drop(
        both(
            row_3(demonstration="<think>a</think><think>b</think>\\boxed{4}"),
            recipe(max_completion_length=48),
        ),
        "think block",
        "opens more than one think block",
        serious=True,
    ),
    "think tag not closed": drop(
        row_3(demonstration="<think>a, \\boxed{4}"),
        "think block",
        "opens 1 think blocks and closes 0",
        serious=True,
    ),
    "think tag not opened": drop(
        row_3(demonstration="a</think>\\boxed{4}"),
        "think block",
        "closes 1 think blocks and opens 0",
        serious=True,
    ),
    "think tag of the template not closed": drop(
        both(
            jsonl(
                third(every(prompt_rows(), demonstration="a</think>2"), demonstration="\\boxed{4}")
            ),
            template(THINKS),
        ),
        "think block",
        "opens 1 think blocks and closes 0",
        serious=True,
    ),
    "prompt too long for the model": drop(
        row_3(prompt=[user("1+" * 300)]),
        "row 3: the prompt and max_completion_length=24 do not fit into the model's 512 positions",
        "do not fit into the model's 512 positions",
        serious=True,
    ),
}

DEMONSTRATIONS = {
    "demonstration empty": drop(row_3(demonstration=""), LEFT + "empty", DROPPED + "empty"),
    "demonstration blank": drop(row_3(demonstration=" \n"), LEFT + "empty", DROPPED + "empty"),
    "demonstration of EOS alone": drop(
        row_3(demonstration="<|end|>"), LEFT + "empty", DROPPED + "empty"
    ),
    "demonstration too long": drop(
        row_3(demonstration="1+" * 30 + "\\boxed{4}"),
        LEFT + "longer than 24 tokens",
        DROPPED + "longer than the budget",
    ),
    "EOS inside a demonstration": drop(
        row_3(demonstration="a<|end|>\\boxed{4}"),
        LEFT + "with an end-of-sequence token inside",
        DROPPED + "with an end-of-sequence token inside",
    ),
    "every demonstration too long": error(
        jsonl(every(prompt_rows(), demonstration="1+" * 40)), "needs demonstrations"
    ),
    "every demonstration empty": error(
        jsonl(every(prompt_rows(), demonstration="")), "needs demonstrations"
    ),
    "demonstration with a wrong answer": rejected(row_3(demonstration="\\boxed{5}"), "wrong"),
    "demonstration without an answer": rejected(row_3(demonstration="it is 4"), "no answer"),
    "demonstration that hangs its grader": rejected(
        both(row_3(demonstration="SLOW"), recipe(reward={"name": "graders:slow", "timeout": 0.2})),
        "timeout",
    ),
    "demonstration that breaks its grader": rejected(
        both(row_3(demonstration="RAISE"), recipe(reward="graders:raises")), "error"
    ),
    "wrong answer, to be dropped": drop(
        both(row_3(demonstration="\\boxed{5}"), recipe(only_correct_demonstrations=True)),
        "1 of 4 demonstrations dropped: not correct to 'math'",
        "is 'wrong' to its own grader 'math' (answer 5). Fix: none is needed",
    ),
    "every demonstration wrong, to be dropped": error(
        both(
            jsonl(every(prompt_rows(), demonstration="\\boxed{9}")),
            recipe(only_correct_demonstrations=True),
        ),
        "demonstration",
    ),
    "gold empty": unread_gold(row_3(answer="")),
    "gold null": unread_gold(row_3(answer=None)),
    "gold not there": unread_gold(row_3(answer=GONE)),
    "gold a time": unread_gold(row_3(answer="12:00")),
    "gold nan": unread_gold(row_3(answer="nan")),
    "gold None": unread_gold(row_3(answer="None")),
    "gold an open brace": unread_gold(row_3(answer="\\frac{1}{")),
    "gold infinite": unread_gold(
        jsonl(third([{**r, "answer": int(r["answer"]) / 1} for r in prompt_rows()], answer=1e999))
    ),
    "gold that steers a terminal": unread_gold(row_3(answer="\x1b[31m")),
    "every gold unreadable": error(jsonl(every(prompt_rows(), answer="")), "gold answer"),
    "gold unreadable behind blank lines": unread_gold(
        both(row_3(answer=""), whole(lambda data: data.replace(b"\n", b"\n\n"))), row=5
    ),
    "gold unreadable in the second file": Case(
        parts(prompt_rows(), third(prompt_rows(5), answer="")),
        0,
        1,
        ("1 of 8 rows have a gold answer", "part-1.jsonl", "row 3"),
        ("cannot read the gold answer", "part-1.jsonl"),
        row=3,
    ),
}

HELD_OUT = {
    "eval: no file": error(
        recipe(eval_data="none.jsonl"), "does not exist", file="none.jsonl", check=2
    ),
    "eval: not JSON": error(
        held_out(lambda folder: (folder / "test.jsonl").write_text('\n{"pro')),
        "not valid JSON",
        row=2,
        file="test.jsonl",
    ),
    "eval: no prompt": error(
        held_out(third(prompt_rows(5), prompt=None)),
        "missing or empty",
        row=3,
        column="prompt",
        file="test.jsonl",
    ),
    "eval: no rows": error(
        held_out(lambda folder: (folder / "test.jsonl").write_text("\n")),
        "has no rows",
        file="test.jsonl",
    ),
    "eval: gold unreadable": drop(
        held_out(third(prompt_rows(5), answer="")),
        ("1 of 4 rows have a gold answer", "test.jsonl"),
        "'math' cannot read the gold answer",
        serious=True,
    ),
    "eval: every gold unreadable": error(
        held_out(every(prompt_rows(5), answer="")), "gold answer", file="test.jsonl"
    ),
    "eval: no answer column": error(
        held_out([{"prompt": r["prompt"]} for r in prompt_rows(5)]),
        "column 'answer'",
        file="test.jsonl",
    ),
    "eval: template refuses": error(
        both(
            held_out(third(prompt_rows(5), prompt=[system("a"), user("b")])),
            template(NO_SYSTEM + CHAT_TEMPLATE, eval_data="test.jsonl"),
        ),
        "no system role",
        row=3,
        file="test.jsonl",
    ),
    "eval: prompt too long": drop(
        held_out(third(prompt_rows(5), prompt=[user("1+" * 300)])),
        "test.jsonl': row 3: the prompt and max_completion_length=24 do not fit into",
        "do not fit into the model's 512 positions",
        serious=True,
    ),
    "eval: no template for conversations": note(
        both(
            template(None),
            jsonl(text_rows()),
            held_out(prompt_rows(5)),
        ),
        "has no chat template",
        train=("no chat template",),
    ),
    "eval: no demonstrations": works(
        held_out([{k: r[k] for k in ("prompt", "answer")} for r in prompt_rows(5)])
    ),
    "eval: fewer rows than a step takes": works(held_out(prompt_rows(5)[:1])),
    "eval: prompts of train": note(
        held_out([*prompt_rows()[:2], *prompt_rows(5)]), "2 of its prompts are also in train_data"
    ),
}

FINE = {
    "BOM at the start": works(whole(lambda data: b"\xef\xbb\xbf" + data)),
    "blank lines": works(whole(lambda data: b"\n\n" + data.replace(b"\n", b"\n \n"))),
    "CRLF": works(whole(lambda data: data.replace(b"\n", b"\r\n"))),
    "no line end at the end": works(whole(bytes.rstrip)),
    "json with a BOM": works(file("train.json", b"\xef\xbb\xbf" + good_json(prompt_rows()))),
    "jsonl named json": works(
        file("train.json", b"".join(json.dumps(r).encode() + b"\n" for r in prompt_rows()))
    ),
    "columns of bytes, dates and decimals": works(
        parquet(every(prompt_rows(), a=b"\xff", b=date(2020, 1, 1), c=Decimal("1.5"), d=None))
    ),
    "categories and long texts": works(
        parquet(
            pa.Table.from_pylist(prompt_rows())
            .set_column(2, "answer", pa.array(["2", "3", "4", "5"]).dictionary_encode())
            .set_column(1, "demonstration", pa.array(map(worked, range(1, 5)), pa.large_string()))
        )
    ),
    "separators of lines in a text": unknown(row_3(demonstration="\u2028\u0085\x0b\\boxed{4}")),
    "terminal codes in texts": unknown(row_3(demonstration="\x1b[31m\x07\0\\boxed{4}")),
}

CASES: dict[str, Case] = (
    FILES | PARQUET | COLUMNS | SHAPES | TEMPLATES | DEMONSTRATIONS | HELD_OUT | FINE
)


# ---- both commands on each -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a recipe and rows that are all good."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer, hidden=16, layers=1).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    jsonl(prompt_rows())(folder)
    recipe()(folder)
    (folder / "graders.py").write_text(GRADER)
    (folder / "late.py").write_text(LATE)
    return folder


@pytest.fixture
def folder(made: Path, shared_math: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, output as one line, and errors."""
    code = main([command, "recipe.yaml"])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert not CONTROL.search(out + err), "a terminal would obey this"
    return code, " ".join(out.split()), err


def is_one_sentence(err: str, case: Case) -> None:
    """With the place and the words."""
    assert err.startswith("prefix-rft: error: ")
    assert len(err.splitlines()) == 1, err
    assert case.file in err
    place = f", row {case.row}" if case.row else ""
    place += f", column '{case.column}': " if case.column else ": " if case.row else ""
    assert place in err
    for words in case.train_says:
        assert words in err


FIRST = {case.train_says: name for name, case in reversed(CASES.items())}
"""Of the cases of which training says the same, the first; a check reads all their files, too."""


@pytest.mark.parametrize(
    "name",
    rest_slow(CASES, lambda name: FIRST[CASES[name].train_says] == name),
)
def test_training(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    case.spoil(folder)
    code, out, err = run("train", capfd)
    assert code == case.train, err or out
    if code:
        is_one_sentence(err, case)
        assert not (folder / "runs").exists()
        return
    for words in case.train_says:
        assert words in out


@pytest.mark.parametrize("name", CASES)
def test_check(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = CASES[name]
    case.spoil(folder)
    code, out, err = run("check", capfd)
    assert code == case.check, err or out
    if code == 2:
        is_one_sentence(err, case)
        return
    assert case.file in out
    findings = out.split(" - ")[1:]
    if case.row:
        findings = [
            f for f in findings if re.match(rf"rows? {case.row}( of [^:]*)?(, [^:]*)?: ", f)
        ]
    if case.column:
        findings = [f for f in findings if f"column '{case.column}': " in f]
    where = " - ".join(findings) if case.row else out
    for words in case.check_says:
        assert words in where, out


@pytest.mark.slow
def test_a_grader_may_be_slow_to_import(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its second process is not ready yet when the training rows have been graded."""
    held_out(prompt_rows(5), reward={"name": "late:right", "workers": 2})(folder)
    code, out, err = run("check", capfd)
    assert code == 0, err or out


@pytest.mark.parametrize("tag", ["<think>\n", "<think>", ""])
def test_a_think_tag_of_the_template_is_not_doubled(
    tag: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**row, "demonstration": f"{tag}so\n</think>\n\n\\boxed{{{row['answer']}}}"}
        for row in prompt_rows()
    ]
    jsonl(rows)(folder)
    template(THINKS, max_completion_length=48)(folder)
    assert run("check", capfd)[0] == 0
    assert run("train", capfd)[0] == 0
    tokenizer = make_chat_tokenizer()
    lines = (folder / "runs/tiny/rollouts/step_000000.jsonl").read_text().splitlines()
    hybrid = [row for row in map(json.loads, lines) if row["prefix_length"]]
    assert len(hybrid) == 3
    for row in hybrid:
        i = int(rows[row["example"]]["answer"])
        whole = f"<|user|>{i - 1}+1=?<|end|><|assistant|><think>\nso\n</think>\n\n\\boxed{{{i}}}"
        prefix = row["completion_ids"][: row["prefix_length"]]
        assert whole.startswith(tokenizer.decode([*row["prompt_ids"], *prefix]))

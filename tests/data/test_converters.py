"""Converters: small files in the schema of each public dataset, against rows written by hand."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import example, given
from hypothesis import strategies as st

from prefix_rft.data.converters import CONVERTERS, convert, last_boxed
from prefix_rft.support.errors import UserError

Rows = list[dict[str, Any]]


def from_jsonl(folder: Path, rows: Rows) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset("json", data_files=str(path), split="train")


def from_parquet(folder: Path, rows: Rows, schema: pa.Schema) -> Any:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return load_dataset("parquet", data_files=str(path), split="train")


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
VERL = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", MESSAGES),
        ("target", MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("split", pa.string()), ("index", pa.int64())])),
    ]
)
PROMPT = [
    {"role": "system", "content": "Think inside <think> tags first.\n"},
    {"role": "user", "content": "What is 2 + 3?"},
]
FIVE = "<think>\nTwo and three.\n</think>\nIt is $\\boxed{5}$."
FIVE_TOO = "<think>\nCount on from 2.\n</think>\n\\boxed{5}"


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def verl_row(**changes: Any) -> dict[str, Any]:
    row = {
        "data_source": "sums",
        "prompt": PROMPT,
        "target": [assistant(FIVE)],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "5"},
        "extra_info": {"split": "train", "index": 7},
    }
    return row | changes


def converted_verl(demonstration: list[str], index: int = 7) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "demonstration": demonstration,
        "answer": "5",
        "data_source": "sums",
        "id": f"train/{index}",
    }


def test_openr1_math_46k(tmp_path: Path) -> None:
    without = verl_row(target=None, extra_info={"split": "train", "index": 8})
    rows = from_parquet(tmp_path, [verl_row(), without], VERL)
    assert list(convert("openr1-math-46k", rows, "rows.parquet")) == [
        converted_verl([FIVE]),
        converted_verl([], index=8),
    ]


@pytest.mark.parametrize("kind", [MESSAGES, pa.list_(MESSAGES)], ids=["messages", "lists"])
def test_several_targets_are_joined_without_duplicates(tmp_path: Path, kind: pa.DataType) -> None:
    several: list[Any] = [assistant(FIVE_TOO), assistant(FIVE)]
    if kind != MESSAGES:
        several = [[message] for message in several]
    rows = [verl_row(target_lst=several), verl_row(target=None, target_lst=several)]
    rows.append(verl_row(target_lst=None))
    rows = from_parquet(tmp_path, rows, VERL.append(pa.field("target_lst", kind)))
    assert list(convert("openr1-math-46k", rows, "rows.parquet")) == [
        converted_verl([FIVE, FIVE_TOO]),
        converted_verl([FIVE_TOO, FIVE]),
        converted_verl([FIVE]),
    ]


@pytest.mark.parametrize(("truth", "answer"), [(5, "5"), (0.5, "0.5"), ("1/2", "1/2")])
def test_ground_truth_becomes_text(truth: Any, answer: str) -> None:
    row = verl_row(reward_model={"style": "rule", "ground_truth": truth})
    assert next(convert("openr1-math-46k", [row], "x"))["answer"] == answer


def test_gsm8k(tmp_path: Path) -> None:
    rows = from_jsonl(
        tmp_path,
        [
            {
                "question": "A box has 6 pens. How many pens are in 12 boxes?",
                "answer": "Each box has 6, so 6*12 = <<6*12=72>>72 pens.\n#### 72",
            },
            {
                "question": "A van costs $1,500,000 less $500.50. What is the price?",
                "answer": "Take it off:\n1500000-500.5 = <<1500000-500.5=1499499.5>>1499499.5"
                "\n#### 1,499,499.50\n",
            },
        ],
    )
    assert list(convert("gsm8k", rows, "rows.jsonl")) == [
        {
            "prompt": [
                {"role": "user", "content": "A box has 6 pens. How many pens are in 12 boxes?"}
            ],
            "demonstration": [
                "Each box has 6, so 6*12 = 72 pens.\nThe answer is \\boxed{72}.",
            ],
            "answer": "72",
        },
        {
            "prompt": [
                {
                    "role": "user",
                    "content": "A van costs $1,500,000 less $500.50. What is the price?",
                }
            ],
            "demonstration": [
                "Take it off:\n1500000-500.5 = 1499499.5\nThe answer is \\boxed{1499499.50}.",
            ],
            "answer": "1499499.50",
        },
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### -12,345", "-12345"),
        ("#### $1,000", "$1000"),
        ("#### 1,5", "1,5"),  # not groups of three: kept
        ("#### 1234,567", "1234,567"),
        ("#### 1,2345", "1,2345"),
        ("a #### 1\n####3", "3"),
    ],
)
def test_gsm8k_answers(text: str, answer: str) -> None:
    assert next(convert("gsm8k", [{"question": "q", "answer": text}], "x"))["answer"] == answer


def test_text_between_comparison_signs_stays() -> None:
    row = {"question": "q", "answer": "So 1 << 2 = <<1*4=4>>4\nand 3 >> 1 \n#### 4"}
    demonstration = "So 1 << 2 = 4\nand 3 >> 1\nThe answer is \\boxed{4}."
    assert next(convert("gsm8k", [row], "x"))["demonstration"] == [demonstration]


def test_math_as_first_published(tmp_path: Path) -> None:
    problem = "Halve $\\frac{2}{3}$."
    solution = "Not \\boxed{1}, but half: $\\boxed{\\frac{1}{3}}$."
    rows = from_jsonl(
        tmp_path,
        [{"problem": problem, "level": "Level 2", "type": "Algebra", "solution": solution}],
    )
    assert list(convert("math", rows, "rows.jsonl")) == [
        {
            "prompt": [{"role": "user", "content": problem}],
            "demonstration": [solution],
            "answer": "\\frac{1}{3}",
            "level": "Level 2",
            "subject": "Algebra",
        }
    ]


def test_math_500(tmp_path: Path) -> None:
    same = {
        "problem": "Write the point.",
        "solution": "It is $\\boxed{(1, 2)}$.",
        "answer": " (1, 2) ",
        "subject": "Geometry",
        "level": 3,
        "unique_id": "test/geometry/1.json",
    }
    other = same | {"answer": "(1, 3)", "unique_id": "test/geometry/2.json"}
    unboxed = same | {"solution": "Look at it.", "unique_id": "test/geometry/3.json"}
    rows = from_jsonl(tmp_path, [same, other, unboxed])
    wanted = {
        "prompt": [{"role": "user", "content": "Write the point."}],
        "demonstration": ["It is $\\boxed{(1, 2)}$."],
        "answer": "(1, 2)",
        "level": 3,
        "subject": "Geometry",
        "id": "test/geometry/1.json",
    }
    assert list(convert("math", rows, "rows.jsonl")) == [
        wanted,
        wanted | {"answer": "(1, 3)", "id": "test/geometry/2.json"},
        wanted | {"demonstration": ["Look at it."], "id": "test/geometry/3.json"},
    ]


OPENR1 = pa.schema(
    [(name, pa.string()) for name in ("problem", "solution", "answer", "problem_type", "source")]
    + [
        ("uuid", pa.string()),
        ("generations", pa.list_(pa.string())),
        ("correctness_math_verify", pa.list_(pa.bool_())),
        ("is_reasoning_complete", pa.list_(pa.bool_())),
    ]
)


def openr1_row(**changes: Any) -> dict[str, Any]:
    row = {
        "problem": "What is 4 * 4?",
        "solution": "Sixteen.",
        "answer": "16",
        "problem_type": "Algebra",
        "source": "sums",
        "uuid": "u-1",
        "generations": ["both", "wrong", "cut", "neither", "both again"],
        "correctness_math_verify": [True, False, True, None, True],
        "is_reasoning_complete": [True, True, False, False, True],
    }
    return row | changes


def test_openr1_math_220k(tmp_path: Path) -> None:
    unverified = openr1_row(correctness_math_verify=None, uuid=None)
    rows = from_parquet(tmp_path, [openr1_row(), unverified], OPENR1)
    wanted = {
        "prompt": [{"role": "user", "content": "What is 4 * 4?"}],
        "demonstration": ["both", "both again"],
        "answer": "16",
        "id": "u-1",
        "source": "sums",
        "problem_type": "Algebra",
    }
    assert list(convert("openr1-math-220k", rows, "rows.parquet")) == [
        wanted,
        wanted | {"demonstration": [], "id": None},
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed 7", "7"),
        (r"$x = \boxed 7$ and on", "7"),
        (r"It is \boxed 0.5. Then", "0.5"),
        (r"\(\boxed9\)", "9"),
        (r"\[\boxed9\]", "9"),
        (r"\boxed9\\x", "9"),
        (r"\boxed \frac{1}{2 + x}$", r"\frac{1}{2 + x}"),
        (r"{\boxed 7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\fbox{1} \boxed{2}", "2"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed{\left\{ 7 \right.}", r"\left\{ 7 \right."),
        (r"a \\\boxed{7}", "7"),
        (r"\boxed{7} \boxedly{8} \\boxed{9}", "7"),  # other commands, and a line break
        ("\\boxed{7} \\", "7"),
        (r"} \boxed{7} {", "7"),
    ],
)
def test_last_boxed(text: str, answer: str) -> None:
    assert last_boxed(text, "solution") == answer


ATOMS = st.one_of(
    st.text(st.characters(exclude_characters="\\{}", exclude_categories=["Cs"]), max_size=5),
    st.sampled_from([r"\{", r"\}", "\\\\", r"\frac", r"\$", "$"]),
)
BALANCED = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map(lambda text: "{" + text + "}"), st.lists(inner, max_size=4).map("".join)
    ),
)


@given(BALANCED, BALANCED, st.sampled_from([r"\boxed", r"\fbox"]))
@example(r"{a}{\{{b}}", "}", r"\boxed")
def test_balanced_braces_come_back(content: str, around: str, command: str) -> None:
    text = f"{around} \\boxed{{0}} {command}{{{content}}} {around}"
    if content.strip():
        assert last_boxed(text, "solution") == content.strip()
    else:
        with pytest.raises(UserError, match="empty"):
            last_boxed(text, "solution")


def refused(name: str, rows: Rows) -> str:
    """What ``convert`` says about the last of ``rows``."""
    made = convert(name, rows, "my.jsonl")
    for _ in rows[:-1]:
        next(made)
    with pytest.raises(UserError) as error:
        next(made)
    return str(error.value)


def test_unknown_converter_is_refused_at_once() -> None:
    with pytest.raises(UserError) as error:
        convert("gsm8", [], "my.jsonl")
    assert str(error.value) == "unknown converter 'gsm8': did you mean 'gsm8k'?"


COMPLETE = {
    "openr1-math-46k": verl_row(),
    "gsm8k": {"question": "q", "answer": "#### 1"},
    "math": {"problem": "p", "level": "Level 1", "type": "t", "solution": r"\boxed{1}"},
    "openr1-math-220k": openr1_row(),
}


@pytest.mark.parametrize(
    ("name", "column"), [(n, c) for n in CONVERTERS for c in CONVERTERS[n].columns]
)
def test_missing_column(name: str, column: str) -> None:
    complete = COMPLETE[name]
    row = {k: v for k, v in complete.items() if k != column}
    has = ", ".join(row)
    assert refused(name, [row]) == (
        f"my.jsonl, row 1, column '{column}': missing, the row has {has}; rename the column that "
        f"holds it, or use another converter than '{name}'"
    )
    assert refused(name, [complete, row]).startswith(f"my.jsonl, row 2, column '{column}': missing")


def test_math_needs_a_type_or_a_subject() -> None:
    row = {"problem": "p", "level": 1, "solution": r"\boxed{1}"}
    assert refused("math", [row]) == (
        "my.jsonl, row 1, column 'subject': missing, the row has problem, level, solution; "
        "rename the column that holds it"
    )


NO_LINE = "the last line must be '#### ANSWER', got "
MEND = "; correct or remove the row"
OPEN = r"has a \boxed whose braces are not balanced, close them"
FLAGS = "must be 5 times true or false, one for each of 'generations'"


@pytest.mark.parametrize(
    ("name", "changes", "column", "says"),
    [
        ("gsm8k", {"answer": "It is 72."}, "answer", NO_LINE + "'It is 72.'"),
        ("gsm8k", {"answer": "#### 72\nBye."}, "answer", NO_LINE + "'Bye.'"),
        ("gsm8k", {"answer": "So\n####"}, "answer", NO_LINE + "'####'"),
        ("gsm8k", {"answer": "x" * 999}, "answer", NO_LINE + repr("x" * 60)),
        (
            "gsm8k",
            {"answer": "#### 7}"},
            "answer",
            "the braces of '7}' are not balanced, close them",
        ),
        ("gsm8k", {"answer": "#### {7"}, "answer", OPEN),
        ("gsm8k", {"answer": 72}, "answer", "must be a text, got int" + MEND),
        ("gsm8k", {"question": None}, "question", "must be a text, got null" + MEND),
        ("gsm8k", {"question": " "}, "question", "is empty, correct or remove the row"),
        (
            "math",
            {"solution": "It is 7."},
            "solution",
            r"has no \boxed{...}, add one around the answer",
        ),
        ("math", {"solution": r"\boxed{\frac{1}{2}"}, "solution", OPEN),
        ("math", {"solution": r"\boxed{1\}"}, "solution", OPEN),
        ("math", {"solution": r"\boxed \sqrt{2"}, "solution", OPEN),
        (
            "math",
            {"solution": r"\boxed{ }"},
            "solution",
            r"has an empty \boxed, put the answer inside",
        ),
        (
            "math",
            {"solution": r"\boxed"},
            "solution",
            r"has an empty \boxed, put the answer inside",
        ),
        ("math", {"problem": 7}, "problem", "must be a text, got int" + MEND),
        ("math", {"answer": 7}, "answer", "must be a text, got int" + MEND),
        (
            "openr1-math-46k",
            {"prompt": "What?"},
            "prompt",
            "must be a list, got str" + MEND,
        ),
        ("openr1-math-46k", {"prompt": []}, "prompt", "has no message, correct or remove the row"),
        (
            "openr1-math-46k",
            {"prompt": ["What?"]},
            "prompt",
            "must be a list of messages with 'role' and 'content', got str" + MEND,
        ),
        (
            "openr1-math-46k",
            {"prompt": [{"role": "user", "content": None}]},
            "prompt.content",
            "must be a text, got null" + MEND,
        ),
        (
            "openr1-math-46k",
            {"target": [assistant("a"), assistant("b")]},
            "target",
            "must be one assistant message, got assistant, assistant",
        ),
        (
            "openr1-math-46k",
            {"target": PROMPT[1:]},
            "target",
            "must be one assistant message, got user",
        ),
        (
            "openr1-math-46k",
            {"target": [assistant("")]},
            "target.content",
            "is empty, correct or remove the row",
        ),
        ("openr1-math-46k", {"target_lst": "a"}, "target_lst", "must be a list, got str" + MEND),
        ("openr1-math-46k", {"target_lst": ["a"]}, "target_lst", "must be a list, got str" + MEND),
        (
            "openr1-math-46k",
            {"reward_model": "rule"},
            "reward_model",
            "must be a mapping with 'ground_truth', got str" + MEND,
        ),
        (
            "openr1-math-46k",
            {"reward_model": {"style": "rule"}},
            "reward_model.ground_truth",
            "missing, correct or remove the row",
        ),
        (
            "openr1-math-46k",
            {"reward_model": {"ground_truth": True}},
            "reward_model.ground_truth",
            "must be a text, got bool" + MEND,
        ),
        (
            "openr1-math-46k",
            {"reward_model": {"ground_truth": float("nan")}},
            "reward_model.ground_truth",
            "must be a text, got float" + MEND,
        ),
        (
            "openr1-math-46k",
            {"extra_info": {"split": "train"}},
            "extra_info.index",
            "missing, correct or remove the row",
        ),
        ("openr1-math-46k", {"data_source": 3}, "data_source", "must be a text, got int" + MEND),
        (
            "openr1-math-220k",
            {"generations": "a"},
            "generations",
            "must be a list, got str" + MEND,
        ),
        (
            "openr1-math-220k",
            {"generations": ["a", 1, "b", "c", "d"]},
            "generations",
            "must be a text, got int" + MEND,
        ),
        (
            "openr1-math-220k",
            {"correctness_math_verify": [True]},
            "correctness_math_verify",
            FLAGS,
        ),
        (
            "openr1-math-220k",
            {"is_reasoning_complete": [1, 1, 1, 1, 1]},
            "is_reasoning_complete",
            FLAGS,
        ),
        ("openr1-math-220k", {"answer": None}, "answer", "must be a text, got null" + MEND),
    ],
)
def test_rows_that_do_not_fit(name: str, changes: dict[str, Any], column: str, says: str) -> None:
    complete = COMPLETE[name]
    message = refused(name, [complete, complete | changes])
    assert message == f"my.jsonl, row 2, column '{column}': {says}"


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [
        ("math", "solution", r"\boxed{" * 100_000 + "1" + "}" * 100_000),
        ("math", "solution", "{" * 400_000 + r"\boxed{1}"),
        ("math", "solution", "\\" * 400_000 + r"\boxed{1}"),
        ("math", "solution", r"\boxed" + " " * 400_000 + "1"),
        ("gsm8k", "answer", "<<" * 200_000 + "\n#### 1"),
        ("gsm8k", "answer", "<<1" * 200_000 + "\n#### 1"),
        ("gsm8k", "answer", "#### 1" + ",000" * 100_000 + ",00"),
        ("gsm8k", "answer", " " * 400_000 + "x" + "\n" * 400_000 + "#### 1"),
    ],
    ids=range(8),
)
def test_time_is_linear_in_the_length(name: str, column: str, text: str) -> None:
    start = time.process_time()
    next(convert(name, [COMPLETE[name] | {column: text}], "x"))
    assert time.process_time() - start < 5  # a quadratic scan would take minutes

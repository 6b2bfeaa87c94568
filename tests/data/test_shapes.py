"""The same examples in every known shape are the same to the model: ids, masks and rewards."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefix_rft import PrefixRFTTrainer
from prefix_rft.data import DataError, Reading, Renderer, load_rows
from prefix_rft.data.demonstrations import IDS
from prefix_rft.data.files import PLACE
from prefix_rft.rewards import load_rewards
from tiny import CHAT_CHARACTERS, make_chat_tokenizer, make_config, make_model

SYSTEM = "Be brief."
Example = tuple[str, str, str]


def examples(n: int = 20) -> list[Example]:
    """Question, worked solution, answer."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        a, b = rng.randint(1, 99), rng.randint(1, 9)
        found.append((f"What is {a}+{b}?", f"{a}+{b}={a + b}, \\boxed{{{a + b}}}", str(a + b)))
    return found


def system() -> dict[str, str]:
    return {"role": "system", "content": SYSTEM}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def verl(folder: Path) -> Path:
    return write_parquet(
        folder / "verl.parquet",
        [
            {
                "data_source": "made",
                "prompt": [system(), user(q)],
                "target": [assistant(s)],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": a},
                "extra_info": {"split": "train", "index": i},
            }
            for i, (q, s, a) in enumerate(examples())
        ],
    )


def prompt_completion(folder: Path) -> Path:
    return write_jsonl(
        folder / "completion.jsonl",
        [
            {"prompt": [system(), user(q)], "completion": [assistant(s)], "answer": a}
            for q, s, a in examples()
        ],
    )


def messages(folder: Path) -> Path:
    path = folder / "messages.json"
    rows = [{"messages": [system(), user(q), assistant(s)], "answer": a} for q, s, a in examples()]
    path.write_text(json.dumps(rows, indent=1))
    return path


def problem(folder: Path) -> Path:
    """In two files of a folder."""
    (folder / "problems").mkdir()
    rows = [{"problem": q, "solution": s, "answer": a} for q, s, a in examples()]
    write_parquet(folder / "problems/part-0.parquet", rows[:7])
    write_jsonl(folder / "problems/part-1.jsonl", rows[7:])
    return folder / "problems"


SHAPES: list[Callable[[Path], Path]] = [verl, prompt_completion, messages, problem]


@pytest.mark.parametrize("write", SHAPES)
def test_own_answers_take_the_place_of_demonstrations(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Rows as ``prefix-rft collect`` writes them: the library's names, and the other columns."""
    row: Any = load_rows(str(write(tmp_path)))[0]
    kept = {k: v for k, v in row.items() if k != PLACE and v is not None}
    own = write_jsonl(tmp_path / "own.jsonl", [{**kept, "demonstration": ["mine"]}])
    again: Any = load_rows(str(own))[0]
    assert again["demonstration"] == ["mine"]
    assert (again["prompt"], again["answer"]) == (row["prompt"], row["answer"])


def ids_by_hand(text: str) -> list[int]:
    """Token ids by the vocabulary's own order, with the special tokens written out."""
    special = ["<pad>", "<|end|>", "<unk>", "<s>", "<|system|>", "<|user|>", "<|assistant|>"]
    ids = []
    while text:
        name = next((s for s in special if text.startswith(s)), text[0])
        whole = [*special, *CHAT_CHARACTERS]
        ids.append(whole.index(name))
        text = text[len(name) :]
    return ids


@pytest.mark.parametrize("write", SHAPES)
def test_ids_are_those_worked_out_by_hand(write: Callable[[Path], Path], tmp_path: Path) -> None:
    from prefix_rft.data import tokenize_demonstrations

    rows = load_rows(write(tmp_path), reading=Reading(system_prompt=SYSTEM))
    tokenizer = make_chat_tokenizer()
    mapped, report = tokenize_demonstrations(rows, tokenizer, 64)
    assert report is not None
    assert (report.demonstrations, report.dropped) == (20, {})
    render = Renderer(tokenizer)
    for row, (q, s, a) in zip(mapped, examples(), strict=True):
        written = f"<|system|>{SYSTEM}<|end|><|user|>{q}<|end|><|assistant|>"
        assert render.prompt(row["prompt"]) == ids_by_hand(written)
        assert row[IDS] == [ids_by_hand(f"{s}<|end|>")]
        assert row["answer"] == a


def rollouts(data: Path, folder: Path) -> list[dict[str, Any]]:
    """What a trainer's first step generates from the data."""
    tokenizer = make_chat_tokenizer()
    rewards, _ = load_rewards("math")
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        rewards,
        make_config(
            folder,
            max_steps=1,
            max_completion_length=48,
            log_rollouts=True,
            per_device_train_batch_size=32,
            generation_batch_size=32,
            method_options={"prefix_low": 1.0, "prefix_high": 1.0},
        ),
        train_dataset=load_rows(data, reading=Reading(system_prompt=SYSTEM)),
        processing_class=tokenizer,
    )
    trainer.train()
    for reward in rewards:
        reward.close()
    lines = (folder / "rollouts/step_000000.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_step_is_the_same_from_every_shape(tmp_path: Path) -> None:
    found = [rollouts(write(tmp_path), tmp_path / write.__name__) for write in SHAPES]
    assert all(other == found[0] for other in found[1:])
    # It holds something to compare: hybrid rows, their prefixes, and verdicts of both kinds.
    hybrid = [r for r in found[0] if r["prefix_length"]]
    assert len(hybrid) == 4
    by_example = {i: ids_by_hand(f"{s}<|end|>") for i, (_, s, _) in enumerate(examples())}
    for row in hybrid:
        length = row["prefix_length"]
        assert row["completion_ids"][:length] == by_example[row["example"]][:length]
    assert {r["verdicts"]["math"]["status"] for r in found[0]} >= {"no answer"}
    assert all(
        r["reward"] == 0.0 for r in found[0] if r["verdicts"]["math"]["status"] == "no answer"
    )


def test_text_prompts_stay_texts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "1+1=", "completion": "2", "answer": "2"}])
    row = load_rows(path)[0]
    place = f"data file '{path}', row 1"
    assert row.pop("prefix_rft_place") == place
    assert row == {"prompt": "1+1=", "demonstration": ["2"], "answer": "2"}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, []),
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([], []),
        (assistant("a"), ["a"]),
        ([assistant("a")], ["a"]),
        ([[assistant("a")], [assistant("b")]], ["a", "b"]),
        ([{**assistant("a"), "reasoning_content": "so"}], ["<think>\nso\n</think>\n\na"]),
        ([{**assistant("a"), "thinking": "so"}], ["<think>\nso\n</think>\n\na"]),
        ([assistant([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], ["ab"]),  # type: ignore[arg-type]
    ],
)
def test_demonstrations_of_every_kind(cell: Any, expected: list[str], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "demonstration": cell}])
    assert load_rows(path)[0]["demonstration"] == expected


def test_rows_without_the_key_have_no_demonstration(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "demonstration": "x"},
        {"prompt": "c", "demonstration": None},
    ]
    found = load_rows(write_jsonl(tmp_path / "a.jsonl", rows))
    assert found["demonstration"][:] == [[], ["x"], []]


def test_columns_rename_and_reach_into_nested_ones(tmp_path: Path) -> None:
    rows = [{"q": "1+1=", "meta": {"worked": ["2", "two"], "gold": "2"}}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "q", "demonstration": "meta.worked", "answer": "meta.gold"}
    row = load_rows(path, columns)[0]
    assert (row["prompt"], row["demonstration"], row["answer"]) == ("1+1=", ["2", "two"], "2")
    assert load_rows(path, {"problem": "q"})[0]["prompt"] == [user("1+1=")]


def test_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    rows = [{"prompt": "when?", "answer": "2020-01-01"}, {"prompt": "and?", "answer": "12:00"}]
    assert load_rows(write_jsonl(tmp_path / "a.jsonl", rows))["answer"][:] == [
        "2020-01-01",
        "12:00",
    ]


def test_max_demonstrations_and_fraction(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "demonstration": ["a", "b", "c"]} for i in range(400)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert load_rows(path, reading=Reading(max_demonstrations=2))[5]["demonstration"] == ["a", "b"]
    quarter = Reading(demonstration_fraction=0.25)
    having = [bool(d) for d in load_rows(path, reading=quarter)["demonstration"]]
    assert 70 <= sum(having) <= 130
    # Which rows: a matter of the seed and the row, so a longer file keeps the choice.
    shorter = load_rows(path, reading=quarter, limit=50)["demonstration"]
    assert [bool(d) for d in shorter] == having[:50]
    other = load_rows(path, reading=Reading(demonstration_fraction=0.25, seed=1))["demonstration"]
    assert [bool(d) for d in other] != having


def test_rows_are_mapped_from_disk(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "demonstration": "x", "n": 1}] * 600 + [
        {"prompt": "b", "n": 2.5, "m": [1]}
    ]
    found = load_rows(write_jsonl(tmp_path / "a.jsonl", rows))
    assert found.cache_files
    assert found[0]["n"] == 1.0
    last = {k: v for k, v in found[600].items() if k != "prefix_rft_place"}
    assert last == {"prompt": "b", "demonstration": [], "n": 2.5, "m": [1]}
    assert found[599]["m"] is None


def test_a_dataset_by_its_name(tmp_path: Path) -> None:
    """``load_dataset`` takes a folder where it takes a name; the way through it is the same."""
    (tmp_path / "made").mkdir()
    write_jsonl(tmp_path / "made/train.jsonl", [{"problem": "1+1?", "solution": "2"}])
    write_jsonl(tmp_path / "made/test.jsonl", [{"problem": "2+2?", "solution": "4"}])
    found = load_rows({"path": "made", "split": "test"}, folder=tmp_path)
    assert found[0] == {
        "prefix_rft_place": "dataset 'made', row 1",
        "prompt": [user("2+2?")],
        "demonstration": ["4"],
        "problem": "2+2?",
        "solution": "4",
    }
    with pytest.raises(DataError, match="several splits \\(test, train\\)"):
        load_rows("made", folder=tmp_path)

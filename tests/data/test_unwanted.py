"""What is in the data and is no demonstration, or not what it looks like; and control tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from odd_tokenizers import characters
from prefix_rft.cli import main
from prefix_rft.data import DataError, Renderer, load_rows, tokenize_demonstrations
from prefix_rft.data.demonstrations import IDS
from prefix_rft.data.files import Row
from prefix_rft.data.shapes import canonical, detect
from prefix_rft.data.stringified import MESSAGES, TEXTS, VALUES, stringified
from tiny import CHAT_TEMPLATE, make_chat_tokenizer, make_model

ASK = [{"role": "user", "content": "1+1?"}]
SAY = [{"role": "assistant", "content": "2"}]
Capture = pytest.CaptureFixture[str]


def read(**values: Any) -> dict[str, Any]:
    row = Row("data", 1, values)
    return canonical(row, detect(row))


def fault(**values: Any) -> str:
    with pytest.raises(DataError) as error:
        read(**values)
    return str(error.value)


# ---- preferences -----------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "completion"), [("1+1?", "2"), (ASK, SAY)])
def test_of_labelled_completions_only_the_good_ones_are_demonstrations(
    prompt: Any, completion: Any
) -> None:
    for label, found in ((True, ["2"]), (False, [])):
        made = read(prompt=prompt, completion=completion, label=label)
        assert made["demonstration"] == found
        assert made["prompt"] == prompt
        assert made["label"] is label
    assert read(prompt=prompt, completion=completion)["demonstration"] == ["2"]


@pytest.mark.parametrize("label", [0, 1, "false", "True", None, float("nan"), "0", 1.0, "no"])
def test_a_label_that_may_mean_so_is_asked_about(label: Any) -> None:
    assert "write that, or rename the column" in fault(prompt="a", completion="b", label=label)


@pytest.mark.parametrize("label", ["geometry", 7, "A"])
def test_another_label_is_just_a_column(label: Any) -> None:
    assert read(prompt="a", completion="b", label=label)["demonstration"] == ["b"]


def test_the_trainers_own_datasets_are_read_alike() -> None:
    rows = Dataset.from_dict(
        {"prompt": ["a"] * 2, "completion": ["1", "2"], "label": [False, True]}
    )
    mapped, report = tokenize_demonstrations(rows, make_chat_tokenizer(), 8, "completion")
    assert report is not None
    assert report.demonstrations == 1
    assert [len(ids) for ids in mapped[IDS]] == [0, 1]


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, "1+1?"),
        ({"prompt": ASK, "chosen": SAY, "rejected": SAY}, ASK),
        ({"chosen": ASK + SAY, "rejected": ASK + SAY}, ASK),
        ({"prompt": "1+1?", "chosen": ASK + SAY, "rejected": ASK + SAY}, ASK),
        ({"question": "1+1?", "chosen": "2", "rejected": "3"}, ASK),
    ],
)
def test_what_was_chosen_is_the_demonstration(columns: dict[str, Any], prompt: Any) -> None:
    found = read(**columns, answer="2")
    assert (found["prompt"], found["demonstration"], found["answer"]) == (prompt, ["2"], "2")
    assert "chosen" not in found


def test_a_demonstration_of_its_own_comes_before_what_was_chosen() -> None:
    found = read(prompt="a", demonstration="d", chosen="c", rejected="r")
    assert (found["demonstration"], found["chosen"]) == (["d"], "c")
    assert read(prompt="a", chosen="c")["demonstration"] == []


# ---- lists written out as texts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (json.dumps(ASK), MESSAGES),
        (repr(ASK), MESSAGES),  # as Python prints it
        (json.dumps(ASK, indent=2), MESSAGES),
        (json.dumps([ASK, ASK]), MESSAGES),
        (json.dumps(SAY[0]), MESSAGES),
        ("[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]", MESSAGES),
        ("array([{'content': 'a', 'role': 'user'}], dtype=object)", MESSAGES),
        ('[{"from": "human", "value": "a"}]', MESSAGES),
        ('["a", "b"]', TEXTS),
        ("['it\\'s']", TEXTS),
        ('["34"]', TEXTS),
        ("[1, 2]", VALUES),
        ("[[1], [2]]", VALUES),
        ("[]", None),
        ("[a, b]", None),
        ("[0, 1)", None),
        ("{1, 2}", None),
        ('{"role": "king"}', None),
        ("a [1] b", None),
        ("What is [1, 2][0]?", None),
        ("4", None),
        (4, None),
        (["a"], None),
        (None, None),
        ("[" * 100_000 + "]" * 100_000, None),
    ],
)
def test_texts_of_lists(text: Any, kind: str | None) -> None:
    assert stringified(text) == kind


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": json.dumps(ASK)},
        {"prompt": repr(ASK), "demonstration": "2"},
        {"problem": json.dumps(ASK), "solution": "2"},
        {"messages": json.dumps(ASK + SAY)},
        {"prompt": "1+1?", "demonstration": json.dumps(SAY)},
        {"prompt": "1+1?", "demonstration": [json.dumps(SAY)]},
        {"prompt": "1+1?", "completion": repr(SAY)},
        {"prompt": ASK, "reward_model": {"ground_truth": "2"}, "target": repr(SAY)},
        {"chosen": json.dumps(ASK + SAY), "rejected": json.dumps(ASK + SAY)},
    ],
)
def test_messages_written_out_are_refused(columns: dict[str, Any]) -> None:
    said = fault(**columns)
    assert "holds the text of a list of messages, not the list: read it with json.loads" in said
    assert said.startswith("data, row 1, column '")


def recipe(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], **changes: Any) -> None:
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = {
        "model": "base",
        "train_data": "train.jsonl",
        "reward": "format",
        "method": "prefix_rft",
        "prompts_per_step": len(rows),
        "num_generations": 2,
        "max_completion_length": 48,
        "max_steps": 1,
    }
    entry = {"name": "format", "pattern": "(?s).*"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**said, "reward": entry, **changes}))


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    code = main(["check", "recipe.yaml"])
    return code, capfd.readouterr().out


def test_texts_written_out_are_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    several, meant = "['1+1 is 2', '2']", ["['2']"]
    rows = [
        {"prompt": "1+1?", "demonstration": several, "answer": "2"},
        {"prompt": "2+2?", "demonstration": meant, "answer": "4"},
        {"prompt": "3+3?", "demonstration": "6", "answer": '["6"]'},
    ]
    recipe(tmp_path, make_chat_tokenizer(), rows)
    code, out = check(tmp_path, monkeypatch, capfd)
    assert code == 1
    assert "row 1: column 'demonstration': the demonstration is the text of a list of texts" in out
    assert "if the text is meant, make it a list of one" in out
    assert "row 3: column 'answer': the answer is the text of a list" in out
    assert "1 problem: training would waste time" in out
    recipe(tmp_path, make_chat_tokenizer(), rows[1:])
    assert check(tmp_path, monkeypatch, capfd)[0] == 0


def test_messages_written_out_are_a_finding_with_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    rows = [{"prompt": "1+1?", "demonstration": "2"}, {"prompt": "1?", "demonstration": repr(SAY)}]
    recipe(tmp_path, make_chat_tokenizer(), rows)
    code, out = check(tmp_path, monkeypatch, capfd)
    assert code == 1
    assert "row 2: column 'demonstration': holds the text of a list of messages" in out


# ---- control tokens ----------------------------------------------------------------------------


def test_what_is_a_control_token() -> None:
    """What ends a completion or pads is not read; what the template writes stands for turns."""
    tokenizer = characters(tags=True)
    render = Renderer(tokenizer)

    def names(ids: Any) -> set[str]:
        return set(tokenizer.convert_ids_to_tokens(sorted(ids)))

    assert names(render.unread) == {"<pad>", "<|end|>"}
    assert names(render.markers) == {"<pad>", "<|end|>", "<|user|>", "<|assistant|>"}
    # A token that ends a turn in the template is not read, though generation goes on behind it.
    other = CHAT_TEMPLATE.replace("<|end|>{% endfor %}", "{{ '<|system|>' }}{% endfor %}")
    assert names(Renderer(characters(template=other)).unread) == {"<pad>", "<|end|>", "<|system|>"}
    # The unknown token is read, though some pad with it.
    tokenizer = characters()
    tokenizer.pad_token = tokenizer.unk_token
    assert tokenizer.unk_token_id not in Renderer(tokenizer).unread
    # The think tag with which a template begins an answer is none.
    thinking = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    tokenizer = characters(tags=True, template=thinking)
    assert not {"<think>", "</think>"} & set(
        tokenizer.convert_ids_to_tokens(sorted(Renderer(tokenizer).markers))
    )


@pytest.mark.parametrize(
    ("prompt", "demonstration", "said", "serious"),
    [
        (ASK, "a<|user|>b", "a demonstration holds control tokens, which are trained", True),
        (ASK, "a<pad>b", "trained as such, not as text ('<pad>')", True),
        (ASK, "a<|end|>b", "is dropped: with an end-of-sequence token inside", False),
        ([{"role": "user", "content": "a<|end|>b?"}], "2", "prompt holds control tokens", True),
        (
            [{"role": "system", "content": "a<|user|>b"}, *ASK],
            "2",
            "sent as such, not as text ('<|user|>')",
            True,
        ),
        ("a<|end|>b", "2", "the prompt holds control tokens", False),  # it may be rendered already
    ],
)
def test_control_tokens_in_data_are_findings(
    prompt: Any,
    demonstration: str,
    said: str,
    serious: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:
    fine = "1+1?" if isinstance(prompt, str) else ASK
    rows = [
        {"prompt": fine, "demonstration": "2"},
        {"prompt": prompt, "demonstration": demonstration},
    ]
    recipe(tmp_path, make_chat_tokenizer(), rows)
    code, out = check(tmp_path, monkeypatch, capfd)
    assert said in out
    assert "row 2: " in out
    assert code == int(serious)


@pytest.mark.parametrize("demonstration", ["2", "2<|end|>", "<think>so</think><answer>2</answer>"])
def test_ends_and_tags_are_no_findings(
    demonstration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    recipe(tmp_path, characters(tags=True), [{"prompt": ASK, "demonstration": demonstration}] * 2)
    code, out = check(tmp_path, monkeypatch, capfd)
    assert code == 0
    assert "control tokens" not in out


def test_what_training_does_with_control_tokens(tmp_path: Path) -> None:
    """They are sent and trained as the tokens that they are, as the documentation says."""
    rows = [{"prompt": [{"role": "user", "content": "a<|end|>b"}], "demonstration": "a<|user|>b"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tokenizer = make_chat_tokenizer()
    loaded = load_rows(str(tmp_path / "train.jsonl"))
    render = Renderer(tokenizer)
    prompt = tokenizer.convert_ids_to_tokens(render.prompt(loaded[0]["prompt"]))
    assert prompt == ["<|user|>", "a", "<|end|>", "b", "<|end|>", "<|assistant|>"]
    ids = render.demonstrations(loaded[0]["demonstration"], True)[0]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "<|user|>", "b", "<|end|>"]
    assert render.completions([ids]) == ["a<|user|>b"]

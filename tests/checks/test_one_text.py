"""check, inspect, the start of a run, training and evaluation grade the same text of a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from odd_tokenizers import LOWER, STRIP, characters, metaspace
from prefix_rft.cli import main
from prefix_rft.data import Renderer
from prefix_rft.evaluation import samples as evaluate
from prefix_rft.rewards import Graded
from tables import rest_slow
from tiny import CHAT_TEMPLATE, make_model

THINKING = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
NOT_EOS = CHAT_TEMPLATE.replace("<|end|>{% endfor %}", "{{ '<|system|>' }}\n{% endfor %}")
GRADER = '''
import json
from pathlib import Path

def holds(completions, answer, completion_ids, **columns):
    """Whether the text holds the answer; notes what it was given."""
    texts = [c[-1]["content"] for c in completions]
    with Path(__file__).with_name("seen.jsonl").open("a") as file:
        for text, ids in zip(texts, completion_ids):
            file.write(json.dumps([text, ids]) + "\\n")
    return [float(gold in text) for text, gold in zip(texts, answer)]
'''
# Tokenizer, demonstration, answer, the text that is graded (by hand), whether it holds the answer.
CASES: dict[str, tuple[Any, str, str, str, bool]] = {
    "lower": (lambda: characters(LOWER), "It is A", "A", "it is a", False),
    "strip": (lambda: characters(STRIP), " It is 4 ", "4 ", "It is 4", False),
    "unknown": (lambda: characters(missing="7"), "7*1=7", "1=7", "<unk>*1=<unk>", False),
    "vanishes": (lambda: characters(missing="7", unknown=False), "7*1=7", "1=7", "*1=", False),
    "tags": (
        lambda: characters(tags=True),
        "<think>so</think><answer>4</answer>",
        "<answer>4</answer>",
        "<think>so</think><answer>4</answer>",
        True,
    ),
    "tag in the prompt": (
        lambda: characters(tags=True, template=THINKING),
        "<think>\nso\n</think>4",
        "<think>",
        "so\n</think>4",
        False,
    ),
    "ends by another token": (
        lambda: characters(template=NOT_EOS),
        "it is 4<|system|>",
        "4<",
        "it is 4",
        False,
    ),
    "space": (lambda: metaspace("always"), "it is 4", "it is 4", "it is 4", True),
}


def write(folder: Path, tokenizer: Any, text: str, answer: str, **changes: Any) -> None:
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "holding.py").write_text(GRADER)
    rows = [{"problem": f"{a}+1?", "solution": text, "answer": answer} for a in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = {
        "model": "base",
        "train_data": "train.jsonl",
        "reward": {"name": "holding:holds", "workers": 1},
        "name": "one",
        "method": "luffy",  # one row of a group is a whole demonstration
        "prompts_per_step": 4,
        "num_generations": 2,
        "max_completion_length": 48,
        "max_steps": 1,
        "save_strategy": "no",
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def seen(folder: Path) -> list[tuple[str, list[int]]]:
    """What graders were given since the last call."""
    path = folder / "seen.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return [(text, ids) for text, ids in lines]


@pytest.mark.parametrize("case", rest_slow(CASES, lambda case: case == "tags"))
def test_one_text_is_graded_everywhere(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, text, answer, graded, right = CASES[case]
    tokenizer = make()
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tokenizer, text, answer)
    ids = Renderer(tokenizer).demonstrations([text], True)[0]
    status = "correct" if right else "wrong"

    main(["check", "recipe.yaml"])
    assert seen(tmp_path) == [(graded, ids)] * 4
    out = capfd.readouterr().out
    assert ("is 'wrong' to its own grader" in out) is not right

    assert main(["inspect", "recipe.yaml"]) == 0
    assert seen(tmp_path) == [(graded, ids)]
    assert f"demonstration 1 is '{status}' to 'holds'" in capfd.readouterr().out

    assert main(["train", "recipe.yaml"]) == 0
    given = seen(tmp_path)
    assert [g for g in given if g[1] == ids] == [(graded, ids)] * (4 + 4 + 4)  # first, look, train
    path = next(tmp_path.glob("runs/*/rollouts/step_000000.jsonl"))
    rollouts = [json.loads(line) for line in path.read_text().splitlines()]
    whole = [r for r in rollouts if r["demonstration"]]
    assert [r["verdicts"]["holds"]["status"] for r in whole] == [status] * 4
    assert {r["text"] for r in whole} == {tokenizer.decode(ids)}

    # An evaluation in which the model says the same.
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]], "answer": [answer]})
    reward = Graded("holding:holds", folder=tmp_path, workers=1)
    sample = evaluate._grade(Renderer(tokenizer), rows, reward, [ids], 1)[0]
    reward.close()
    assert (sample.text, sample.verdict.status) == (graded, status)
    assert seen(tmp_path) == [(graded, ids)]


@pytest.mark.parametrize("case", ["lower", "tags"])
def test_only_correct_demonstrations_are_kept_by_that_text(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make, text, answer, _, right = CASES[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path, make(), text, answer, only_correct_demonstrations=True)
    assert main(["train", "recipe.yaml", "method=prefix_rft"]) == (0 if right else 2)
    told = capfd.readouterr()
    out = " ".join(told.out.split())
    assert f"{0 if right else 4} of 4 demonstrations dropped: not correct to 'holds'" in out
    assert right or "no row has one" in told.err


@pytest.mark.parametrize(
    ("make", "text", "said"),
    [
        (lambda: characters(missing="7"), "it is 7", "does not know a character of a demon"),
        (lambda: characters(missing="7"), "it is 7", "in its place ('7')"),
        (lambda: characters(LOWER), "It is 4", "the tokenizer changes a demonstration"),
        (lambda: characters(LOWER), "It is 4", "('It is 4' -> 'it is 4')"),
        (lambda: characters(STRIP), "it is 4\n", "('it is 4\\n' -> 'it is 4')"),
        (lambda: characters(missing="7", unknown=False), "it is 7", "('it is 7' -> 'it is ')"),
    ],
)
def test_check_says_what_a_tokenizer_does(
    make: Any,
    text: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, make(), text, "i")
    unknown = "does not know" in said or "place" in said
    assert main(["check", "recipe.yaml"]) == (1 if unknown else 0)
    out = capfd.readouterr().out
    assert "rows 1, 2, 3, 4: the tokenizer" in out
    assert said in out


def test_an_unknown_character_of_a_prompt_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, characters(missing="2"), "it is 4", "4")
    assert main(["check", "recipe.yaml"]) == 0
    out = capfd.readouterr().out
    assert "row 3: the tokenizer does not know a character of the prompt" in out
    assert "cannot see it ('2')" in out


@pytest.mark.slow
def test_what_does_survive_is_not_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for make, text in (
        (lambda: characters(tags=True), "<think>so</think>it is 4"),
        (lambda: characters(tags=True, template=THINKING), "<think>\nso</think>it is 4<|end|>"),
        (lambda: metaspace("first"), "it is 4"),
        (lambda: metaspace("always", legacy=True), "it is 4"),
        (lambda: characters(), " it is\n4 "),
    ):
        write(tmp_path, make(), text, "4")
        assert main(["check", "recipe.yaml"]) == 0
        assert "the tokenizer" not in capfd.readouterr().out

"""Measures along training, against transformers' own loss and the task's own grader."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefix_rft.compare import trajectory as module
from prefix_rft.compare.trajectory import SAMPLES, measures, trajectory
from prefix_rft.tasks.countdown import grade, write


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    write(folder, 40, 70, 0, 8)  # more than one batch of the loss
    return folder


def rows_of(task: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (task / "test.jsonl").read_text().splitlines()]


def test_measures(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    graded = module.grade_texts

    def spy(reward: Any, rows: Any, texts: list[str]) -> Any:
        seen.append(texts)
        return graded(reward, rows, texts)

    monkeypatch.setattr(module, "grade_texts", spy)
    found = measures(str(task / "base"), str(task / "recipe.yaml"), [])
    rows = rows_of(task)

    # The loss, one row at a time, with the labels of transformers' own loss; EOS is learned too.
    model = AutoModelForCausalLM.from_pretrained(task / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(task / "base")
    total, tokens = 0.0, 0
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["demonstration"])["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * len(answer)
        tokens += len(answer)
    assert found["sft_loss"] == pytest.approx(total / tokens, rel=1e-5)

    # Rewards: of nothing given, then of half the tokens of each demonstration.
    assert [len(texts) for texts in seen] == [70 * SAMPLES] * 2
    repeated = [row for row in rows for _ in range(SAMPLES)]
    for share, texts in zip(("reward_0", "reward_0.5"), seen, strict=True):
        right = [
            grade(text, r["numbers"], r["target"]) for text, r in zip(texts, repeated, strict=True)
        ]
        assert found[share] == pytest.approx(sum(right) / len(right))
    for text, row in zip(seen[1], repeated, strict=True):
        whole = tokenizer(row["demonstration"])["input_ids"]
        half = whole[: (len(whole) + 1) // 2]  # EOS counts
        assert tokenizer(text)["input_ids"][: len(half)] == half
    assert found["reward_0.5"] > found["reward_0"]
    assert len(set(seen[0])) > 100  # samples of one row differ


def test_a_path_is_in_the_order_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*range(9, 19), 100, 120]  # 120: not of this run, which ended at 100
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
    monkeypatch.setattr(module, "measures", lambda source, *_: {"source": Path(source).name})
    found = [(p["step"], p["source"]) for p in trajectory(tmp_path, "recipe.yaml", [], 100)]
    assert found == [*((k, f"checkpoint-{k}") for k in range(9, 19)), (100, "model")]

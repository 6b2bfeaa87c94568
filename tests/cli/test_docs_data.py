"""The files of docs/data.md, as they stand there, train."""

import json
import re
from pathlib import Path

import pytest
import yaml

from prefix_rft.cli import main
from tiny import make_chat_tokenizer, make_model

DOCS = Path(__file__).parents[2] / "docs/data.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three files, and a small model in the place of the one from the Hub."""
    text = DOCS.read_text()
    for name in ("train.jsonl", "my_rewards.py", "recipe.yaml"):
        block = re.search(rf"`{re.escape(name)}`\n\n```\w+\n(.*?)```", text, re.DOTALL)
        assert block, name
        (tmp_path / name).write_text(block[1])
    tokenizer = make_chat_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_are_as_short_as_promised(folder: Path) -> None:
    rows = (folder / "train.jsonl").read_text().splitlines()
    recipe = (folder / "recipe.yaml").read_text().splitlines()
    reward = (folder / "my_rewards.py").read_text().splitlines()
    assert len(rows) == 5
    assert len(recipe) <= 15
    assert len([line for line in reward if line.strip()]) <= 10


def test_they_train(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["model=base", "max_completion_length=64", "max_steps=3", "learning_rate=1e-3"]
    assert main(["check", "recipe.yaml", *small]) == 0
    checked = capfd.readouterr().out
    assert "5 rows read as problem rows" in checked
    assert "4 demonstrations in 4 rows" in checked
    assert "ready: prefix-rft train recipe.yaml" in checked
    assert main(["train", "recipe.yaml", *small]) == 0
    lines = (folder / "runs/first/rollouts/step_000000.jsonl").read_text().splitlines()
    rollouts = [json.loads(line) for line in lines]
    assert len(rollouts) == 32
    prompt = rollouts[0]["prompt"]
    assert prompt.startswith("<|system|>Work it out, then say what the answer is.<|end|><|user|>")
    assert {r["verdicts"]["last_number"]["status"] for r in rollouts} <= {"correct", "wrong"}
    assert any(r["prefix_length"] for r in rollouts)
    assert (folder / "runs/first/model/model.safetensors").exists()


def test_every_reward_example_can_be_read(folder: Path) -> None:
    from prefix_rft.rewards import close_all, load_rewards

    block = re.search(r"## Rewards\n\n```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert block
    examples = re.split(r"^(?=reward:)", block[1], flags=re.MULTILINE)[1:]
    assert len(examples) == 3
    for example in examples:
        rewards, weights = load_rewards(yaml.safe_load(example)["reward"], folder)
        close_all(rewards)
        assert len(rewards) == len(weights) >= 1

"""Verdicts in the trainer: who enters a baseline, what is counted, and that training goes on."""

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import faults
from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.models import quiet
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate
from prefix_rft.rewards import Graded, Limits, Verdict, checked, close_all, load_rewards
from rewards.test_pool import FAULTS, processes_of
from tables import rest_slow
from tiny import make_config, make_model, make_rows, make_tokenizer


def train(
    folder: Path, rewards: Any, rows: Dataset | None = None, **overrides: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One step; its rollouts, and the metrics that were logged."""
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        rewards,
        make_config(folder, log_rollouts=True, **{"max_steps": 1, **overrides}),
        train_dataset=rows or make_rows(16),
        processing_class=tokenizer,
    )
    trainer.train()
    lines = (folder / "rollouts/step_000000.jsonl").read_text().splitlines()
    rollouts = [json.loads(line) for line in lines]
    for row in rollouts:  # what the graders saw
        row["text"] = tokenizer.decode([i for i in row["completion_ids"] if i > 1])  # pad, EOS
    return rollouts, trainer.state.log_history[0]


def by_text(choose: Callable[[str], Any]) -> Callable[..., list[Any]]:
    def reward(completions: list[str], **kwargs: Any) -> list[Any]:
        return [choose(c) for c in completions]

    return reward


def advantages_by_hand(rollouts: list[dict[str, Any]], rewards: list[float | None]) -> list[float]:
    """``R - mean`` over the rows of a group that have a reward; 0 for the others."""
    found = []
    for row, reward in zip(rollouts, rewards, strict=True):
        group = [
            r
            for r, other in zip(rewards, rollouts, strict=True)
            if other["group"] == row["group"] and r is not None
        ]
        usable = reward is not None and len(group) > 1
        found.append(reward - sum(group) / len(group) if usable and reward is not None else 0.0)
    return found


OF_EACH_KIND = ("fails", "nothing", "verdicts")
"""An exception, and the other statuses. Tests of the pool have all faults."""


@pytest.mark.parametrize(
    "fault",
    rest_slow(sorted(set(FAULTS) - {"waits", "children"}), lambda fault: fault in OF_EACH_KIND),
)
def test_training_goes_on_whatever_the_grader_does(fault: str, tmp_path: Path) -> None:
    before = processes_of(os.getpid())
    reward = Graded(
        "faults:sometimes",
        options={"fault": fault},
        no_answer="exclude",
        workers=2,
        limits=Limits(seconds=0.2, memory=100),
    )
    rollouts, metrics = train(
        tmp_path,
        reward,
        per_device_train_batch_size=8,
        method="dr_grpo",
        max_completion_length=6,
    )
    reward.close()
    status = FAULTS[fault][0]
    expected = [status if faults.unlucky(r["text"]) else "correct" for r in rollouts]
    found = [r["verdicts"]["sometimes"] for r in rollouts]
    assert [v["status"] for v in found] == expected
    assert expected.count(status) > 0
    for row, verdict in zip(rollouts, found, strict=True):
        assert row["reward"] == (1.0 if verdict["status"] == "correct" else None)
        assert row["advantage"] == 0.0
    assert metrics[f"verdicts/sometimes/{status}"] == expected.count(status) / 8
    assert metrics["rewards/ungraded"] == sum(e != "correct" for e in expected) / 8
    assert processes_of(os.getpid()) <= before


def test_ungraded_rows_enter_no_baseline(tmp_path: Path) -> None:
    """By hand: every row's advantage from the rewards of its group that exist."""

    def choose(text: str) -> Any:
        if len(text) % 4 == 0:
            return Verdict("timeout", detail="long")
        return Verdict("correct" if len(text) % 3 == 0 else "wrong")

    rollouts, _ = train(tmp_path, by_text(choose))
    expected: list[float | None] = [
        None if len(r["text"]) % 4 == 0 else float(len(r["text"]) % 3 == 0) for r in rollouts
    ]
    assert {None, 0.0, 1.0} <= set(expected)
    assert [r["reward"] for r in rollouts] == expected
    for row, advantage in zip(rollouts, advantages_by_hand(rollouts, expected), strict=True):
        assert row["advantage"] == pytest.approx(advantage, abs=1e-6)


def test_a_row_that_one_grader_cannot_judge_has_no_reward(tmp_path: Path) -> None:
    """While None, TRL's "does not apply", leaves the row to the other rewards."""

    def judge(text: str) -> Any:
        kinds = [Verdict("error"), None, 1.0]
        return kinds[len(text) % 3]

    def length(text: str) -> float:
        return len(text) / 100

    def named(name: str, function: Any) -> Any:
        function.__name__ = name
        return function

    rewards = [named("judge", by_text(judge)), named("length", by_text(length))]
    rollouts, metrics = train(tmp_path, rewards, reward_weights=[1.0, 0.5])
    expected: list[float | None] = []
    for row in rollouts:
        judged = (None, 0.0, 1.0)[len(row["text"]) % 3]
        expected.append(None if judged is None else judged + 0.5 * len(row["text"]) / 100)
    assert {len(r["text"]) % 3 for r in rollouts} == {0, 1, 2}
    for row, reward in zip(rollouts, expected, strict=True):
        assert row["reward"] == (None if reward is None else pytest.approx(reward, abs=1e-6))
    for row, advantage in zip(rollouts, advantages_by_hand(rollouts, expected), strict=True):
        assert row["advantage"] == pytest.approx(advantage, abs=1e-6)
    graded = [r for r in expected if r is not None]
    assert metrics["reward"] == pytest.approx(sum(graded) / len(graded), rel=1e-5)
    ungraded = sum(r is None for r in expected) / len(expected)
    assert metrics["rewards/ungraded"] == pytest.approx(ungraded)
    assert metrics["verdicts/judge/error"] == pytest.approx(ungraded)
    assert math.isclose(sum(v for k, v in metrics.items() if k.startswith("verdicts/judge/")), 1.0)


def silent(completions: list[str], **kwargs: Any) -> list[Verdict]:
    return [Verdict("no answer") for _ in completions]


@pytest.mark.parametrize("kind", ["pool", "whole batch", "python"])
@pytest.mark.parametrize(("option", "expected"), [(None, 0.0), ("wrong", 0.0), ("exclude", None)])
def test_no_answer_counts_as_wrong_unless_excluded(
    kind: str, option: str | None, expected: float | None, tmp_path: Path
) -> None:
    chosen = {} if option is None else {"no_answer": option}
    reward: Any = checked(silent, **chosen) if chosen else silent
    if kind != "python":
        (tmp_path / "own_silent.py").write_text(
            "from prefix_rft.rewards import Verdict\n\n\n"
            "def silent(completions, **kwargs):\n"
            "    return [Verdict('no answer')] * len(completions)\n"
        )
        entry = {"name": "own_silent:silent", "whole_batch": kind == "whole batch", **chosen}
        (reward,), _ = load_rewards({"workers": 1, **entry}, tmp_path)
    rollouts, metrics = train(tmp_path / "run", reward, method="dr_grpo", **SMALL)
    close_all([reward])
    assert {r["reward"] for r in rollouts} == {expected}
    assert {r["verdicts"]["silent"]["status"] for r in rollouts} == {"no answer"}
    # Whatever it is worth, it is counted as what it is.
    assert metrics["verdicts/silent/no answer"] == 1.0
    assert metrics["verdicts/silent/wrong"] == 0.0
    assert metrics["rewards/ungraded"] == float(expected is None)


SMALL: dict[str, Any] = {"per_device_train_batch_size": 8, "max_completion_length": 6}


def test_rows_without_an_answer_push_back(tmp_path: Path) -> None:
    """By hand: they enter the baseline of their group with 0, beside another reward's part."""

    def find(text: str) -> Any:
        return Verdict("no answer") if len(text) % 2 else Verdict("correct")

    def length(completions: list[str], **kwargs: Any) -> list[float]:
        return [len(c) / 100 for c in completions]

    rollouts, metrics = train(tmp_path, [by_text(find), length], reward_weights=[1.0, 0.5])
    expected = [float(len(r["text"]) % 2 == 0) + 0.5 * len(r["text"]) / 100 for r in rollouts]
    assert {len(r["text"]) % 2 for r in rollouts} == {0, 1}
    assert [r["reward"] for r in rollouts] == pytest.approx(expected, abs=1e-6)
    by_hand = advantages_by_hand(rollouts, [*expected])
    assert [r["advantage"] for r in rollouts] == pytest.approx(by_hand, abs=1e-6)
    share = sum(len(r["text"]) % 2 for r in rollouts) / len(rollouts)
    assert metrics["verdicts/reward/no answer"] == pytest.approx(share)
    assert metrics["rewards/ungraded"] == 0.0


@pytest.mark.parametrize("given", [None, Verdict("error", detail="broken")])
@pytest.mark.parametrize("quietly", [True, False])
def test_no_row_reaches_the_terminal(
    given: Any, quietly: bool, tmp_path: Path, caplog: Any, capfd: Any
) -> None:
    """TRL prints a row whose rewards are all None, with the process's rank in front."""
    if quietly:
        quiet()
    root = logging.getLogger()
    handler = logging.StreamHandler()
    root.addHandler(handler)  # as logging.basicConfig does in a user's script
    rows = Dataset.from_dict({"prompt": ["secret 100% a", "secret %s b"] * 4})
    try:
        _, metrics = train(tmp_path, by_text(lambda text: given), rows, method="dr_grpo", **SMALL)
    finally:
        root.removeHandler(handler)
    assert metrics["rewards/ungraded"] == 1.0
    said = caplog.text + "".join(capfd.readouterr())
    assert "secret" not in said
    assert "returned None" not in said
    # A trainer of TRL's own keeps its warning.
    trl = logging.getLogger("trl.trainer.grpo_trainer")
    trl.warning("[RANK 0] All reward functions returned None for the following kwargs:\n{}")
    assert "returned None" in caplog.text


def test_prefix_leak_counts_prefixes_that_hold_the_answer(tmp_path: Path) -> None:
    """Half of one demonstration holds the answer, half of the other does not."""
    early, late = "#12" + ";" * 17, ";" * 17 + "#12"
    rows = Dataset.from_dict({"prompt": ["a", "b"] * 2, "demonstration": [early, late] * 2})

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        return [float("#12" in c) for c in completions]

    rollouts, metrics = train(
        tmp_path,
        reward,
        rows,
        log_prefix_leak=True,
        method_options={"prefix_low": 0.5, "prefix_high": 0.5},
    )
    leaking = [r["example"] % 2 == 0 for r in rollouts if r["prefix_length"]]
    assert metrics["prefix/leak"] == sum(leaking) / len(leaking)
    assert len(leaking) == 2
    # The verdicts that are kept are those of the whole rows.
    for row in rollouts:
        assert row["verdicts"]["reward"]["reward"] == float("#12" in row["text"])


@pytest.mark.parametrize("setting", ["log_prefix_leak", "guard_prefix_leak"])
def test_prefix_leak_needs_a_grader(tmp_path: Path, setting: str) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=f"{setting} needs a reward function"):
        PrefixRFTTrainer(
            make_model(tokenizer),
            make_model_with_score(tokenizer),
            make_config(tmp_path, **{setting: True}),
            train_dataset=make_rows(16),
            processing_class=tokenizer,
            reward_processing_classes=tokenizer,
        )


def make_model_with_score(tokenizer: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForSequenceClassification(config)


def test_evaluation_counts_no_answer_as_unsolved() -> None:
    """Three problems, two samples each: solved, no answer, timeout."""
    tokenizer = make_tokenizer()
    rows = Dataset.from_dict({"prompt": ["a", "b", "c"], "kind": ["right", "none", "slow"]})

    def reward(completions: list[str], kind: list[str], **kwargs: Any) -> list[Verdict]:
        status = {"right": "correct", "none": "no answer", "slow": "timeout"}
        return [Verdict(status[k]) for k in kind]

    request = Request(samples=2, max_completion_length=4)
    result = evaluate(make_model(tokenizer), tokenizer, rows, reward, request)
    assert result.per_problem == [1.0, 0.0]
    assert result.mean == 0.5
    assert result.no_answer == pytest.approx(1 / 3)
    assert result.ungraded == 2


def test_a_reward_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    """What was planned for the rows of a generation is not taken for the rows of an evaluation."""
    broken = True

    def reward(completions: list[str], **kwargs: Any) -> list[float]:
        if broken:
            raise RuntimeError("the grader is away")
        seen.extend(completions)
        return [0.0] * len(completions)

    def trainer() -> PrefixRFTTrainer:
        tokenizer = make_tokenizer()
        config = make_config(tmp_path, max_steps=1, per_device_eval_batch_size=8)
        return PrefixRFTTrainer(
            make_model(tokenizer), reward, config, train_dataset=make_rows(16),
            eval_dataset=make_rows(3, seed=1), processing_class=tokenizer,
        )  # fmt: skip

    seen: list[str] = []
    after = trainer()
    with pytest.raises(RuntimeError, match="the grader is away"):
        after.train()
    broken = False
    torch.manual_seed(0)
    after.evaluate()
    first, seen = seen, []
    fresh = trainer()
    torch.manual_seed(0)
    fresh.evaluate()
    assert first
    assert first == seen

"""A real vLLM in the trainer's process: exact ids, and log-probs that say the weights arrived."""

import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm_runs import BUDGET, colocated, distance, even_wrong

from tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_engine")

EXACT = 1e-5
"""Nats a token in float32; 4.8e-7 was the largest distance seen."""


def test_the_run_draws_from_its_own_seed(tmp_path: Path, model_folder: str) -> None:
    """The engine has seeded the process with 0 (see ``one_engine``)."""
    colocated(tmp_path, model_folder, seed=7)
    assert torch.initial_seed() == 7
    first = torch.rand(3)
    colocated(tmp_path, model_folder, seed=8)
    assert torch.initial_seed() == 8
    assert not torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("length", [128, 10 + BUDGET])
@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_ids_and_logps(tmp_path: Path, model_folder: str, length: int, mode: str) -> None:
    """Before any update and after each of three.

    The shorter context has room for a prompt and the budget, and so for no prefix besides.
    """
    settings = {"max_steps": 4, "vllm_importance_sampling_mode": mode}
    run = colocated(tmp_path, model_folder, length, **settings)
    trainer, tokenizer, windows = run.trainer, make_tokenizer(), []
    opened = trainer._begin_update
    trainer._begin_update = lambda: (u := opened(), windows.append(u.batch))[0]
    trainer.train()
    assert len(run.asked) == len(run.made) == 4
    for (sent, answer), (inputs, rows) in zip(run.asked, run.made, strict=True):
        back, drawn, logps, _ = answer
        assert sent["num_generations"] == 1
        assert back == sent["prompts"]
        assert distance(rows) <= EXACT
        for i, example in enumerate(inputs):
            ids = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
            known = int(rows["prefix_mask"][i].sum())
            assert (known > 0) == (i % 8 == 0)
            demonstration = [*tokenizer(example["demonstration"])["input_ids"], 1]
            assert ids[:known] == demonstration[:known]
            assert known < len(demonstration)
            prompt = tokenizer(example["prompt"])["input_ids"]
            assert sent["prompts"][i] == prompt + ids[:known]
            assert ids == (ids[:known] + list(drawn[i]))[:BUDGET]
            assert len(logps[i]) == len(drawn[i])
            kept = rows["sampling_per_token_logps"][i][: len(ids)]
            assert kept[:known].isnan().all()
            said = [x[0] for x in logps[i]][: len(ids) - known]
            assert kept[known:].tolist() == pytest.approx(said, abs=1e-6)
        if mode == "token_truncate":
            ratio = rows["importance_sampling_ratio"]
            assert (ratio[rows["prefix_mask"]] == 1).all()
            assert (ratio[rows["completion_mask"].bool()] - 1).abs().max() < 1e-4
    for batch in windows:
        assert (batch.weight_BT[batch.prefix_mask_BT] == 1).all()
        assert batch.prefix_mask_BT.any()


def test_weights_that_do_not_arrive_are_caught(
    tmp_path: Path, model_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = colocated(tmp_path, model_folder, max_steps=4, tripwire_steps=2)
    engine = run.trainer.vllm_generation
    engine.sync_weights()
    engine.sync_weights = lambda: None
    with caplog.at_level(logging.WARNING, "prefix_rft"):
        run.trainer.train()
    distances = [distance(rows) for _, rows in run.made]
    assert distances[0] <= EXACT
    assert min(distances[1:]) > 1e-2
    words = [r.message for r in caplog.records if "stale_sampler" in r.message]
    assert len(words) == 1
    assert words[0].startswith("step 3: tripwire stale_sampler: for 2 steps sampler and trainer")
    # The bound for 16 bits would not have seen it.
    mean = "sampling/sampling_logp_difference/mean"
    seen = [line[mean] for line in run.trainer.state.log_history if mean in line]
    assert max(seen) < 0.1


def nothing_right(completions: list[str], **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


METHODS: dict[str, dict[str, Any]] = {
    "prefix_rft": {"method_options": {"num_hybrid": 8}},
    "prefix_rft again": {
        "method": "prefix_rft",
        "method_options": {"all_wrong": "resample", "all_right": "resample"},
    },
    "prefix_rft in parts": {
        "method": "prefix_rft",
        "num_iterations": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
    },
    # What these do with groups that fail: longer prefixes; a step of demonstrations alone.
    "bread": {"reward": even_wrong},
    "relift": {"reward": nothing_right, "method_options": {"sft_prompts": 2}},
    **{
        name: {}
        for name in (
            *("dr_grpo", "dapo", "luffy", "adaback", "srft", "pope", "hpt", "chord", "uft"),
            *("gspo", "cispo"),
        )
    },
}


DONE = ("prefix_rft again", "dapo", "luffy", "bread", "srft", "relift", "hpt", "chord")
"""Those whose rows may be demonstrations, or stay as they are while others are sampled again."""


@pytest.mark.parametrize("name", METHODS)
def test_methods(tmp_path: Path, model_folder: str, name: str) -> None:
    settings = {"method": name.split()[0], **METHODS[name]}
    run = colocated(tmp_path, model_folder, **settings)
    run.trainer.train()
    lacking = [sum(not plan.done for plan in plans) for plans in run.plans]
    assert [len(call["prompts"]) for call, _ in run.asked] == [n for n in lacking if n]
    assert (name in DONE) == any(n < 16 for n in lacking)
    if name == "relift":
        assert lacking == [16, 0, 16]
    assert max(distance(rows) for _, rows in run.made) <= EXACT
    for call, (_, ids, logps, _) in run.asked:
        assert all(len(x) == len(y) for x, y in zip(ids, logps, strict=True))
        assert max(map(len, ids)) <= call["max_tokens"] <= BUDGET


def test_all_rows_behind_prefixes_are_drawn_no_longer_than_they_lack(
    tmp_path: Path, model_folder: str
) -> None:
    run = colocated(tmp_path, model_folder, method_options={"num_hybrid": 8})
    run.trainer.train()
    for call, (inputs, rows) in zip((c for c, _ in run.asked), run.made, strict=True):
        assert len(inputs) == 16
        assert call["max_tokens"] == BUDGET - int(rows["prefix_mask"].sum(1).min()) < BUDGET


def test_an_evaluation_sees_prompts_alone(tmp_path: Path, model_folder: str) -> None:
    run = colocated(tmp_path, model_folder)
    metrics = run.trainer.evaluate()
    prompts = [make_tokenizer()(p)["input_ids"] for p in run.trainer.eval_dataset["prompt"]]
    assert {tuple(p) for call, _ in run.asked for p in call["prompts"]} == set(map(tuple, prompts))
    assert metrics["eval_reward"] > 0

"""What a TRL user expects to work: conversations, streams, paths, any reward function, resume."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.data.demonstrations import IDS
from prefix_rft.engines.trl.imitation_config import DemonstrationConfig
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate
from prefix_rft.support.errors import UserError
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer, shaped_reward

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def conversational_rows(n: int = 16) -> Dataset:
    rows = make_rows(n)
    messages = [[{"role": "user", "content": p.strip()}] for p in rows["prompt"]]
    return rows.remove_columns("prompt").add_column("prompt", messages)


def conversational_reward(completions: Any, answer: Any, **kwargs: Any) -> list[float]:
    assert all(c[0]["role"] == "assistant" for c in completions)
    return shaped_reward([c[0]["content"] for c in completions], answer)


def chat_tokenizer() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def train(tmp_path: Path, reward: Any = shaped_reward, **overrides: Any) -> Any:
    arguments: dict[str, Any] = {
        "train_dataset": overrides.pop("train_dataset", None) or make_rows(),
        "processing_class": overrides.pop("processing_class", None) or make_tokenizer(),
    }
    for key in ("eval_dataset", "callbacks"):
        if key in overrides:
            arguments[key] = overrides.pop(key)
    trainer = PrefixRFTTrainer(
        make_model(arguments["processing_class"]),
        reward,
        make_config(tmp_path, log_rollouts=True, **overrides),
        **arguments,
    )
    trainer.train()
    return trainer


def rollouts(tmp_path: Path) -> list[dict[str, Any]]:
    lines = []
    for path in sorted((tmp_path / "rollouts").glob("step_*.jsonl")):
        lines += [json.loads(x) for x in path.read_text().splitlines()]
    return lines


def test_conversations(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    rows = conversational_rows()
    train(
        tmp_path,
        conversational_reward,
        train_dataset=rows,
        processing_class=tokenizer,
        max_completion_length=40,
    )
    seen = rollouts(tmp_path)
    assert len(seen) == 32
    for line in seen:
        example = rows[line["example"]]
        assert line["prompt"] == f"user:{example['prompt'][0]['content']}\nassistant:"
        assert line["text"].startswith(example["demonstration"][: line["prefix_length"]])
    assert sum(line["prefix_length"] > 0 for line in seen) == 4


def test_conversations_in_imitation_and_evaluation(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    rows = conversational_rows()
    trainer = DemonstrationTrainer(
        make_model(tokenizer),
        sft_config(tmp_path),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    row = trainer.train_dataset[0]
    prompt = tokenizer(f"user:{rows[0]['prompt'][0]['content']}\nassistant:")["input_ids"]
    target = [*tokenizer(rows[0]["demonstration"])["input_ids"], tokenizer.eos_token_id]
    assert row["input_ids"] == prompt + target
    assert row["labels"] == [-100] * len(prompt) + target
    trainer.train()
    result = evaluate(
        trainer.model,
        tokenizer,
        rows.select(range(3)),
        conversational_reward,
        Request(samples=2, max_completion_length=8),
    )
    assert (result.problems, result.samples) == (3, 2)


def test_several_demonstrations_and_several_hybrid_rows(tmp_path: Path) -> None:
    rows = Dataset.from_dict(
        {
            "prompt": ["q:1+1=?\n", "q:2+2=?\n"],
            "demonstration": [["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"], []],
            "answer": ["2", "4"],
        }
    )
    train(
        tmp_path,
        train_dataset=rows,
        max_steps=6,
        method_options={"num_hybrid": 3, "prefix_low": 0.5, "prefix_high": 0.9},
    )
    seen = rollouts(tmp_path)
    hybrid = [x for x in seen if x["prefix_length"]]
    assert {x["example"] for x in hybrid} == {0}
    assert {x["row"] for x in hybrid} == {0, 1, 2}
    assert all(5 <= x["prefix_length"] <= 9 for x in hybrid)
    assert {x["text"][0] for x in hybrid} == {"a", "b", "c"}


def test_a_stream(tmp_path: Path) -> None:
    trainer = train(tmp_path, train_dataset=make_rows(16).to_iterable_dataset())
    assert trainer.demonstrations is None
    assert sum(x["prefix_length"] > 0 for x in rollouts(tmp_path)) == 4


def test_a_model_by_path(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = PrefixRFTTrainer(
        model=str(tmp_path / "model"),
        reward_funcs=shaped_reward,
        args=make_config(tmp_path / "out", max_steps=1),
        train_dataset=make_rows(),
    )
    trainer.train()
    assert trainer.state.global_step == 1


class Scorer:
    """A reward that is an object, not a function."""

    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [len(c) / 100 for c in completions]


async def asynchronous(completions: list[str], **kwargs: Any) -> list[float]:
    return [0.5 * ("#" in c) for c in completions]


def sometimes(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None if i % 3 == 0 else 1.0 * (i % 2) for i in range(len(completions))]


def test_rewards_of_every_kind_with_weights(tmp_path: Path) -> None:
    trainer = train(
        tmp_path,
        [Scorer(), functools.partial(shaped_reward), asynchronous, shaped_reward],
        reward_weights=[1.0, 0.0, 2.0, 3.0],
    )
    history = trainer.state.log_history[0]
    expected = (
        history["rewards/Scorer/mean"]
        + 2 * history["rewards/asynchronous/mean"]
        + 3 * history["rewards/shaped_reward/mean"]
    )
    assert history["reward"] == pytest.approx(expected, abs=2e-3)
    # The rows carry the weighted sum too, and the baseline is theirs.
    first = [x for x in rollouts(tmp_path) if x["step"] == 0]
    assert sum(x["reward"] for x in first) / len(first) == pytest.approx(expected, abs=2e-3)


def test_ungradable_rows_have_no_advantage_and_leave_the_baseline(tmp_path: Path) -> None:
    train(tmp_path, sometimes, max_steps=1)
    seen = rollouts(tmp_path)
    for i, line in enumerate(seen):
        assert (line["reward"] is None) == (i % 3 == 0)
        if line["reward"] is None:
            assert line["advantage"] == 0
        else:
            mates = [
                x["reward"] for x in seen if x["group"] == line["group"] and x["reward"] is not None
            ]
            expected = line["reward"] - sum(mates) / len(mates)
            assert line["advantage"] == pytest.approx(expected, abs=1e-6)


def test_truncated_rows_are_known_and_can_be_masked(tmp_path: Path) -> None:
    """With everything masked that ran into the limit, only finished rows move the policy."""
    gradients = []
    for truncated in ("keep", "mask"):
        folder = tmp_path / truncated
        trainer = train(
            folder,
            max_steps=1,
            max_completion_length=12,
            method="dr_grpo",
            method_options={"truncated": truncated},
        )
        gradients.append(trainer.state.log_history[0]["grad_norm"])
        eos = trainer.processing_class.eos_token_id
        seen = rollouts(folder)
        for line in seen:
            assert line["truncated"] == (line["completion_ids"][-1] != eos)
            assert line["truncated"] <= (len(line["completion_ids"]) == 12)
        assert 0 < sum(x["truncated"] for x in seen) < len(seen)
    assert 0 < gradients[1] < gradients[0]


def moe_model(tokenizer: Any, coefficient: float) -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
        output_router_logits=True,
        router_aux_loss_coef=coefficient,
    )
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("imitate", [False, True])
def test_a_mixture_of_experts_keeps_its_balancing_loss(tmp_path: Path, imitate: bool) -> None:
    norms = []
    for coefficient in (0.001, 100.0):
        tokenizer = make_tokenizer()
        model = moe_model(tokenizer, coefficient)
        folder = tmp_path / str(coefficient)
        if imitate:
            trainer: Any = DemonstrationTrainer(
                model, sft_config(folder), train_dataset=make_rows(), processing_class=tokenizer
            )
        else:
            trainer = PrefixRFTTrainer(
                model,
                shaped_reward,
                make_config(folder, max_steps=1),
                train_dataset=make_rows(),
                processing_class=tokenizer,
            )
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] > 5 * norms[0]


def sft_config(folder: Path, **overrides: Any) -> DemonstrationConfig:
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        **NO_RECOMPUTE,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return DemonstrationConfig(**{**settings, **overrides})


def test_imitation_like_any_sft_trainer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = DemonstrationTrainer(
        str(tmp_path / "model"),
        sft_config(tmp_path / "out"),
        train_dataset=make_rows(),
        eval_dataset=make_rows(8, seed=2),
    )
    trainer.train()
    # The loss of a random model is near the log of the vocabulary.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(len(tokenizer)), rel=0.1)
    for setting in ({"loss_type": "dft"}, {"max_length": 4}, {"packing": True}):
        with pytest.raises(ValueError, match="has no effect here"):
            sft_config(tmp_path, **setting)
    with pytest.raises(UserError, match="not a stream"):
        DemonstrationTrainer(
            make_model(tokenizer),
            sft_config(tmp_path),
            train_dataset=make_rows().to_iterable_dataset(),
            processing_class=tokenizer,
        )


def test_an_open_constant_is_the_completion_budget_in_both_trainers(tmp_path: Path) -> None:
    options = {"aggregation": "sum_over_const"}
    assert sft_config(tmp_path, method_options=options).resolve_method().normaliser.const == 256
    assert make_config(tmp_path, method_options=options).resolve_method().normaliser.const == 24


def test_too_few_rows_for_a_generation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 rows, but one generation takes 2 prompts"):
        train(tmp_path, train_dataset=make_rows(1))
    assert train(tmp_path, train_dataset=make_rows(2), max_steps=1).state.global_step == 1


def test_a_method_without_demonstrations_takes_rows_without_any(tmp_path: Path) -> None:
    rows = make_rows(2, missing=2)
    trainer = train(tmp_path, train_dataset=rows, method="dr_grpo", max_steps=1)
    assert trainer.state.global_step == 1


def test_a_demonstration_with_its_own_eos_gets_no_second(tmp_path: Path) -> None:
    rows = make_rows(4)
    rows = rows.map(lambda r: {"demonstration": r["demonstration"] + "<eos>"})
    ids = [d[0] for d in train(tmp_path, train_dataset=rows).train_dataset[IDS]]
    assert all(i[-1] == 1 and i.count(1) == 1 for i in ids)


def test_evaluation_during_training(tmp_path: Path) -> None:
    trainer = train(
        tmp_path,
        eval_dataset=make_rows(2, seed=4),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
    )
    assert sum("eval_reward" in h for h in trainer.state.log_history) == 2
    assert len(rollouts(tmp_path)) == 32  # of training alone


@pytest.mark.slow
def test_resuming_at_a_boundary_is_exact(tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path / "whole", **settings)
    first = train(tmp_path / "parts", **settings)
    checkpoint = tmp_path / "parts/checkpoint-2"
    assert (checkpoint / "model.safetensors").exists()
    again = PrefixRFTTrainer(
        make_model(make_tokenizer()),
        shaped_reward,
        make_config(tmp_path / "parts", **settings),
        train_dataset=make_rows(),
        processing_class=make_tokenizer(),
    )
    again.train(resume_from_checkpoint=str(checkpoint))
    for a, b, c in zip(*(t.model.parameters() for t in (whole, first, again)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss_type": "grpo"}, "loss_type='grpo' has no effect here"),
        ({"top_entropy_quantile": 0.5}, "entropy_keep"),
        ({"mask_truncated_completions": True}, "truncated: mask"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "must be a multiple of gradient_accumulation_steps",
        ),
        ({"beta": 0.1, "method_options": {"beta": 0.2}}, "beta is 0.1 in the config and 0.2"),
        ({"method": "prefix_rtf"}, "did you mean 'prefix_rft'"),
        ({"method_options": {"num_hybrid": 9}}, "wants 9 hybrid"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(
    tmp_path: Path, settings: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_config(tmp_path, **settings)


def test_shared_options_meet(tmp_path: Path) -> None:
    config = make_config(tmp_path, epsilon=0.1, epsilon_high=0.3, beta=0.05)
    method = config.resolve_method()
    assert (method.clip.low, method.clip.high, config.beta) == (0.1, 0.3, 0.05)
    assert method.needs_reference
    assert method.normaliser.const == 24
    config = make_config(tmp_path, method_options='{"beta": 0.2, "entropy_keep": 0.5}')
    assert config.beta == 0.2
    assert config.resolve_method().selection.fraction == 0.5


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    arguments = {"train_dataset": make_rows(), "processing_class": tokenizer}
    with pytest.raises(ValueError, match="never samples"):
        PrefixRFTTrainer(
            make_model(tokenizer), shaped_reward, make_config(tmp_path, method="sft"), **arguments
        )
    with pytest.raises(ValueError, match="needs args"):
        PrefixRFTTrainer(make_model(tokenizer), shaped_reward, **arguments)
    with pytest.raises(ValueError, match="rollout_func is not supported"):
        PrefixRFTTrainer(
            make_model(tokenizer),
            shaped_reward,
            make_config(tmp_path),
            rollout_func=lambda prompts, trainer: {},
            **arguments,
        )
    with pytest.raises(UserError, match="needs demonstrations"):
        PrefixRFTTrainer(
            make_model(tokenizer),
            shaped_reward,
            make_config(tmp_path, demonstration_column="solution"),
            **arguments,
        )

"""Sampler backends: each row from its own context, prefix ratio exactly 1, exact token ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import put_in_place
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.sampling import sample_scored
from tiny import make_config, make_model, make_rows, make_tokenizer, shaped_reward


def vllm_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, **overrides: Any
) -> Any:
    put_in_place(monkeypatch)
    tokenizer = make_tokenizer()
    rows = overrides.pop("train_dataset", None) or make_rows()
    settings = {"max_steps": 2, "use_vllm": True, "vllm_mode": mode}
    return PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path, **settings | overrides),
        train_dataset=rows,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("place", ["colocate", "server"])
@pytest.mark.parametrize("mode", ["sequence_mask", "token_truncate"])
def test_vllm_rows_keep_their_context_and_their_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: str
) -> None:
    settings = {"vllm_importance_sampling_mode": mode}
    trainer = vllm_trainer(tmp_path, monkeypatch, place, **settings)
    seen: list[dict[str, Any]] = []
    windows: list[Any] = []
    original, opened = trainer._generate_and_score_completions, trainer._begin_update
    trainer._generate_and_score_completions = lambda x: seen.append(original(x)) or seen[-1]
    trainer._begin_update = lambda: (u := opened(), windows.append(u.batch))[0]
    trainer.train()

    engine = trainer.vllm_generation
    rows = seen[-1]
    for i, (context, ids) in enumerate(zip(engine.contexts[-1], engine.sampled[-1], strict=True)):
        prompt = rows["prompt_ids"][i][rows["prompt_mask"][i].bool()].tolist()
        completion = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
        length = int(rows["prefix_mask"][i].sum())
        assert context == prompt + completion[:length]
        assert completion == (completion[:length] + ids)[:24]
    hybrid = rows["prefix_mask"].any(1)
    assert hybrid.tolist() == [i % 8 == 0 for i in range(16)]
    # Unknown sampler log-probs are NaN, not 0; a 0 would make the row's ratio vanish.
    assert rows["sampling_per_token_logps"][rows["prefix_mask"]].isnan().all()
    ratio = rows["importance_sampling_ratio"]
    assert (ratio[hybrid] > 0.5).all()
    assert not torch.equal(ratio[~hybrid], torch.ones_like(ratio[~hybrid]))
    batch = windows[-1]
    assert (batch.weight_BT[batch.prefix_mask_BT] == 1).all()
    assert (batch.weight_BT[batch.response_mask_BT] > 0).all()


def test_every_process_asks_a_server_for_single_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that holds no hybrid row: a server takes the number from one process for all."""
    rows = make_rows(8, missing=8 - 1)
    trainer = vllm_trainer(tmp_path, monkeypatch, "server", train_dataset=rows)
    trainer.train()
    assert trainer.vllm_generation.asked == [(1, 24), (1, 24)]


class MergingTokenizer:
    """A byte-pair tokenizer whose decode-encode does not give the ids back."""

    @staticmethod
    def make() -> PreTrainedTokenizerFast:
        pieces = ["<pad>", "<eos>", *"0123456789+-*=;#q:? \n.", "1+", "=1", "+1", ";1", "1;"]
        vocab = {p: i for i, p in enumerate(pieces)}
        merges = [("1", "+"), ("=", "1"), ("+", "1"), (";", "1"), ("1", ";")]
        tokenizer = Tokenizer(models.BPE(vocab, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("|", "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )


def test_trained_ids_are_prompt_demonstration_and_sampled_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = MergingTokenizer.make()
    data = make_rows(64)
    calls: list[tuple[list[list[int]], list[list[int]]]] = []

    def spy(model: Any, prompts: Any, budgets: Any, settings: Any, prefixes: Any, **kw: Any) -> Any:
        drawn = sample_scored(model, prompts, budgets, settings, prefixes, **kw)
        calls.append(([[*p, *x] for p, x in zip(prompts, prefixes, strict=True)], drawn.ids))
        return drawn

    monkeypatch.setattr("prefix_rft.engines.trl.rollout.sampler.sample_scored", spy)
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path, max_steps=4, max_completion_length=40),
        train_dataset=data,
        processing_class=tokenizer,
    )
    lost = 0
    original = trainer._generate_and_score_completions

    def check(inputs: Any) -> Any:
        nonlocal lost
        rows = original(inputs)
        contexts, sampled = calls[-1]
        for i, example in enumerate(inputs):
            prompt = tokenizer(example["prompt"])["input_ids"]
            demonstration = tokenizer(example["demonstration"])["input_ids"] + [1]
            length = int(rows["prefix_mask"][i].sum())
            completion = rows["completion_ids"][i][rows["completion_mask"][i].bool()].tolist()
            assert contexts[i] == prompt + demonstration[:length]
            assert completion == demonstration[:length] + sampled[i]
            assert (length > 0) == (i % 8 == 0)
            assert length < len(demonstration)
            if length:
                text = tokenizer.decode(completion, skip_special_tokens=True)
                lost += tokenizer(text)["input_ids"] != [t for t in completion if t > 1]
        return rows

    trainer._generate_and_score_completions = check
    trainer.train()
    assert len(calls) == 4
    assert lost > 0  # the text round trip really would have changed tokens


def test_rows_without_demonstration_are_plain(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path, max_steps=1, per_device_train_batch_size=64),
        train_dataset=make_rows(8, missing=5),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.log_history[0]["prefix/row_share"] == pytest.approx(3 / 64, abs=1e-4)


def test_evaluation_never_sees_a_demonstration(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path, max_steps=1, per_device_eval_batch_size=16),
        train_dataset=make_rows(),
        eval_dataset=make_rows(2, seed=5),
        processing_class=tokenizer,
    )
    contexts: list[list[int]] = []
    original = trainer._sample
    trainer._sample = lambda p, x: (
        contexts.extend([*a, *b.known] for a, b in zip(p, x, strict=True)),
        original(p, x),
    )[1]
    metrics = trainer.evaluate()
    prompts = [tokenizer(p)["input_ids"] for p in make_rows(2, seed=5)["prompt"]]
    assert contexts
    assert all(c in prompts for c in contexts)
    assert "eval_reward" in metrics


def test_an_attempt_that_fails_leaves_no_plan_behind(tmp_path: Path) -> None:
    """An evaluation after it would start from demonstrations."""
    tokenizer = make_tokenizer()
    trainer = PrefixRFTTrainer(
        make_model(tokenizer),
        shaped_reward,
        make_config(tmp_path, max_steps=1, per_device_train_batch_size=16),
        train_dataset=make_rows(),
        processing_class=tokenizer,
    )

    def fails(*args: Any, **kwargs: Any) -> Any:
        assert trainer._attempt.plans
        raise RuntimeError("the grader is gone")

    trainer._calculate_rewards = fails  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match="the grader is gone"):
        trainer.train()
    assert trainer._attempt is None

"""Models whose positions end: rows that are too long are refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from transformers import AutoConfig, AutoModelForCausalLM

from prefix_rft import PrefixRFTTrainer
from prefix_rft.cli import main
from prefix_rft.engines.positions import position_limit, refuse_too_long
from prefix_rft.engines.trl import DemonstrationConfig, DemonstrationTrainer
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import evaluate
from prefix_rft.support.errors import UserError
from tiny import NO_RECOMPUTE, make_config, make_rows, make_tokenizer, shaped_reward

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "rotary_dim": 4,
    "attention_types": [[["global"], 1]],
    "num_layers": 1,
    "d_model": 32,
    "attention_heads": 4,
    "n_positions": 40,
    "max_position_embeddings": 40,
    "max_seq_len": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
ENDS = (
    *("gpt2", "opt", "gpt_neo", "gptj", "codegen", "gpt_bigcode", "biogpt", "ctrl"),
    *("openai-gpt", "mpt"),
)
GOES_ON = ("gpt_neox", "bloom", "falcon", "xglm", "llama")


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    accepted = {k: v for k, v in SMALL.items() if kind != "mpt" or k not in ("n_positions",)}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **accepted)).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    return model


@pytest.mark.parametrize("kind", [*ENDS, *GOES_ON])
def test_the_limit_is_where_the_model_fails(kind: str) -> None:
    model, ids = model_of(kind), torch.full((1, 41), 3)
    with torch.no_grad():
        model(input_ids=ids[:, :40])
        if kind in ENDS:
            assert position_limit(model) == 40
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids)
        else:
            assert position_limit(model) is None
            model(input_ids=ids)


def test_words() -> None:
    model = model_of("gpt2")
    refuse_too_long(model, [10, 20], 20)
    refuse_too_long(model_of("llama"), [10**6], 10**6)
    with pytest.raises(UserError, match=r"has 40 positions and no more, but the longest row has "
                       r"21 tokens and max_completion_length=20 behind it: lower"):  # fmt: skip
        refuse_too_long(model, [10, 21], 20)
    with pytest.raises(UserError, match="the longest row has 41 tokens: lower"):
        refuse_too_long(model, [41])


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj"])
def test_trainers_and_evaluation_refuse_before_they_begin(kind: str, tmp_path: Path) -> None:
    model, tokenizer, rows = model_of(kind), make_tokenizer(), make_rows(4)
    longest = max(len(p) for p in rows["prompt"])
    settings = {"max_completion_length": 40 - longest}
    config = make_config(tmp_path, **settings)
    PrefixRFTTrainer(model, shaped_reward, config, rows, processing_class=tokenizer)
    config = make_config(tmp_path, max_completion_length=41 - longest)
    with pytest.raises(UserError, match="has 40 positions"):
        PrefixRFTTrainer(model, shaped_reward, config, rows, processing_class=tokenizer)
    sft = DemonstrationConfig(
        str(tmp_path), report_to="none", use_cpu=True, bf16=False, **NO_RECOMPUTE
    )
    long = rows.map(lambda row: {"demonstration": row["demonstration"] + "1" * 40})
    DemonstrationTrainer(model, sft, None, rows, processing_class=tokenizer)
    with pytest.raises(UserError, match="has 40 positions"):
        DemonstrationTrainer(model, sft, None, long, processing_class=tokenizer)
    with pytest.raises(UserError, match="has 40 positions"):
        DemonstrationTrainer(model, sft, None, rows, long, processing_class=tokenizer)
    with pytest.raises(UserError, match="has 40 positions"):
        evaluate(model, tokenizer, rows, shaped_reward, Request(max_completion_length=35))


def test_a_stream_is_looked_at_as_it_comes(tmp_path: Path) -> None:
    rows = IterableDataset.from_generator(lambda: iter(make_rows(32)))
    config = make_config(tmp_path, max_completion_length=39)
    model = model_of("gpt2")
    trainer = PrefixRFTTrainer(
        model, shaped_reward, config, rows, processing_class=make_tokenizer()
    )
    with pytest.raises(UserError, match="has 40 positions"):
        trainer.train()


@pytest.mark.parametrize("method", ["prefix_rft", "sft"])
def test_the_command_says_one_sentence(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model_of("gpt2").save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    rows = make_rows(4).map(lambda row: {"demonstration": row["demonstration"] + "1" * 20})
    rows.to_json("train.jsonl")
    Path("recipe.yaml").write_text(
        f"model: base\ntrain_data: train.jsonl\nreward: exact\nmethod: {method}\n"
        "prompts_per_step: 2\nmax_completion_length: 60\nmax_steps: 1\n"
    )
    assert main(["train", "recipe.yaml"]) == 2
    error = capfd.readouterr().err
    assert "prefix-rft: error: the model has 40 positions and no more" in error
    assert "Traceback" not in error
    assert not Path("runs").exists()

"""A policy has no dropout: forwards in training mode are those that have sampled."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

from prefix_rft import DemonstrationConfig, DemonstrationTrainer, PrefixRFTTrainer
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.support.errors import UserError
from tiny import NO_RECOMPUTE, make_config, make_model, make_rows, make_tokenizer, shaped_reward

TOKENIZER = make_tokenizer()
IDS: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
HEADS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def with_dropout(kind: str) -> Any:
    """Small random models, each of which drops in a way of its own."""
    torch.manual_seed(0)
    if kind == "gpt2":  # modules
        config: Any = transformers.GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=2)
        assert config.attn_pdrop == config.resid_pdrop == config.embd_pdrop == 0.1
    elif kind == "llama":  # a number that attention reads
        config = transformers.LlamaConfig(
            **IDS, **HEADS, intermediate_size=32, attention_dropout=0.3
        )
    elif kind == "opt":  # functional, and LayerDrop
        config = transformers.OPTConfig(
            **IDS, **HEADS, ffn_dim=32, word_embed_proj_dim=32, dropout=0.2, layerdrop=0.5
        )
    elif kind == "falcon":  # read from the config at each forward
        config = transformers.FalconConfig(
            **IDS, **HEADS, hidden_dropout=0.2, attention_dropout=0.2
        )
    elif kind == "mixtral":  # noise that is no dropout
        config = transformers.MixtralConfig(
            **IDS,
            **HEADS,
            intermediate_size=32,
            num_local_experts=2,
            num_key_value_heads=2,
            router_jitter_noise=0.3,
        )
    else:
        where: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        adapters: dict[str, Any] = {
            "lora": lambda: LoraConfig(**where, r=4, lora_dropout=0.5),
            "lokr": lambda: LoKrConfig(**where, r=4, rank_dropout=0.5),
            "loha": lambda: LoHaConfig(**where, r=4, module_dropout=0.5),
        }
        model: Any = get_peft_model(make_model(TOKENIZER), adapters[kind]())
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, std=0.3)
        return model
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 1
    return model


KINDS = ["gpt2", "llama", "opt", "falcon", "mixtral", "lora", "lokr", "loha"]


def logits(model: Any, times: int) -> torch.Tensor:
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        return torch.stack([model(input_ids=ids, use_cache=False).logits for _ in range(times)])


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_is_evaluation_mode(kind: str) -> None:
    model = with_dropout(kind)
    wanted = logits(model.eval(), 1)[0]
    noisy = logits(model.train(), 8)
    assert any(not torch.equal(x, wanted) for x in noisy)
    [words] = turn_off_dropout(model)
    assert words.startswith("dropout is turned off (")
    model.eval()
    model.train()  # for good: what switches the mode does not switch it on again
    assert all(torch.equal(x, wanted) for x in logits(model, 4))
    assert turn_off_dropout(model) == []


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("gpt2", "Dropout.p, attn_pdrop, embd_pdrop, resid_pdrop, summary_first_dropout"),
        ("llama", "attention_dropout"),
        ("opt", "dropout, layerdrop"),
        ("lora", "Dropout.p"),
    ],
)
def test_a_policy_that_does_not_move_is_never_clipped(
    tmp_path: Any, kind: str, rates: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Later updates of the same rollouts, at learning rate 0: all ratios are exactly 1."""
    config = make_config(
        tmp_path,
        learning_rate=0.0,
        max_steps=4,
        num_iterations=2,
        steps_per_generation=2,
        per_device_train_batch_size=8,
        beta=0.1,
        epsilon=1e-6,
        method="dr_grpo",
    )
    model = with_dropout(kind)
    if kind != "lora":
        model.save_pretrained(tmp_path / "model")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trainer = PrefixRFTTrainer(
        model, shaped_reward, config, make_rows(8), processing_class=TOKENIZER
    )
    trainer.train()
    lines = [x for x in trainer.state.log_history if "loss" in x]
    assert [x["clip_ratio/region_mean"] for x in lines] == [0.0] * 4
    batch = trainer._update.batch
    torch.testing.assert_close(batch.ref_logp_BT, batch.old_logp_BT, rtol=0, atol=1e-6)
    said = [r.message for r in caplog.records if "dropout" in r.message]
    assert said == [
        f"dropout is turned off ({rates}): with it the policy that is trained would not be the one "
        "that samples"
    ]


def test_imitation_keeps_its_dropout_unless_it_compares_with_a_reference(tmp_path: Any) -> None:
    def trained(method: str) -> Any:
        config = DemonstrationConfig(
            str(tmp_path),
            method=method,
            use_cpu=True,
            bf16=False,
            **NO_RECOMPUTE,
            report_to="none",
        )
        return DemonstrationTrainer(
            with_dropout("gpt2"), config, None, make_rows(8), processing_class=TOKENIZER
        ).model

    assert trained("sft").transformer.drop.p == 0.1
    assert trained("iw_sft").transformer.drop.p == 0.0


def test_a_model_that_routes_at_random_is_refused() -> None:
    """Its jitter decides the routing in evaluation too: without it, it would be another model."""
    sizes: dict[str, Any] = {
        "intermediate_size": 32,
        "num_local_experts": 2,
        "num_key_value_heads": 2,
    }
    config = transformers.PhimoeConfig(**IDS, **HEADS, **sizes)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    before = logits(model.eval(), 1)
    with pytest.raises(UserError, match="'phimoe' draws its experts at random in training"):
        turn_off_dropout(model)
    assert torch.equal(logits(model, 1), before)


def test_noise_in_the_embeddings_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"neftune_noise_alpha=5\.0 cannot be used"):
        make_config(tmp_path, neftune_noise_alpha=5.0)

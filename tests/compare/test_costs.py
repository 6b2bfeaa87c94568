"""Tokens and floating-point operations by hand."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from prefix_rft.compare.costs import Costs, Parameters, costs_of, parameters_of


def line(step: int, trained: float, **more: float) -> dict[str, float]:
    return {"step": step, "tokens/trained": trained, **{f"tokens/{k}": v for k, v in more.items()}}


def test_operations_by_hand() -> None:
    found = costs_of(
        [line(1, 10, sampled=4, prefilled=3), line(2, 20, forward=5)], Parameters(100, 100), 9.0
    )
    assert (found.sampled, found.prefilled, found.forward, found.trained) == (4, 3, 5, 30)
    assert found.flops == 2 * 100 * (4 + 3 + 5) + 6 * 100 * 30
    assert found.seconds == 9.0
    both = found + Costs(trained=1, flops=600, seconds=1)
    assert (both.trained, both.flops, both.seconds) == (31, 21_000, 10.0)


def test_a_line_is_a_mean_over_its_steps() -> None:
    # Steps 1 to 10 and 11 to 15; the last line of a run has no counts.
    lines = [line(10, 4.0), line(15, 6.0), {"step": 15, "train_runtime": 3.0}]
    assert costs_of(lines, Parameters(1, 1), 0.0).trained == 10 * 4 + 5 * 6


def test_steps_done_twice_count_once() -> None:
    lines = [line(1, 1.0), line(2, 2.0), line(3, 3.0), line(2, 2.0), line(3, 3.5)]
    assert costs_of(lines, Parameters(1, 1), 0.0).trained == 1 + 2 + 3.5


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_that_compute(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    # A layer: q 64, k and v 32 each, o 64, three of 96, two norms of 8; the last norm; the head.
    assert parameters_of(tmp_path).computing == 2 * (64 + 32 + 32 + 64 + 3 * 96 + 16) + 8 + 11 * 8
    everything = sum(p.numel() for p in model.parameters())
    assert parameters_of(tmp_path).computing == everything - (0 if tied else 11 * 8)


def test_an_adapter_has_the_operations_of_its_base_and_gradients_of_its_own_weights() -> None:
    lines = [line(1, 10, sampled=4)]
    assert costs_of(lines, Parameters(100, 5), 0.0).flops == 2 * 100 * 4 + (4 * 100 + 2 * 5) * 10


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_counted_with_its_base(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = parameters_of(tmp_path / "base")
    assert base.computing == base.trained
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj"])
    get_peft_model(model, lora).save_pretrained(tmp_path / "lora")
    # A and B of one projection, from 8 to 8: two times 4 * 8.
    assert parameters_of(tmp_path / "lora") == (base.computing + 64, 64)

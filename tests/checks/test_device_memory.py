"""Numbers worked out by hand, the model's own count, and what autograd really keeps."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from prefix_rft.checks.device_memory import (
    Memory,
    count_parameters,
    estimate,
    has_head_norms,
)
from prefix_rft.checks.update_memory import PackedSize
from prefix_rft.engines.packed.attention import packed
from prefix_rft.engines.packed.layout import pack
from prefix_rft.engines.packed.model import PackedRows, add_packed_forward
from prefix_rft.support.errors import UserError

RUN: dict[str, Any] = {
    "parameters": 7088,
    "micro_batch_size": 2,
    "generation_rows": 4,
    "prompt_length": 3,
    "completion_length": 5,
}


def qwen(**changes: Any) -> Qwen3Config:
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
    return Qwen3Config(**{**sizes, **changes})


def llama(**changes: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 40000,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**sizes, **changes})


def test_qwen3_in_float32_by_hand() -> None:
    # 8 tokens a row, 2 rows: 16 tokens, 2 x 5 = 10 of them scored. Queries are 4 x 8 = 32 wide,
    # keys 2 x 8 = 16. Bytes per token and layer:
    #   norms         16 x (2 x (4 + 4) + 2 x 4) = 384
    #   query, key    (32 + 16) x (4 + 4)        = 384
    #   attention     4 x (4 x 32 + 8) + 4 x 4   = 560
    #   MLP           4 x 4 x 24                 = 384    together 1712
    # 2 layers x 16 x 1712 = 54784; last norm 16 x 16 x 8 = 2048; scored states 10 x 16 x 4 = 640.
    # Logits: tile 10 x 32768 x 4 = 1310720, gradients (10 + 100) x 16 x 4 = 7040.
    # Cache: 2 x 2 layers x 16 x 4 bytes x 4 rows x 8 tokens; its logits
    # (4 + 4 + 4 + 8) bytes x 4 rows x 100.
    memory = estimate(qwen(), **RUN)
    assert memory.parts == {
        "weights": 4 * 7088,
        "gradients": 4 * 7088,
        "optimizer": 8 * 7088,
        "activations": 57472,
        "logits": 1317760,
        "sampling cache": 8192,
        "sampling logits": 8000,
    }
    assert memory.training == 16 * 7088 + 57472 + 1317760
    assert memory.sampling == 12 * 7088 + 8192 + 8000
    assert memory.peak == memory.training


def test_llama_in_mixed_precision_by_hand() -> None:
    # One row of 10 tokens, 6 scored. Heads are 8 / 2 = 4 wide; all 2 have keys of their own.
    #   norms         8 x (2 x (4 + 4) + 5 x 2)  = 208
    #   query, key    (8 + 8) x (4 + 2)          = 96
    #   attention     2 x (4 x 8 + 10) + 4 x 2   = 92
    #   MLP           2 x 4 x 16                 = 128    together 524
    # 3 x 10 x 524 = 15720; last norm 10 x 8 x 8 = 640; scored states 6 x 8 x 4 = 192.
    # Logits: tile 6 x 32768 x 2 = 393216, its weights in bf16 32768 x 8 x 2 = 524288,
    # gradients (6 + 40000) x 8 x 4 = 1280192. Cache: 3 x 8 x 5 rows x 10 tokens x (2 + 2).
    memory = estimate(
        llama(),
        parameters=1000,
        micro_batch_size=1,
        generation_rows=5,
        prompt_length=4,
        completion_length=6,
        compute_bytes=2,
        reference_model=True,
    )
    assert memory.parts == {
        "weights": 4000,
        "gradients": 4000,
        "optimizer": 8000,
        "reference model": 4000,
        "cast weights": 2000,
        "activations": 16552,
        "logits": 2197696,
        "sampling cache": 4800,
        "sampling logits": (2 + 4 + 4 + 8) * 5 * 40000,
    }
    assert memory.sampling == 4000 + 8000 + 4000 + 2000 + 4800 + 3600000
    assert memory.peak == memory.sampling


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    # Inputs 2 x 16 x 16 x 4 = 2048, one layer 16 x 1712 = 27392, end 2688 as above.
    parts = estimate(qwen(), **RUN, activation_checkpointing=True).parts
    assert parts["activations"] == 2048 + 27392 + 2688


def test_without_triton_by_hand() -> None:
    # 2 x (8 - 1) = 14 positions are scored: tile 14 x 32768 x 4, folded with 14 x 100 x 29 bytes.
    parts = estimate(qwen(), **RUN, triton=False).parts
    assert parts["logits"] == 1835008 + 40600 + (14 + 100) * 16 * 4
    assert parts["activations"] == 54784 + 2048 + 14 * 16 * 4


def test_packed_rows_by_hand() -> None:
    # 2 rows share 3 tokens: 3 + 2 x 5 = 13 tokens. Bytes per token and layer, in float32:
    #   norms 384, query and key 384, MLP 384 as above; queries and outputs, and outputs once more
    #   (2 + 1) x 4 x 32 = 384, log-sum-exp 4 x 4 = 16    together 1552
    # Keys and values: 2 x 4 x 16 for 3 + 2 x 8 = 19 tokens = 2432; together, in two layers,
    # 2 x (13 x 1552 + 2432) = 45216. Last norm 13 x 16 x 8 = 1664, scored states 10 x 16 x 4 = 640,
    # mask 2 x 5 x 8 x 4 = 320.
    # Logits: 10 x 100 of them beside the gradients, 4 x 100 x 16 of the head and 10 x 16 x 4.
    parts = estimate(qwen(), **RUN, triton=False, packed=2).parts
    assert parts["activations"] == 45216 + 1664 + 640 + 320
    assert parts["logits"] == 4 * 100 * 16 + 640 + 4000
    # Without norms of queries and keys 13 x 384 less in each layer.
    plain = estimate(qwen(), **RUN, triton=False, packed=2, head_norms=False).parts
    assert parts["activations"] - plain["activations"] == 2 * 13 * 384
    # On a GPU in bf16 the keys of a row behind a shared prompt are repeated for 4 heads in place of
    # 2: norms 16 x (16 + 10) = 416, heads 48 x 6 = 288, MLP 192, attention 3 x 2 x 32 + 16 = 208.
    gpu = estimate(qwen(), **RUN, compute_bytes=2, packed=2).parts
    keys = 2 * 2 * (3 * 16 + 16 * 32)
    assert gpu["activations"] == 2 * (13 * 1104 + keys) + 1664 + 10 * 16 * 2 + 80 * 2


@pytest.mark.parametrize(
    ("rows", "group", "prompts"), [(8, 8, 1), (16, 8, 2), (4, 8, 1), (6, 8, 2), (12, 8, 3)]
)
def test_a_micro_batch_has_as_few_prompts_as_groups(rows: int, group: int, prompts: int) -> None:
    # 6 of 24 rows begin with the end of one group and go on with the next one.
    assert PackedSize.of(rows, group, 10, 5).tokens == 10 * prompts + 5 * rows


def test_rows_that_share_no_prompt() -> None:
    assert PackedSize.of(3, 1, 10, 5) == PackedSize(45, 45, 0, 0)
    assert PackedSize.of(1, 8, 10, 5) == PackedSize(15, 15, 0, 0)


def test_one_micro_batch_has_no_gradients_beside_its_activations() -> None:
    parts = {"weights": 3, "gradients": 5, "activations": 2, "logits": 4}
    assert Memory(parts).training == 14
    assert Memory(parts, accumulates=False).training == 3 + 6
    assert Memory(parts | {"gradients": 9}, accumulates=False).training == 3 + 9


def test_models_that_normalise_queries_and_keys() -> None:
    assert has_head_norms(qwen())
    assert not has_head_norms(llama())


def test_the_tile_is_bounded() -> None:
    # 8192 scored positions and a large vocabulary: the tile stays at 4096 x 32768.
    wide = estimate(
        qwen(vocab_size=100000),
        **{**RUN, "micro_batch_size": 8, "prompt_length": 8, "completion_length": 1024},
    )
    assert wide.parts["logits"] == 4096 * 32768 * 4 + (8192 + 100000) * 16 * 4


def test_an_adapter_has_gradients_and_moments_of_its_own_weights_alone() -> None:
    whole, adapter = (estimate(qwen(), **RUN, trained=n) for n in (None, 100))
    assert adapter.parts == {**whole.parts, "gradients": 4 * 100, "optimizer": 8 * 100}


def test_a_run_that_does_not_sample() -> None:
    memory = estimate(qwen(), **RUN, samples=False)
    assert not {"sampling cache", "sampling logits"} & set(memory.parts)
    assert memory.peak == memory.training


def test_peak_is_the_larger_phase() -> None:
    assert Memory({"weights": 3, "gradients": 5, "sampling cache": 2}).peak == 8
    assert Memory({"weights": 3, "gradients": 5, "sampling cache": 7}).peak == 10


@pytest.mark.parametrize(
    ("tied", "by_hand"),
    # Embedding 1600; layer 512 + 256 + 256 + 512 + 2 x 8 + 3 x 384 + 2 x 16 = 2736; last norm 16.
    [(True, 1600 + 2 * 2736 + 16), (False, 1600 + 2 * 2736 + 16 + 1600)],
)
def test_parameters_by_hand(tied: bool, by_hand: int) -> None:
    assert count_parameters(qwen(tie_word_embeddings=tied)) == by_hand


@pytest.mark.parametrize(
    "config",
    [
        qwen(),
        qwen(tie_word_embeddings=False),
        llama(vocab_size=50),
        llama(tie_word_embeddings=True),
    ],
)
def test_parameters_of_the_real_model(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config)
    # By storage, not by object: tied weights share one.
    sizes = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}
    assert count_parameters(config) == sum(sizes.values())


def test_nothing_is_allocated() -> None:
    # 65536 x 65536 float32 embeddings would be 16 GiB.
    huge = llama(vocab_size=65536, hidden_size=65536, intermediate_size=65536)
    assert count_parameters(huge) > 2 * 65536**2


@contextmanager
def saved(model: Any) -> Iterator[dict[int, int]]:
    """Bytes of the storages that autograd keeps inside, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {s for p in model.parameters() for s in (p.shape, p.shape[::-1])}
    alive: list[torch.Tensor] = []  # or another tensor might get the storage
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # No batch here has the shape of a weight: those are cast weights.
        if storage.data_ptr() not in weights and tensor.shape not in shapes:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield kept


@pytest.mark.parametrize("mixed", [False, True])
def test_activations_are_what_autograd_keeps(mixed: bool) -> None:
    """Saved tensors of a real forward, weights apart, against the estimate."""
    config = qwen(hidden_size=64, intermediate_size=160, head_dim=32, vocab_size=300)
    model = AutoModelForCausalLM.from_config(config).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.randint(3, 300, (2, 50))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    labels = ids.masked_fill(torch.arange(50) < 20, -100)
    with (
        saved(model) as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    parts = estimate(
        config,
        parameters=0,
        micro_batch_size=2,
        generation_rows=1,
        prompt_length=20,
        completion_length=30,
        compute_bytes=2 if mixed else 4,
        triton=False,
    ).parts
    real = sum(kept.values())
    assert parts["activations"] == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("mixed", [False, True])
def test_activations_of_packed_rows_are_what_autograd_keeps(mixed: bool, kind: str) -> None:
    """As above; 6 rows of two groups."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 300}
    config = qwen(head_dim=32, **sizes) if kind == "qwen3" else llama(**sizes)
    model = AutoModelForCausalLM.from_config(config).train()
    assert add_packed_forward(model) is None
    completion_BT = torch.randint(3, 300, (6, 30))
    layout = pack([[5] * 50] * 3 + [[6] * 50] * 3, completion_BT, torch.ones(6, 30).bool())
    with (
        packed(model.config),
        saved(model) as kept,
        torch.autocast("cpu", torch.bfloat16, enabled=mixed),
    ):
        model(packed=PackedRows(layout, 1.0, True))
    parts = estimate(
        config,
        parameters=0,
        micro_batch_size=6,
        generation_rows=1,
        prompt_length=50,
        completion_length=30,
        compute_bytes=2 if mixed else 4,
        triton=False,
        packed=3,
        head_norms=has_head_norms(config),
    ).parts
    real = sum(kept.values())
    assert parts["activations"] == pytest.approx(real, rel=0.04)


SIZES = ("micro_batch_size", "generation_rows", "prompt_length", "completion_length", "parameters")


@pytest.mark.parametrize(
    ("size", "mixed", "checkpointing"), list(itertools.product(SIZES, (2, 4), (False, True)))
)
def test_more_is_never_less(size: str, mixed: int, checkpointing: bool) -> None:
    def phases(factor: int) -> tuple[int, int]:
        memory = estimate(
            qwen(),
            **{**RUN, size: factor * RUN[size]},
            compute_bytes=mixed,
            activation_checkpointing=checkpointing,
        )
        return memory.training, memory.sampling

    (training, sampling), (more_training, more_sampling) = phases(1), phases(3)
    assert (more_training > training) == (size != "generation_rows")
    assert (more_sampling > sampling) == (size != "micro_batch_size")


def test_a_nested_text_config_is_read() -> None:
    class Nested:
        def get_text_config(self) -> Qwen3Config:
            return qwen()

    assert estimate(Nested(), **RUN) == estimate(qwen(), **RUN)


def test_errors_name_the_field() -> None:
    with pytest.raises(UserError, match=r"'gpt2' .* no whole number 'intermediate_size'"):
        estimate(GPT2Config(), **RUN)
    with pytest.raises(UserError, match=r"'mixtral' .* is a mixture of experts"):
        estimate(MixtralConfig(), **RUN)
    recurrent = qwen()
    recurrent.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UserError, match="layers of type 'linear_attention'"):
        estimate(recurrent, **RUN)


def test_a_model_that_transformers_does_not_have() -> None:
    class Unknown(Qwen3Config):
        model_type = "unknown_to_all"

    with pytest.raises(UserError, match="'unknown_to_all' cannot be counted"):
        count_parameters(Unknown())

"""Packed log-probs and gradients of several kinds of models are those of rows alone."""

import re
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from prefix_rft.engines.packed import attention
from prefix_rft.engines.packed.attention import NAME, packed
from prefix_rft.engines.packed.layout import pack
from prefix_rft.engines.packed.model import PackedRows, add_packed_forward

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 61}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 61}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SIZES, **HEADS}),
    "qwen2": ("Qwen2", {**SIZES, **HEADS}),
    "qwen3": ("Qwen3", {**SIZES, **HEADS, "head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "neox": ("GPTNeoX", {**SIZES, "num_attention_heads": 4}),
}
PROMPTS = [[3, 4, 5, 6]] * 3 + [[7, 8]] * 2 + [[9, 10, 11]]


def make(kind: str, **more: Any) -> Any:
    name, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**sizes, **IDS, **more})
    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name + head)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0 if p.ndim > 1 else 1.0)  # so that what a token looks at matters
    return model


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    completions = torch.randint(3, 61, (6, 12), generator=generator)
    wanted = torch.rand(6, 12, generator=generator) < 0.5
    wanted[1, 3:] = False
    wanted[3] = False
    wanted[3, 0] = True
    return completions, wanted


def alone(model: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row by itself, through the model's own logits."""
    logps, entropies = [], []
    for prompt, own, wanted in zip(PROMPTS, *rows(), strict=True):
        ids = torch.cat([torch.tensor(prompt), own])
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)
        logps.append(logp.gather(1, own[:, None])[:, 0][wanted])
        entropies.append(-(logp.exp() * logp).sum(-1)[wanted])
    return torch.cat(logps), torch.cat(entropies)


def score(model: Any, share: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with packed(base.config):
        return model(packed=PackedRows(pack(PROMPTS, *rows(), share), 0.7, True))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_rows_alone(kind: str, share: bool) -> None:
    model = make(kind)
    assert add_packed_forward(model) is None
    weights = torch.randn(2, int(rows()[1].sum()), generator=torch.Generator().manual_seed(2))
    gradients = []
    values = []
    for found in (score(model, share), alone(model, 0.7)):
        values.append(found)
        model.zero_grad()
        sum((w * x).sum() for w, x in zip(weights, found, strict=True)).backward()  # type: ignore[union-attr]
        gradients.append([p.grad.clone() for p in model.parameters()])
    for x, y in zip(*values, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)
    norm = torch.stack([g.norm() for g in gradients[1]]).norm()
    for x, y in zip(*gradients, strict=True):
        assert (x - y).norm() / norm < 1e-6


def test_an_adapter_is_packed_too() -> None:
    model = get_peft_model(make("llama"), LoraConfig(init_lora_weights=False, r=2))
    assert add_packed_forward(model) is None
    for x, y in zip(score(model), alone(model, 0.7), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def test_layers_that_are_computed_again_attend_alike() -> None:
    model = make("llama").train()
    assert add_packed_forward(model) is None
    gradients = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with packed(model.config):
            model(packed=PackedRows(pack(PROMPTS, *rows()), 1.0, False))[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients)


REASONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "window": ("Mistral", {"sliding_window": 4}, "not all its layers attend to everything"),
    "layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "not all its layers attend to everything",
    ),
    "scaled": ("Granite", {"logits_scaling": 2.0}, r"its logits are scaled \(logits_scaling\)"),
}


@pytest.mark.parametrize("case", REASONS)
def test_models_of_another_kind_stay_whole(case: str) -> None:
    name, more, reason = REASONS[case]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **HEADS, **IDS, **more})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    before = model.forward
    found = add_packed_forward(model)
    assert found is not None
    assert re.search(reason, found)
    assert model.forward == before


def test_tokens_of_an_adapters_own_in_front_stay_whole() -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(make("llama"), config)
    assert add_packed_forward(model) == "its adapter puts tokens of its own in front"


def test_a_model_that_attends_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that go on instead of beginning anew, as a model could make them itself."""
    model = make("llama")
    original = model.model.rotary_emb.forward

    def onward(x: Any, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        return original(x, torch.arange(position_ids.size(1))[None], **kwargs)

    monkeypatch.setattr(model.model.rotary_emb, "forward", onward)
    assert add_packed_forward(model) == "its packed rows come out otherwise than whole ones"


def test_outside_its_context_a_model_refuses_packed_rows() -> None:
    model = make("llama")
    assert add_packed_forward(model) is None
    rows_of_it = PackedRows(pack(PROMPTS, *rows()), 1.0, False)
    with pytest.raises(RuntimeError, match="need a model inside packed"):
        model(packed=rows_of_it)
    with packed(model.config):
        assert model.config._attn_implementation == NAME
        with pytest.raises(RuntimeError, match="need their layout in every layer"):
            model(input_ids=torch.tensor([[3, 4]]))
    assert model.config._attn_implementation != NAME
    model(input_ids=torch.tensor([[3, 4]]))


@pytest.mark.parametrize("device", ["cpu", "other"])
def test_keys_are_repeated_where_no_kernel_does_it(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a GPU, taken on a CPU, gives the same."""
    if device == "other":
        monkeypatch.setattr(attention, "FAST_WITH_MASK", ())
    model = make("llama")
    assert add_packed_forward(model) is None
    for x, y in zip(score(model), alone(model, 0.7), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)

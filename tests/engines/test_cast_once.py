"""Weights that autocast casts once in a call, and the cache that keeps what it would cast."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from prefix_rft.engines import cached_model
from prefix_rft.engines.cast_once import cast_once
from prefix_rft.engines.sampling import SamplingSettings, generate, sample, sample_scored
from tiny import make_model, make_tokenizer

PROMPTS = [[5, 6, 7], [9], [5, 6, 7], [8, 8, 8, 8, 8, 4]] * 3
PREFIXES = [[], [10, 11, 12], [13], []] * 3
BUDGETS = [12, 9, 3, 15] * 3
SETTINGS = SamplingSettings((20, 21), 0)
SIZE: dict[str, Any] = {
    "vocab_size": len(make_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}


def model_of(kind: str) -> Any:
    torch.manual_seed(2)
    if kind == "untied":
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZE))
    elif kind == "window":
        model = Mistral(MistralConfig(**SIZE, sliding_window=4))
    else:
        model = make_model(make_tokenizer(), layers=2)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    if kind in ("adapter", "dora"):
        config = LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, use_dora=kind == "dora"
        )
        model = get_peft_model(model, config)
    return model.eval()


KINDS = ["tied", "untied", "window", "adapter", "dora"]


class Casts(TorchDispatchMode):
    """Counts how often a weight is cast."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = {p.data_ptr() for p in model.parameters() if p.dim() == 2}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.weights:
            self.count += 1
        return func(*args, **(kwargs or {}))


def drawn(model: Any) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    found = sample_scored(model, PROMPTS, BUDGETS, SETTINGS, PREFIXES)
    return found.ids, found.logp_BT, found.entropy_BT


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_plain_autocast(
    monkeypatch: pytest.MonkeyPatch, kind: str, frozen: bool
) -> None:
    """Of autocast that keeps no copy, and of transformers' own cache."""
    model = model_of(kind)
    if frozen:
        model.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        ids, *scores = drawn(model)
    monkeypatch.setattr(cached_model, "RoomyLayer", lambda longest: cached_model.DynamicLayer())
    monkeypatch.setattr(cached_model.CachedModel, "keep", keep_plainly)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        wanted, *others = drawn(model)
    assert ids == wanted
    for x, y in zip(scores, others, strict=True):
        assert torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0))
    single = drawn(model)[1]
    assert not torch.equal(single[:, 0], scores[0][:, 0])  # autocast does round


def keep_plainly(self: Any, alive_B: torch.Tensor) -> torch.Tensor:
    """The rows that are left, in the order that holes filled from the end give them."""
    count = int(alive_B.sum())
    kept = torch.arange(count)
    kept[~alive_B[:count]] = torch.arange(len(alive_B))[count:][alive_B[count:]]
    DynamicCache.batch_select_indices(self.cache, kept)
    return kept


@pytest.mark.parametrize("draw", ["sample", "generate"])
def test_each_weight_is_cast_once(draw: str) -> None:
    model = model_of("untied").requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), Casts(model) as casts:
        if draw == "sample":
            sample(model, PROMPTS, BUDGETS, SETTINGS)
        else:
            generate(model, PROMPTS, 8, SETTINGS)
    assert casts.count == 2 * 7 + 1  # seven products in each layer, and the head


def test_the_model_comes_back_as_it_was() -> None:
    model = model_of("adapter")
    marks = [p.requires_grad for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    assert len(set(marks)) == 2

    def check() -> None:
        assert [p.requires_grad for p in model.parameters()] == marks
        assert all(map(torch.equal, model.parameters(), weights))

    with torch.autocast("cpu", torch.bfloat16):
        with cast_once(model):
            assert all(p.requires_grad for p in model.parameters())
        check()
        with pytest.raises(KeyError), cast_once(model):
            raise KeyError
        check()
    with cast_once(model):  # nothing is cast here
        check()


def test_copies_are_thrown_away_after_the_call() -> None:
    """Whatever goes on in the same autocast makes its own."""
    model = model_of("untied")
    with torch.autocast("cpu", torch.bfloat16):
        sample(model, PROMPTS, BUDGETS, SETTINGS)
        with Casts(model) as casts:
            model(torch.tensor([[5, 6]])).logits.sum().backward()
    assert casts.count == 2 * 7 + 1
    assert all(p.grad is not None for p in model.parameters())


def test_new_weights_are_cast_anew() -> None:
    """Within one autocast, as an evaluation of two models' weights would be."""
    model = model_of("tied").requires_grad_(False)
    greedy = SamplingSettings((1,), 0, temperature=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        first = sample(model, PROMPTS, BUDGETS, greedy)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.roll(1, 0))
        second = sample(model, PROMPTS, BUDGETS, greedy)
    with torch.autocast("cpu", torch.bfloat16):
        assert sample(model, PROMPTS, BUDGETS, greedy) == second != first

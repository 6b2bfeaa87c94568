"""Log-probs and entropies that the sampler tells, against whole forwards and by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from prefix_rft.engines.sampling import SamplingSettings, sample, sample_scored
from tiny import make_model, make_tokenizer

PROMPTS = [[5, 6, 7], [9], [5, 6, 7], [8, 8, 8, 8, 8, 4], [9]]
PREFIXES = [[], [10, 11, 12], [13], [], [14, 15, 16, 17, 18]]
BUDGETS = [12, 9, 3, 5, 7]


def models() -> list[Any]:
    vocab = len(make_tokenizer())
    torch.manual_seed(1)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    )
    plain, base = (make_model(make_tokenizer(), layers=2) for _ in range(2))
    adapter = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    with torch.no_grad():
        for model in (plain, gpt2, adapter):
            for p in model.parameters():
                p.mul_(2.0)  # far from uniform
    return [plain.eval(), gpt2.eval(), adapter.eval()]


@pytest.mark.parametrize("model", models(), ids=["qwen3", "gpt2", "adapter"])
@pytest.mark.parametrize("more", [{}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 4}])
def test_scores_are_those_of_whole_forwards(model: Any, more: dict[str, Any]) -> None:
    """Each row alone, of prefix and sampled tokens, over all of the vocabulary."""
    settings = SamplingSettings((20, 21), 0, **more)
    torch.manual_seed(3)
    found = sample_scored(model, PROMPTS, BUDGETS, settings, PREFIXES)
    torch.manual_seed(3)
    assert sample(model, PROMPTS, BUDGETS, settings, PREFIXES) == found.ids
    assert found.logp_BT.dtype == found.entropy_BT.dtype == torch.float32
    longest = max(len(p) + len(ids) for p, ids in zip(PREFIXES, found.ids, strict=True))
    assert found.logp_BT.shape == found.entropy_BT.shape == (len(PROMPTS), longest)
    for i, (prompt, prefix, ids) in enumerate(zip(PROMPTS, PREFIXES, found.ids, strict=True)):
        completion = [*prefix, *ids]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logp = (logits.double() / settings.temperature).log_softmax(-1)
        wanted = logp.gather(1, torch.tensor(completion)[:, None])[:, 0]
        n = len(completion)
        assert (found.logp_BT[i, :n] - wanted).abs().max() < 1e-5
        assert (found.entropy_BT[i, :n] + (logp.exp() * logp).sum(-1)).abs().max() < 1e-5
        assert found.logp_BT[i, n:].isnan().all()
        assert found.entropy_BT[i, n:].isnan().all()
    assert len({len(ids) for ids in found.ids}) > 2  # rows have left at different places


class Fixed(torch.nn.Module):
    """A model whose logits are the same everywhere."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(probabilities).log())
        self.config = LlamaConfig(
            vocab_size=len(probabilities), hidden_size=2, num_hidden_layers=1, num_attention_heads=1
        )

    def forward(
        self, input_ids: Any, attention_mask: Any, past_key_values: Any, use_cache: bool
    ) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


@pytest.mark.parametrize("top_k", [0, 1])
def test_by_hand(top_k: int) -> None:
    """Of 1/2, 1/4, 1/4 and 0; the square roots of these at temperature 2."""
    model: Any = Fixed([0.5, 0.25, 0.25, 0.0])
    for temperature, p in ((1.0, [0.5, 0.25]), (2.0, [math.sqrt(2) - 1, 1 - 1 / math.sqrt(2)])):
        settings = SamplingSettings((3,), 0, temperature, top_k=top_k)
        found = sample_scored(model, [[0], [0, 1]], [1, 2], settings, [[1, 2], [0]])
        entropy = -p[0] * math.log(p[0]) - 2 * p[1] * math.log(p[1])
        for row, tokens in enumerate(([1, 2, *found.ids[0]], [0, *found.ids[1]])):
            wanted = [math.log(p[0] if t == 0 else p[1]) for t in tokens]
            assert found.logp_BT[row].tolist() == pytest.approx(wanted, abs=1e-6)
        assert found.entropy_BT.tolist() == [pytest.approx([entropy] * 3, abs=1e-6)] * 2
        if top_k:  # what is drawn is cut off, what is told is not
            assert found.ids == [[0], [0, 0]]


def test_the_likeliest_token_has_no_scores() -> None:
    settings = SamplingSettings((1,), 0, temperature=0.0)
    with pytest.raises(ValueError, match="a temperature above 0"):
        sample_scored(make_model(make_tokenizer()), [[5]], [1], settings)


def test_scores_at_their_places_among_more_rows() -> None:
    model: Any = Fixed([0.5, 0.5])
    found = sample_scored(model, [[0], [0]], [1, 2], SamplingSettings((9,), 0))
    placed = found.placed([3, 1], 4)
    assert placed.shape == (2, 4, 2)
    half = math.log(0.5)
    for scores, value in zip(placed.tolist(), (half, -half), strict=True):
        assert scores[3][0] == pytest.approx(value)
        assert scores[1] == pytest.approx([value, value])
        assert all(x != x for x in (scores[3][1], *scores[0], *scores[2]))

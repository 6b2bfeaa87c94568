"""The sampler against transformers' own generate, and against exact probabilities."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from prefix_rft.engines.sampling import SamplingSettings, sample, uniforms_of
from tiny import make_model, make_tokenizer

PROMPTS = [[5, 6, 7], [9], [5, 6, 7], [8, 8, 8, 8, 8, 4], [9]]
PREFIXES = [[], [10, 11, 12], [13], [], [14, 15, 16, 17, 18]]


def models() -> list:
    vocab = len(make_tokenizer())
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
    )
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    )
    return [make_model(make_tokenizer(), layers=2), llama, gpt2]


@pytest.mark.parametrize("model", models(), ids=lambda m: type(m).__name__)
def test_greedy_equals_generate(model: torch.nn.Module) -> None:
    model.eval()
    eos = 20
    settings = SamplingSettings((eos,), 0, temperature=0.0)
    budgets = [12, 9, 12, 5, 7]
    ours = sample(model, PROMPTS, budgets, settings, PREFIXES)
    for prompt, prefix, budget, ids in zip(PROMPTS, PREFIXES, budgets, ours, strict=True):
        context = torch.tensor([prompt + prefix])
        expected = model.generate(
            context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=budget,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )[0, context.size(1) :].tolist()
        assert ids == expected


def test_a_row_stops_at_eos_and_only_where_it_sampled_it() -> None:
    model = make_model(make_tokenizer(), layers=2).eval()
    settings = SamplingSettings(tuple(range(3, 20)), 0)
    # The prefix holds EOS ids; they are given, not sampled, and end nothing.
    rows = sample(model, [[5]] * 64, [30] * 64, settings, [[4, 4, 4]] * 64)
    assert all(ids for ids in rows)
    assert all(t not in range(3, 20) for ids in rows for t in ids[:-1])
    assert all(ids[-1] in range(3, 20) or len(ids) == 30 for ids in rows)


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({"temperature": 0.7}, 53),
        ({"temperature": 1.0, "top_k": 5}, 5),
        ({"temperature": 1.3, "top_p": 0.5}, None),
        ({"temperature": 1.0, "min_p": 0.5}, None),
    ],
)
def test_the_law_of_a_token(settings: dict, support: int | None) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, hidden=64, layers=2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)  # far from uniform
        logits = model(input_ids=torch.tensor([[5, 6, 7, 10]])).logits[0, -1].double()
    p = (logits / settings["temperature"]).softmax(-1)
    if "top_k" in settings:
        p = p.where(p >= p.topk(5).values[-1], 0.0)
    if "top_p" in settings:
        values, order = p.sort(descending=True)
        before = values.cumsum(0) - values
        p = torch.zeros_like(p).scatter(0, order[before < 0.5], values[before < 0.5])
    if "min_p" in settings:
        p = p.where(p >= 0.5 * p.max(), 0.0)
    p = p / p.sum()
    n = 20_000
    torch.manual_seed(0)
    rows = sample(
        model, [[5, 6, 7]] * n, [1] * n, SamplingSettings((1,), 0, **settings), [[10]] * n
    )
    counts = torch.bincount(torch.tensor([ids[0] for ids in rows]), minlength=len(p)).double()
    assert (counts[p == 0] == 0).all()
    likely = p * n > 5
    chi2 = ((counts - p * n) ** 2 / (p * n))[likely].sum()
    degrees = int(likely.sum()) - 1
    assert chi2 < degrees + 5 * (2 * degrees) ** 0.5 + 5
    if support is not None:
        assert int((p > 0).sum()) == min(support, len(p))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_given_uniforms_invert_the_distribution_function(temperature: float) -> None:
    """A token is the first whose cumulative probability lies above the row's number."""
    model = make_model(make_tokenizer(), hidden=64, layers=2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    uniforms = torch.tensor([[0.0, 0.2], [0.49, 0.5], [0.9, 0.1], [0.999, 0.75]])
    prompts = [[5, 6, 7], [9], [8, 8], [5, 6]]
    settings = SamplingSettings((1,), 0, temperature)
    # A row that is done leaves the batch; the others keep their numbers.
    rows = sample(model, prompts, [1, 2, 1, 2], settings, uniforms=uniforms)
    for prompt, ids, numbers in zip(prompts, rows, uniforms.tolist(), strict=True):
        context = list(prompt)
        for token, number in zip(ids, numbers, strict=False):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context])).logits[0, -1].double()
            total, want = 0.0, None
            for candidate, p in enumerate((logits / temperature).softmax(-1).tolist()):
                total += p
                if want is None and total > number:
                    want = candidate
            assert token == want
            context.append(token)


def test_zero_does_not_draw_what_is_impossible() -> None:
    model = make_model(make_tokenizer(), hidden=64, layers=2).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    best = int(logits.argmax())
    assert best != 0
    settings = SamplingSettings((1,), 0, top_k=1)
    assert sample(model, [[5, 6, 7]], [1], settings, uniforms=torch.zeros(1, 1)) == [[best]]


def test_the_likeliest_token_needs_no_number() -> None:
    model = make_model(make_tokenizer(), hidden=64, layers=2).eval()
    greedy = SamplingSettings((1,), 0, temperature=0.0)
    wanted = sample(model, [[5, 6], [7]], [4, 4], greedy)
    assert sample(model, [[5, 6], [7]], [4, 4], greedy, uniforms=torch.full((2, 4), 0.9)) == wanted


def test_draws_are_a_function_of_the_random_state() -> None:
    model = make_model(make_tokenizer()).eval()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(sample(model, [[5, 6]] * 4, [8] * 4, SamplingSettings((1,), 0)))
    assert found[0] == found[1] != found[2]


def test_uniforms_are_functions_of_their_keys() -> None:
    found = uniforms_of(["0:1:2", "0:1:3", "0:1:2"], 4)
    assert found.shape == (3, 4)
    assert found[0].equal(found[2])
    assert not found[0].equal(found[1])
    assert uniforms_of(["0:1:2"], 2).equal(found[:1, :2])  # a longer budget keeps the start
    assert found[0].tolist() == pytest.approx(PINNED, abs=1e-7)
    many = uniforms_of([str(i) for i in range(4000)], 1)[:, 0].sort().values
    even = (torch.arange(4000) + 0.5) / 4000
    assert (many - even).abs().max() < 1.63 / 4000**0.5  # Kolmogorov and Smirnov, 1 %


PINNED = [0.4903430938720703, 0.6212794780731201, 0.023886501789093018, 0.34328752756118774]
"""The same samples on any machine rest on these."""

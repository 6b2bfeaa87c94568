"""The likelihood of demonstrations, against a sum over tokens one by one."""

import math

import pytest
import torch

from prefix_rft.evaluation.likelihood import likelihood
from tiny import make_model, make_tokenizer


def test_token_by_token() -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = [
        {"prompt": "3 5 -> 8 :", "demonstration": ["3 + 5", "5 + 3"]},
        {"prompt": "2 2 -> 4 :", "demonstration": ["2 * 2"]},
    ]
    expected, tokens = [], 0
    for row in rows:
        for text in row["demonstration"]:
            ids = tokenizer(row["prompt"])["input_ids"]
            total = 0.0
            for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]:
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0, -1].double()
                total += float(logits[token] - logits.logsumexp(0))
                ids, tokens = [*ids, token], tokens + 1
            expected.append(total)
    model.train()
    found = likelihood(model, tokenizer, rows)
    assert found is not None
    assert model.training
    assert (found.demonstrations, found.tokens) == (3, tokens)
    assert found.per_token == pytest.approx(sum(expected) / tokens, rel=1e-5)
    assert found.whole == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(-sum(expected) / tokens), rel=1e-5)


def test_none_where_there_is_none() -> None:
    tokenizer = make_tokenizer()
    assert likelihood(make_model(tokenizer), tokenizer, []) is None

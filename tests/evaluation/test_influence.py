"""Influence against one step of gradient ascent, finite differences, and by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefix_rft.cli import main
from prefix_rft.data import DataError, Renderer
from prefix_rft.engines.pictures import inputs_of
from prefix_rft.evaluation.influence import Influence, influence, pairs_of
from prefix_rft.evaluation.likelihood import log_likelihoods
from tiny import make_model, make_rows, make_tokenizer
from tiny_vision import make_llava, picture_rows


def rows_and_pairs(processing: Any, rows: Any) -> tuple[Renderer, list[Any]]:
    render = Renderer(processing)
    listed = [{**row, "demonstration": [row["demonstration"]]} for row in rows]
    return render, pairs_of(listed, render, "the test")


# Norms are computed in float32, so that a step must not be too small; nor too large for a model of
# large gradients.
@pytest.mark.parametrize(("kind", "rate"), [("text", 1e-4), ("pictures", 1e-6)])
def test_it_is_what_a_step_does(tmp_path: Path, kind: str, rate: float) -> None:
    if kind == "text":
        tokenizer = make_tokenizer()
        model, processing, rows = make_model(tokenizer), tokenizer, make_rows(5)
    else:
        (model, processing), rows = make_llava(), picture_rows(tmp_path, [1, 0, 2, 1, 1])
    model = model.double()
    render, pairs = rows_and_pairs(processing, rows)
    probe, train = pairs[:2], pairs[2:]
    found = influence(model, render, probe, train)
    assert found.dot_VU.shape == (2, 3)
    for u, pair in enumerate(train):
        stepped = copy.deepcopy(model)
        logits = log_probs(stepped, render, pair)
        logits.mean().backward()
        with torch.no_grad():
            for p in stepped.parameters():
                if p.grad is not None:
                    p += rate * p.grad
        for v, looked_at in enumerate(probe):
            before, after = (log_probs(m, render, looked_at).mean() for m in (model, stepped))
            assert (after - before).item() / rate == pytest.approx(
                found.dot_VU[v, u].item(), rel=1e-3, abs=1e-4
            )
    own = influence(model, render, probe, probe)
    assert torch.allclose(own.dot_VU.diagonal(), own.probe_norm_V**2, rtol=1e-10)
    assert torch.allclose(own.dot_VU, own.dot_VU.T, rtol=1e-10)
    assert torch.allclose(own.cosine_VU.diagonal(), torch.ones(2, dtype=torch.float64))
    sums = log_likelihoods(model, render, probe)
    assert (own.probe_logp_V * own.probe_tokens_V).tolist() == pytest.approx(sums, rel=1e-5)


def log_probs(model: Any, render: Renderer, pair: Any) -> torch.Tensor:
    """Log-probs of a demonstration's tokens, one by one."""
    prompt, demonstration = pair
    inputs, start = inputs_of(render, prompt, demonstration, "cpu")
    table = model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0].tolist()
    return torch.stack([table[i - 1, ids[i]] for i in range(start, len(ids))])


def test_numbers_by_hand() -> None:
    def of(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    found = Influence(
        torch.tensor([[3.0, -2.0], [0.0, 0.0]], dtype=torch.float64),
        of(1.5, 0.0),
        of(2.0, 4.0),
        of(-1.0, -2.0),
        of(-1.0, -1.0),
        torch.tensor([3, 1]),
        torch.tensor([2, 2]),
    )
    assert found.cosine_VU.tolist() == [[1.0, -1 / 3], [0.0, 0.0]]
    # (3 x 1 + 1 x 2) / 4 nats, and 1 nat.
    assert found.perplexities == pytest.approx((3.490343, 2.718282), rel=1e-6)


def test_rows_without_a_demonstration() -> None:
    rows: list[Any] = [{"prompt": "a", "demonstration": []}]
    with pytest.raises(DataError, match="no row of --train has a demonstration"):
        pairs_of(rows, Renderer(make_tokenizer()), "--train")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, seed in (("new", 1), ("old", 2)):
        make_rows(4, seed=seed).to_json(tmp_path / f"{name}.jsonl")
    files = ["--train", str(tmp_path / "new.jsonl"), "--probe", str(tmp_path / "old.jsonl")]
    rest = ["--probe-rows", "2", "--output", str(tmp_path / "found.json")]
    assert main(["influence", str(tmp_path / "model"), *files, *rest]) == 0
    told = capsys.readouterr().out
    assert "perplexity" in told
    assert "of 4" in told
    data = json.loads((tmp_path / "found.json").read_text())
    assert len(data["dot_VU"]) == 2
    assert len(data["dot_VU"][0]) == 4
    assert main(["influence", str(tmp_path / "model"), *files, "--probe-rows", "0"]) == 2
    assert "--probe-rows must be at least 1" in capsys.readouterr().err

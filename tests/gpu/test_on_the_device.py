"""What is shown elsewhere on a CPU, with the kernels of the device: attention, head, sampler, step.

pytest -m gpu tests/gpu                        # skipped where there is no GPU
PREFIX_RFT_DEVICE=cpu pytest -m gpu tests/gpu
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.packed.attention import packed
from prefix_rft.engines.packed.head import log_probs
from prefix_rft.engines.packed.layout import pack
from prefix_rft.engines.packed.model import PackedRows, add_packed_forward
from prefix_rft.engines.sampling import SamplingSettings, sample_scored
from second.step.trl_run import make_rewards, start
from second.step.update import relative_error
from tiny import make_model, make_tokenizer

pytestmark = pytest.mark.gpu

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
}
PROMPTS = [[3, 4, 5, 6, 7]] * 4 + [[8, 9]] * 2 + [[10, 11, 12]]


def a_model(kind: str, device: str) -> Any:
    """Random, with weights so large that what a token looks at matters."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0 if p.ndim > 1 else 1.0)
    return model.to(device)


def rows(device: str) -> tuple[Tensor, Tensor]:
    """Completions of unlike length, and which of their tokens are wanted."""
    generator = torch.Generator().manual_seed(1)
    completion_BT = torch.randint(3, 97, (len(PROMPTS), 20), generator=generator)
    wanted_BT = torch.rand(len(PROMPTS), 20, generator=generator) < 0.6
    wanted_BT[1, 4:] = False
    wanted_BT[:, 0] = True
    return completion_BT.to(device), wanted_BT.to(device)


def alone(model: Any, device: str) -> Tensor:
    """Log-probs of the wanted tokens, each row by itself through the model's own logits."""
    found = []
    for prompt, own, wanted in zip(PROMPTS, *rows(device), strict=True):
        ids = torch.cat([torch.tensor(prompt, device=device), own])
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].float()
        found.append(logits.log_softmax(-1).gather(1, own[:, None])[:, 0][wanted])
    return torch.cat(found)


def together(model: Any, device: str) -> Tensor:
    """The same of packed rows."""
    with packed(model.config):
        return model(packed=PackedRows(pack(PROMPTS, *rows(device)), 1.0, False))[0]


def scored(score: Any, model: Any, device: str, half: bool) -> tuple[Tensor, Tensor]:
    """Log-probs, and the gradient of a weighted sum of them."""
    model.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=half):
        logp = score(model, device)
    weights = torch.randn(len(logp), generator=torch.Generator().manual_seed(2)).to(device)
    (weights * logp).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return logp.detach(), gradient


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_packed_rows_in_single_precision(kind: str, device: str) -> None:
    model = a_model(kind, device)
    expected = scored(alone, model, device, False)
    assert add_packed_forward(model) is None
    found = scored(together, model, device, False)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=5e-5)
    assert (found[1] - expected[1]).norm() / expected[1].norm() < 1e-5


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_packed_rows_in_half_precision(kind: str, device: str) -> None:
    """As far from single precision as rows alone are in half, and no farther."""
    model = a_model(kind, device)
    exact = scored(alone, model, device, False)
    plain = scored(alone, model, device, True)
    assert add_packed_forward(model) is None
    found = scored(together, model, device, True)
    for ours, theirs, true in zip(found, plain, exact, strict=True):
        error, usual = ((x - true).norm() / true.norm() for x in (ours, theirs))
        assert 0 < usual < 0.1
        assert error < 1.5 * usual


def test_the_head_against_a_softmax(device: str) -> None:
    """More words than a tile of TRL's kernel holds, and more than one tile of ours."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 32, generator=generator).to(device).requires_grad_()
    weight = torch.randn(40_001, 32, generator=generator).to(device).requires_grad_()
    target = torch.randint(0, 40_001, (300,), generator=generator).to(device)
    factors = torch.randn(2, 300, generator=generator).to(device)
    logp = (hidden @ weight.T / 0.7).log_softmax(-1)
    expected = logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    found = log_probs(hidden, weight, target, 0.7, True)
    assert found[1] is not None
    gradients = []
    for first, second in ((found[0], found[1]), expected):
        total = (factors[0] * first).sum() + (factors[1] * second).sum()
        gradients.append(torch.autograd.grad(total, (hidden, weight)))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-4)
    for x, y in zip(*gradients, strict=True):
        assert (x - y).norm() / y.norm() < 1e-4


@pytest.mark.parametrize("more", [{}, {"temperature": 0.7, "top_k": 9}])
def test_scores_of_the_sampler_against_a_forward(more: dict[str, Any], device: str) -> None:
    model = a_model("Qwen3", device)
    prefixes = [[20, 21][: i % 3] for i in range(len(PROMPTS))]
    settings = SamplingSettings((1,), 0, **more)
    found = sample_scored(model, PROMPTS, [9] * len(PROMPTS), settings, prefixes)
    for i, (prompt, prefix, ids) in enumerate(zip(PROMPTS, prefixes, found.ids, strict=True)):
        completion = torch.tensor([*prefix, *ids], device=device)
        both = torch.cat([torch.tensor(prompt, device=device), completion])
        with torch.no_grad():
            logits = model(both[None]).logits[0, len(prompt) - 1 : -1]
        logp = (logits.double() / settings.temperature).log_softmax(-1)
        wanted = logp.gather(1, completion[:, None])[:, 0]
        n = len(completion)
        assert (found.logp_BT[i, :n] - wanted).abs().max() < 5e-5
        assert (found.entropy_BT[i, :n] + (logp.exp() * logp).sum(-1)).abs().max() < 5e-5


@pytest.mark.parametrize("method", ["dr_grpo", "prefix_rft"])
def test_a_step_with_and_without_savings(method: str, tmp_path: Path, device: str) -> None:
    """In single precision, of the same rows: one group of four is flat."""
    found = []
    for savings in ("none", "all"):
        trainer, recorder = start(
            PrefixRFTTrainer,
            tmp_path / savings,
            method,
            make_rewards(("mixed", "wrong", "mixed", "mixed")),
            model=make_model(make_tokenizer(), hidden=64, layers=2),
            savings=savings,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            max_steps=1,
            use_cpu=device == "cpu",
        )
        assert trainer.accelerator.device.type == device
        assert (trainer.scorer.why_whole is None) is (savings == "all")
        trainer.train()
        found.append(recorder.records[0])
    whole, ours = found
    assert [r.completion for r in whole.rows] == [r.completion for r in ours.rows]
    assert relative_error(ours.gradient, whole.gradient) < 1e-5

"""Log-probs and entropies in chunks are those of a softmax, with their gradients."""

import pytest
import torch

from prefix_rft.engines.packed import head
from prefix_rft.engines.packed.head import log_probs


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logp = (hidden @ weight.T / temperature).log_softmax(-1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 5, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64).to(dtype)
    target = torch.randint(0, 7, (11,), generator=generator)
    factors = torch.randn(2, 11, generator=generator, dtype=torch.float64)
    factors[:, 4] = 0.0
    return hidden.requires_grad_(), weight.requires_grad_(), target, factors


@pytest.mark.parametrize("chunk", [7, 21, 2**20])
@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients(
    chunk: int, kinds: tuple[bool, bool], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK", chunk)
    hidden, weight, target, factors = inputs()
    found = log_probs(hidden, weight, target, temperature, True)
    wanted = plain(hidden, weight, target, temperature)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(
            sum((f * x).sum() for f, x, k in zip(factors, values, kinds, strict=True) if k),
            (hidden, weight),
        )
        for values in (found, wanted)
    ]
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """Logits 0 and log 3: probabilities 1/4 and 3/4."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [3.0]]).log()
    logp, entropy = log_probs(hidden, weight, torch.tensor([1]), 1.0, True)
    assert entropy is not None
    assert logp.item() == pytest.approx(-0.287682)
    assert entropy.item() == pytest.approx(0.562335)
    logp.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.25 * 1.098612)  # (1 - 3/4) log 3


def test_no_wanted_token_is_a_gradient_of_0() -> None:
    hidden, weight, *_ = inputs()
    logp, entropy = log_probs(hidden[:0], weight, torch.zeros(0, dtype=torch.long), 1.0, True)
    assert entropy is not None
    (logp.sum() + entropy.sum()).backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_without_entropy_there_is_none() -> None:
    hidden, weight, target, _ = inputs()
    assert log_probs(hidden, weight, target, 1.0, False)[1] is None


def test_products_in_half_precision_and_sums_in_single() -> None:
    """Under autocast the logits are those of bfloat16, the results and gradients float32."""
    hidden, weight, target, factors = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logp, entropy = log_probs(hidden, weight, target, 1.0, True)
    assert entropy is not None
    z = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = z.log_softmax(-1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(logp, expected, rtol=0, atol=1e-6)
    (logp * factors[0].float()).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    exact = torch.autograd.grad(
        (plain(hidden, weight, target, 1.0)[0] * factors[0].float()).sum(), (hidden, weight)
    )
    for x, y in zip((hidden.grad, weight.grad), exact, strict=True):
        assert (x - y).norm() / y.norm() < 0.02

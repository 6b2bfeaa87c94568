"""f-divergence SFT with the value of each prompt free: every divergence is plain SFT.

The form that ``fdiv_sft`` has leaves the value out (V = 0). In full (derived, see its page):

    L = mean over demonstrations of  V - phi(x + V),    x = beta log(pi / pi_ref)

and ``fdiv_sft``'s weight of ``log pi`` is ``beta phi'``.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefix_rft.core.weights import Scores, f_divergence

BETA = 0.7
RATIOS = (-1.0, 0.0, 2.0)
"""log pi / pi_ref of three demonstrations, one for each prompt."""
PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "total_variation": lambda u: u,
    "pearson": lambda u: u - u**2 / 4,
    "squared_hellinger": lambda u: u / (1 + u),
}


def loss(divergence: str, log_ratio: Tensor, value: Tensor) -> Tensor:
    return (value - PHI[divergence](BETA * log_ratio + value)).sum()


def least(divergence: str, log_ratio: float) -> float:
    """The value that makes the loss least, by halving an interval on the sign of its slope."""

    def slope(value: float) -> float:
        v = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        x = torch.tensor(log_ratio, dtype=torch.float64)
        return torch.autograd.grad(loss(divergence, x, v), v)[0].item()

    # Within it the loss is convex: u = x + V is beyond the pole at -1.
    low, high = -BETA * log_ratio - 0.9, -BETA * log_ratio + 5.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


def weights(divergence: str, log_ratios: list[float]) -> list[float]:
    """The weights of tokens that ``fdiv_sft`` gives, of rows of one token."""
    ref_BT = torch.zeros(len(log_ratios), 1)
    logp_BT = torch.tensor(log_ratios)[:, None]
    mask_BT = torch.ones_like(logp_BT, dtype=torch.bool)
    scores = Scores(logp_BT, mask_BT, None, ref_BT)
    return f_divergence(divergence, BETA).of(scores)[:, 0].tolist()


@pytest.mark.parametrize("divergence", ["pearson", "squared_hellinger"])
def test_the_best_value_takes_the_ratio_away(divergence: str) -> None:
    """u = x + V is 0 for each prompt."""
    for ratio in RATIOS:
        assert least(divergence, ratio) == pytest.approx(-BETA * ratio, abs=1e-9)


@pytest.mark.parametrize("divergence", PHI)
def test_with_a_free_value_every_divergence_is_sft(divergence: str) -> None:
    """The gradient at the best value: -beta for each log pi, that of SFT times beta."""
    x = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)
    value = torch.tensor(
        [0.3 if divergence == "total_variation" else least(divergence, r) for r in RATIOS],
        dtype=torch.float64,
    )  # of total variation no value is better than another
    (gradient,) = torch.autograd.grad(loss(divergence, x, value), x)
    torch.testing.assert_close(gradient, torch.full_like(x, -BETA), atol=1e-8, rtol=0)
    # With the value in it our weight says the same, and without it something else.
    shifted = [r + v.item() / BETA for r, v in zip(RATIOS, value, strict=True)]
    assert weights(divergence, shifted) == pytest.approx([BETA] * 3, abs=1e-6)
    if divergence != "total_variation":
        assert not math.isclose(weights(divergence, list(RATIOS))[0], BETA, rel_tol=0.1)


@pytest.mark.parametrize("divergence", PHI)
def test_without_the_value_the_weight_is_the_slope(divergence: str) -> None:
    """V = 0 is what ``fdiv_sft`` does."""
    x = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(divergence, x, torch.zeros_like(x)), x)
    assert weights(divergence, list(RATIOS)) == pytest.approx((-gradient).tolist(), rel=1e-6)


def test_total_variation_never_sees_the_value() -> None:
    x = torch.tensor(RATIOS, dtype=torch.float64)
    one, other = (loss("total_variation", x, torch.full_like(x, v)) for v in (0.0, 3.0))
    assert one.item() == pytest.approx(other.item())

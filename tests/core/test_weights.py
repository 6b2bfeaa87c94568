"""Weights and shapes against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from prefix_rft.core.weights import (
    Scores,
    exp_entropy,
    probability,
    saturating,
    sequence_importance,
    top_entropy,
    truncated,
    uncertainty,
)
from prefix_rft.support.errors import UserError

t = torch.tensor


def scores(**how: Any) -> Scores:
    """Two rows: p = 1/2 and 1/4, and 3/4; entropies 1 and 3, and 4; the rest is outside."""
    logp = t([[0.5, 0.25, 1.0], [0.75, 1.0, 1.0]], dtype=torch.float64).log()
    mask = t([[True, True, False], [True, False, False]])
    entropy = t([[1.0, 3, 0], [4, 0, 0]]).double()
    ref = t([[0.25, 0.25, 1.0], [0.25, 1.0, 1.0]], dtype=torch.float64).log()
    return replace(Scores(logp, mask, entropy, ref), **how)


# ---- weights -------------------------------------------------------------------------------------


def test_an_unlikely_token_weighs_less() -> None:
    """p / .1 up to 1: p of .5, .1, .05, .01."""
    logp = t([[0.5, 0.1, 0.05, 0.01]], dtype=torch.float64).log().requires_grad_()
    known = Scores(logp.detach(), torch.ones(1, 4, dtype=torch.bool))
    assert truncated(0.1).of(known)[0].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.1])
    assert truncated(1.0).of(known)[0].tolist() == pytest.approx([0.5, 0.1, 0.05, 0.01])
    with pytest.raises(UserError, match="must be positive"):
        truncated(0.0)


def test_weights_of_tokens() -> None:
    assert probability().of(scores())[:, 0].tolist() == pytest.approx([0.5, 0.75])
    phi = uncertainty().of(scores())
    assert phi[0, :2].tolist() == pytest.approx([0.25, 0.1875])
    assert phi[1, 0].item() == pytest.approx(0.1875)
    # Near p = 1 the difference 1 - p must not be lost.
    near = scores(logp_BT=t([[-1e-12, -40.0, -1e-12]] * 2, dtype=torch.float64))
    assert uncertainty().of(near)[0, :2].tolist() == pytest.approx([1e-12, math.exp(-40)])


def test_weights_by_entropy() -> None:
    """Mean entropies of the rows: 2 and 4."""
    down = exp_entropy(0.5, -1.0).of(scores())
    assert down.shape == (2, 1)
    assert down[:, 0].tolist() == pytest.approx([0.5 * math.exp(-2), 0.5 * math.exp(-4)])
    up = exp_entropy(0.1, 1.0).of(scores())
    assert up[:, 0].tolist() == pytest.approx([0.1 * math.exp(2), 0.1 * math.exp(4)])
    each = exp_entropy(0.1, 1.0, per_token=True).of(scores())
    assert each[0, :2].tolist() == pytest.approx([0.1 * math.e, 0.1 * math.exp(3)])
    with pytest.raises(UserError, match="reads entropies, but got none"):
        exp_entropy(0.5, -1.0).of(scores(entropy_BT=None))


def test_weights_of_rows() -> None:
    """Log-ratios to the reference: log 2 and 0 (mean log(2)/2), and log 3."""
    got = sequence_importance().of(scores())
    assert got.shape == (2, 1)
    assert got[:, 0].tolist() == pytest.approx([math.sqrt(2), 3.0])
    assert sequence_importance(2.0, 5.0).of(scores())[:, 0].tolist() == pytest.approx([2.0, 5.0])
    assert sequence_importance().needs_reference
    with pytest.raises(UserError, match="ref_logp_BT is None"):
        sequence_importance().of(scores(ref_logp_BT=None))


def test_the_most_uncertain_tokens_of_each_row() -> None:
    """ceil(20 %) of five tokens is one, of six two; a tie goes to the earlier one."""
    entropy = t([[1.0, 5, 2, 3, 4, 9], [2, 2, 1, 7, 0, 2]])
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 5] = False
    s = Scores(torch.zeros(2, 6), mask, entropy)
    assert top_entropy(0.2).of(s).tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0]]
    assert top_entropy(1.0).of(s).tolist() == mask.double().tolist()
    assert not top_entropy(0.0).of(s).any()


def test_shaping() -> None:
    f = saturating(0.1).of
    p = t([0.0, 0.1, 0.9, 1.0], dtype=torch.float64).requires_grad_()
    assert f(p).tolist() == pytest.approx([0.0, 0.5, 0.9, 1 / 1.1])
    (slope,) = torch.autograd.grad(f(p).sum(), p)
    # p f'(p) = gamma p / (p + gamma)^2: at most 1/4, at p = gamma; 0.0826 at p = 1.
    assert (slope * p).tolist() == pytest.approx([0.0, 0.25, 0.09, 0.1 / 1.21])

"""Losses of reward models on pairs, by hand and against the implicit reward's."""

import math

import pytest
import torch
from torch import Tensor

from prefix_rft.core.contrast import SelfPlay, Sequences
from prefix_rft.core.pairs import held, pair_loss, told_apart
from prefix_rft.support.errors import UserError


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


ONE = torch.ones(1, 1, dtype=torch.bool)


def test_logistic_by_hand() -> None:
    # log(1 + e^-1) = 0.313262; the gradient is -+ sigmoid(-1) = -+ 0.268941
    chosen, rejected = t(1.0)[None].requires_grad_(), t(0.0)[None].requires_grad_()
    loss = pair_loss(chosen, rejected, ONE)
    loss.backward()
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.268941, abs=1e-6)
    assert rejected.grad is not None
    assert rejected.grad.item() == pytest.approx(0.268941, abs=1e-6)


def test_regularisers_by_hand() -> None:
    chosen, rejected = t(2.0)[None], t(1.0)[None]
    # log(1 + e^-1) + .1 (2 + 1)^2; and -1 + .1 (4 + 1)
    assert pair_loss(chosen, rejected, ONE, regulariser=0.1).item() == pytest.approx(1.213262)
    assert pair_loss(chosen, rejected, ONE, "difference", 0.1).item() == pytest.approx(-0.5)


def test_a_pair_counts_once_however_many_tokens_differ() -> None:
    chosen, rejected = t(0, 1, 3, 0)[None], t(0, 0, 1, 9)[None]
    two = torch.cat([chosen, chosen]), torch.cat([rejected, rejected])
    counted = torch.tensor([[False, True, True, False], [False, True, False, False]])
    # mean of margins 1 and 2, and of 1
    assert pair_loss(*two, counted, "difference").item() == pytest.approx(-(1.5 + 1.0) / 2)


def test_three_actions_by_hand() -> None:
    """One state, demonstrations take action 0, the reference is uniform, beta is 1.

    The policy for a reward is its softmax, so the gradient of the reward is p_D - pi.
    """
    reward = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    gradients, pi = [], reward.detach()
    for _ in range(200):
        pi = reward.detach().softmax(0)
        rejected = [reward[a, None, None] for a in range(3)]
        each = [pair_loss(reward[:1, None], x, ONE, "difference") for x in rejected]
        loss = sum(p * x for p, x in zip(pi, each, strict=True))
        (gradient,) = torch.autograd.grad(loss, reward)
        gradients.append(-gradient)
        reward.data -= 0.1 * gradient
    assert gradients[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert reward.tolist() == pytest.approx([2.652887, -1.326444, -1.326444], abs=1e-6)
    # the policy of which the last step's samples are
    assert pi.tolist() == pytest.approx([0.963762, 0.018119, 0.018119], abs=1e-6)


def test_the_implicit_reward_gives_the_loss_of_irft() -> None:
    """With r = beta log pi/pi_k Algorithm 1's loss is Algorithm 2's, which we have as a method."""
    beta, logp = 0.3, t(-4.0, -2.5).requires_grad_()
    reference = t(-5.0, -1.0)
    reward = beta * (logp - reference)
    loss = pair_loss(reward[:1, None], reward[1:, None], ONE)
    (gradient,) = torch.autograd.grad(loss, logp)
    rows = Sequences(
        logp.detach(), torch.tensor([3, 4]), torch.tensor([0, 0]), torch.tensor([True, False]),
        torch.tensor([0, 0]), reference,
    )  # fmt: skip
    advantage, _ = SelfPlay(beta)(rows, {})
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-beta * (1.0 + 1.5)))))
    assert (-gradient).tolist() == pytest.approx(advantage.tolist(), abs=1e-12)


def test_tokens_that_count() -> None:
    chosen = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 8], [5, 0, 0, 0]])
    rejected = torch.tensor([[5, 9, 7, 0], [5, 6, 0, 0], [5, 0, 0, 0]])
    masks = (torch.tensor([[1, 1, 1, 0], [1] * 4, [1, 1, 0, 0]]),
             torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]))  # fmt: skip
    counted = told_apart(chosen, masks[0], rejected, masks[1])
    # from the first that differs to the longer end; a token of the padding's id is a token
    assert counted.tolist() == [
        [False, True, True, False],
        [False, False, True, True],
        [False, True, False, False],
    ]


def test_a_sequence_keeps_its_last_reward() -> None:
    values = t(1, 2, 3)[None].repeat(2, 1)
    assert held(values, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[1, 2, 2], [1, 2, 3]]


def test_another_loss_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown reward_learning.loss 'hinge'"):
        pair_loss(t(1)[None], t(0)[None], ONE, "hinge")

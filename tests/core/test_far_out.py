"""Contrasts and weights of log-probs far from those of the reference."""

import math
from dataclasses import replace

import pytest
import torch
from batches import gradients
from cases import CONTRASTS, case

from prefix_rft.core import Batch, advantages, loss, prepare, with_sequence
from prefix_rft.core.contrast import Discriminative, SelfPlay, Sequences
from prefix_rft.core.weights import Scores, f_divergence, sequence_importance
from prefix_rft.methods import BUILT_IN, load

t = torch.tensor


# ---- sums of whole sequences ---------------------------------------------------------------------


def contrast_rows(logp: list[float], ref: list[float]) -> Sequences:
    """One group: a demonstration, then negatives."""
    n = len(logp)
    return Sequences(
        t(logp),
        torch.full((n,), 500),
        torch.zeros(n, dtype=torch.int64),
        torch.arange(n) == 0,
        torch.zeros(n, dtype=torch.int64),
        t(ref),
    )


def test_partition_far_out() -> None:
    """s = 6000 and 0: u = 6000 + log(0.85/2), A = -exp(6000 - u)/2 = -1/0.85, and 0."""
    contrast = Discriminative()
    value, memory = contrast(contrast_rows([-1.0, -100, -5000], [0.0, -6100, -5000]), {})
    assert value.tolist() == pytest.approx([1.0, -1 / 0.85, 0.0])
    assert memory[0]["u"] == pytest.approx(6000 + math.log(0.425))
    # s = -5000 everywhere then leaves u where it was, less log(1 - gamma); the pull is gone.
    value, memory = contrast(contrast_rows([-1.0, -5000, -5000], [0.0, 0, 0]), memory)
    assert value.tolist() == [1.0, 0.0, 0.0]
    assert memory[0]["u"] == pytest.approx(6000 + math.log(0.425) + math.log(0.15))


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_no_pull_exceeds_one_over_gamma(gamma: float) -> None:
    """``sum_j exp(s_j - u)/B <= 1/gamma``, as u holds gamma times the mean."""
    for seed in range(20):
        s = 3000 * torch.randn(5, generator=torch.Generator().manual_seed(seed))
        rows = contrast_rows([0.0, *s.tolist()], [0.0] * 6)
        value, memory = Discriminative(gamma=gamma)(rows, {0: {"u": 100.0 * seed}})
        assert torch.isfinite(value).all()
        assert -1 / gamma - 1e-9 <= value[1:].sum().item() <= 0
        assert math.isfinite(memory[0]["u"])


def test_margins_far_out() -> None:
    """A pair that is won leaves no pull, a lost one the whole of beta."""
    won, _ = SelfPlay()(contrast_rows([-10.0, -9000], [-5000.0, -4000]), {})
    assert won.tolist() == [0.0, 0.0]
    lost, _ = SelfPlay()(contrast_rows([-9000.0, -10], [-4000.0, -5000]), {})
    assert lost.tolist() == pytest.approx([0.1, -0.1])


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("far", [-5000.0, -800.0])
def test_far_log_probs_leave_finite_gradients(name: str, far: float) -> None:
    """The policy gave up a token, or has found one that the old policy or the reference had not."""
    c = case(name)
    assert c.batch.old_logp_BT is not None
    assert c.batch.ref_logp_BT is not None
    low = torch.full_like(c.batch.old_logp_BT, far)
    for which in ("policy", "old", "reference"):
        batch = replace(
            c.batch,
            old_logp_BT=low if which == "old" else c.batch.old_logp_BT,
            ref_logp_BT=low if which == "reference" else c.batch.ref_logp_BT,
        )
        for dtype in (torch.float32, torch.float64):
            now = low if which == "policy" else c.logp.detach()
            logp = now.to(dtype).requires_grad_()
            value = loss(c.method, batch, logp, c.entropy, targets=c.targets).loss
            assert torch.isfinite(value)
            assert torch.isfinite(gradients(value, logp)[0]).all()


@pytest.mark.parametrize("name", CONTRASTS)
def test_contrasts_of_long_sequences_in_single_precision(name: str) -> None:
    """1,000 tokens of -5: the gradient is the advantage of the row, whatever the sums."""
    T = 1000
    logp = torch.full((3, T), -5.0)
    logp[2] -= 0.001
    everywhere = torch.ones(3, T, dtype=torch.bool)
    demo = everywhere & (torch.arange(3) == 0)[:, None]
    method = load(name)
    batch = Batch(
        torch.zeros(3, T, dtype=torch.int64),
        everywhere,
        ~everywhere,
        demo,
        None,
        torch.zeros(3),
        torch.zeros(3, dtype=torch.int64),
    )
    rows = contrast_rows(logp.double().sum(1).tolist(), [-5000.0] * 3)
    assert method.contrast is not None
    value, _ = method.contrast(rows, {})
    given = advantages(method, batch.reward_B, batch.group_B, batch.hybrid_B, batch.demo_B)
    given = with_sequence(method, given.float(), value.float())
    targets = prepare(method, batch, advantage_SB=given)
    logp.requires_grad_()
    (g,) = gradients(loss(method, batch, logp, targets=targets).loss, logp)
    assert torch.allclose(g, -value.float()[:, None].expand(3, T), rtol=1e-5)
    assert value[0] > 0
    assert (value[1:] < 0).all()
    # The pull on the negative that is less likely by exp(1) is that much weaker.
    weaker = {"discriminative": math.e, "irft": (1 + math.exp(0.1)) / 2}[name]
    assert (value[1] / value[2]).item() == pytest.approx(weaker, rel=1e-3)


def test_kl_pulls_back_however_far_the_policy_is() -> None:
    """d k3 / d log pi = 1 - pi_ref/pi, the ratio held at exp(20): never pushed away."""
    one = torch.ones(1, 1, dtype=torch.bool)
    for x in (-700.0, -1.0, 0.0, 1.0, 19.0, 21.0, 60.0, 5000.0):
        ref = t([[-1.0]], dtype=torch.float64)
        batch = Batch(t([[0]]), one, ~one, ~one, None, t([0.0]), t([0]), ref_logp_BT=ref)
        logp = (ref - x).requires_grad_()
        value = loss(load("grpo", beta=1.0), batch, logp).loss
        (g,) = torch.autograd.grad(value, logp)
        assert g.item() == pytest.approx(-math.expm1(min(x, 20.0)))
        assert value.item() >= 0


# ---- weights below zero, poles, unlikelihood -----------------------------------------------------


def slopes(divergence: str, beta: float, x: list[float], **limits: float) -> list[float]:
    """The weight where ``beta (log pi - log pi_ref)`` is x."""
    logp = t([x], dtype=torch.float64) / beta - 1.0
    seen = torch.ones_like(logp, dtype=torch.bool)
    scores = Scores(logp, seen, None, torch.full_like(logp, -1.0))
    return f_divergence(divergence, beta, **limits).of(scores)[0].tolist()


def test_pearson_does_not_turn_around() -> None:
    x = [-40.0, -2.0, 0.0, 1.0, 1.99, 2.0, 2.01, 50.0]
    assert slopes("pearson", 1.0, x) == pytest.approx([16, 2, 1, 0.5, 0.005, 0, 0, 0], abs=1e-9)
    assert slopes("pearson", 1.0, [3.0, 9.0], floor=-2.0) == pytest.approx([-0.5, -2.0])


def test_squared_hellinger_is_held_before_its_pole() -> None:
    x = [-50.0, -1.001, -1.0, -0.999999, -0.99, -0.5, 0.0, 1.0, 50.0]
    expected = [16, 16, 16, 16, 16, 4, 1, 0.25, 51**-2]
    assert slopes("squared_hellinger", 1.0, x) == pytest.approx(expected, rel=1e-6)
    assert slopes("squared_hellinger", 2.0, [-0.5, 1.0], cap=3.0) == pytest.approx([3.0, 0.5])
    assert slopes("total_variation", 0.5, x) == [0.5] * 9


def test_weights_are_bounded_for_any_policy() -> None:
    for name in ("fdiv_sft", "iw_sft"):
        kinds = ("pearson", "squared_hellinger", "total_variation") if name == "fdiv_sft" else ("",)
        for divergence in kinds:
            options = {"divergence": divergence} if divergence else {}
            weight = load(name, **options).streams[0].weight
            assert weight is not None
            logp = -torch.rand(4, 50, dtype=torch.float64) * t([1.0, 10, 100, 5000])[:, None]
            ref = logp.flip(0)
            w = weight.of(Scores(logp, torch.ones_like(logp, dtype=torch.bool), None, ref))
            assert ((w >= 0) & (w <= 16)).all()


def test_an_overflow_of_the_sequence_weight_is_the_cap() -> None:
    logp = t([[-1.0], [-5000.0], [-1.0]])
    ref = t([[-5000.0], [-1.0], [-1.5]])
    scores = Scores(logp, torch.ones(3, 1, dtype=torch.bool), None, ref)
    got = sequence_importance().of(scores)
    assert got.shape == (3, 1)
    assert got[:, 0].tolist() == pytest.approx([16.0, 0.0, math.exp(0.5)])


def test_unlikelihood_of_a_wrong_rollout_is_bounded_in_the_logits() -> None:
    """SRFT's ``log pi`` of wrong rows falls without end, but its pull on a logit is at most 1/Z."""
    method = load("srft", aggregation="sum", const=1.0)
    for gap in (1.0, 30.0, 700.0):
        logits = t([[[0.0, gap, gap]]], dtype=torch.float64).requires_grad_()
        logp = logits.log_softmax(-1)[..., 0]
        one = torch.ones(1, 1, dtype=torch.bool)
        batch = Batch(t([[0]]), one, ~one, ~one, None, t([0.0]), t([0]))
        value = loss(method, batch, logp, torch.zeros(1, 1)).loss
        (g,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(g).all()
        assert g.abs().max() <= 1.0
        assert g[0, 0, 0] > 0  # down it goes

"""What is suspected to be wrong: each test fails today and will say so once it passes."""

import pytest
import torch
from test_traps_by_hand import batch
from test_traps_planners import group

from prefix_rft.core import Method, Stream, advantages, loss, prepare
from prefix_rft.core.objective import with_sequence
from prefix_rft.methods import load

t = torch.tensor


def suspected(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


@suspected("beyond a log-ratio of 20 only the exponential of the k3 estimator is held")
def test_kl_never_pushes_away_from_the_reference() -> None:
    """d k3 / d log pi = 1 - pi_ref/pi: at most 0 where the reference is higher."""
    for x in (1.0, 19.0, 21.0, 60.0):
        b = batch(["s"], [0.0], [0], ref_logp_BT=t([[-1.0]], dtype=torch.float64))
        logp = t([[-1.0 - x]], dtype=torch.float64).requires_grad_()
        (g,) = torch.autograd.grad(loss(load("grpo", beta=1.0), b, logp).loss, logp)
        assert g.item() <= 0


@suspected("the group starts from no token, and such a failure counts as that of a plain group")
def test_an_interval_that_has_closed_at_zero_opens_again() -> None:
    """Once solved without help, an example that fails from then on must get help again."""
    law, own = load("adaback", plain=0.0).law, {"low": 0.0, "high": 0.0}
    for step in range(20):
        asked = group(step=step, own=own)
        own = dict(law.learn(asked, law.starts(asked), [0.0] * 4)[0])
    assert own["high"] > 0


@suspected("the pool of prefix tokens holds those of dropped rows")
def test_dropped_rows_take_no_place_in_the_selection() -> None:
    """20 % of the five prefix tokens that are left is one."""
    rows = ["ppppps"] * 2
    b = batch(rows, [0.0, 1.0], [0, 1], dropped_B=t([True, False]))
    entropy = t([[9.0, 8, 7, 6, 5, 0], [1, 2, 3, 4, 5, 0]])
    targets = prepare(load("prefix_rft"), b, entropy, advantage_SB=torch.ones(3, 2))
    assert targets.keep_BT[1].tolist() == [False] * 4 + [True, False]


@suspected("log-probs are widened, entropies are not")
def test_half_precision_entropies_are_summed_in_single() -> None:
    b = batch(["s" * 4012], [0.0], [0])
    entropy = torch.full((1, 4012), 1 / 3, dtype=torch.bfloat16)
    method = load("grpo", entropy_coef=1.0, aggregation="sum", const=1.0)
    value = loss(method, b, torch.zeros(1, 4012, dtype=torch.bfloat16), entropy).loss
    assert value.item() == pytest.approx(-entropy.double().sum().item(), rel=1e-5)


@suspected("the contrast's advantages replace gated ones")
def test_a_gate_holds_for_a_contrast_too() -> None:
    """No rollout is solved, so a gate on solved groups leaves nothing."""
    stream = Stream("s", ("policy",), "logp", "sequence", gate=(0.0, 1.0))
    contrasted = Method("m", (stream,), contrast=load("irft").contrast)
    b = batch(["s", "s"], [0.0, 0.0], [0, 0])
    given = advantages(contrasted, b.reward_B, b.group_B, b.hybrid_B, b.demo_B)
    assert not given.any()
    assert not with_sequence(contrasted, given, t([1.0, 1.0], dtype=torch.float64)).any()

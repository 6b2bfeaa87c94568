"""What a stream gains at a token: clips far out, weights, regularisers, truncated rows."""

from typing import Any

import pytest
import torch
from batches import small

from prefix_rft.core import Batch, Method, Stream, loss
from prefix_rft.core.parts import Normaliser
from prefix_rft.methods import load


def plain(reward: list[float], old: float, **changes: Any) -> Batch:
    """One group of rows with one token each, in single precision."""
    n = len(reward)
    mask = torch.ones(n, 1, dtype=torch.bool)
    parts = {
        "tokens_BT": mask.long(),
        "response_mask_BT": mask,
        "prefix_mask_BT": ~mask,
        "demo_mask_BT": ~mask,
        "old_logp_BT": torch.full((n, 1), old),
        "reward_B": torch.tensor(reward),
        "group_B": torch.zeros(n, dtype=torch.int64),
    }
    return Batch(**{**parts, **changes})


def test_masking_truncated_rows_needs_to_know_them() -> None:
    """truncated='mask' without truncated_B masks nothing and says nothing."""
    logp = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="truncated_B"):
        loss(load("grpo", truncated="mask"), plain([1.0, 0.0], 0.0), logp)


@pytest.mark.parametrize(
    ("options", "row"), [({}, 0), ({"delta": 2.0}, 0), ({"delta": 2.0}, 1)], ids=str
)
def test_a_clipped_token_has_gradient_zero_however_far(options: dict, row: int) -> None:
    """rho = e^100 overflows float32. Row 0 has A > 0: clip. Row 1 has A < 0: dual clip at delta."""
    logp = torch.zeros(2, 1, requires_grad=True)
    old = torch.full((2, 1), 0.0)
    old[row] = -100.0
    batch = plain([1.0, 0.0], 0.0, old_logp_BT=old)
    out = loss(load("dr_grpo", **options), batch, logp)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert logp.grad[row].item() == 0


@pytest.mark.parametrize("name", ["sft", "prefix_rft"])
def test_weights_do_not_touch_a_likelihood_term(name: str) -> None:
    """weight_BT: a factor on the policy-gradient terms; constant-advantage likelihood is none."""
    options = {"prefix_loss": "static", "entropy_keep": 1.0} if name == "prefix_rft" else {}
    logp, entropy = torch.full((4, 4), -1.0), torch.ones(4, 4)
    flat = torch.ones(4)
    method = load(name, **options)
    once, twice = (
        loss(method, small(reward_B=flat, weight_BT=w), logp, entropy).loss.item()
        for w in (None, torch.full((4, 4), 2.0))
    )
    assert once > 0
    assert twice == once


@pytest.mark.parametrize("surrogate", ["kl", "entropy"])
def test_regularisers_do_not_use_the_advantage(surrogate: str) -> None:
    """Stream: the advantage is unused by kl and entropy; its default is 'group', here flat."""
    batch = plain([1.0, 1.0], 0.0, ref_logp_BT=torch.full((2, 1), -2.0))
    logp, entropy = torch.full((2, 1), -1.0), torch.full((2, 1), 0.5)
    by_default, by_constant = (
        loss(
            Method(
                "m",
                (Stream("r", ("policy",), surrogate, **kw),),
                normaliser=Normaliser("token_mean"),
            ),
            batch,
            logp,
            entropy,
        ).loss.item()
        for kw in ({}, {"advantage": 1.0})
    )
    # k3 at a log-ratio of -1 is 1/e; minus the entropy is -1/2.
    assert by_constant == pytest.approx(0.36787944 if surrogate == "kl" else -0.5, abs=1e-6)
    assert by_default == by_constant

"""Loss and gradient by hand, and under every split; formulas are in test_objective_options."""

import itertools
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from batches import gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_rft.core import Batch, loss, prepare
from prefix_rft.methods import load
from tables import each_once, rest_slow

NAN = float("nan")


def make_batch(seed: int, demo: bool = False, hybrid: bool = True, poison: bool = True) -> Any:
    """16 ragged rows in interleaved groups; rubbish wherever nothing should be read."""
    g = torch.Generator().manual_seed(seed)
    B, T = 16, 11
    length = torch.randint(3, T + 1, (B,), generator=g)
    response = torch.arange(T) < length[:, None]
    prefix = torch.zeros(B, T, dtype=torch.bool)
    if hybrid and not demo:
        for b in (0, 5, 9):
            prefix[b, : max(1, int(length[b]) - 2)] = True
    demos = response if demo else torch.zeros_like(response)
    logits = torch.randn(B, T, 13, generator=g, dtype=torch.float64)
    tokens = torch.randint(0, 13, (B, T), generator=g)
    table = logits.log_softmax(-1)
    logp = table.gather(-1, tokens[..., None])[..., 0]
    entropy = -(table.exp() * table).sum(-1)
    noise = torch.randn(2, B, T, generator=g, dtype=torch.float64)
    old, ref = logp + 0.3 * noise[0], logp + 0.3 * noise[1]
    reward = torch.randint(0, 3, (B,), generator=g).double() / 2
    reward[3] = NAN
    if poison:
        old[~response], ref[~response] = NAN, torch.inf
        logp[~response], entropy[~response] = torch.inf, NAN
    batch = Batch(
        tokens,
        response,
        prefix,
        demos,
        old,
        reward,
        torch.arange(B) % 2,
        ref_logp_BT=ref,
        truncated_B=torch.rand(B, generator=g) < 0.3,
    )
    return batch, logp.requires_grad_(), entropy.requires_grad_()


AGGREGATIONS = ["token_mean", "seq_mean_token_mean", "sum_over_const"]


def test_a_mean_of_micro_batch_means_is_seen() -> None:
    method = load("prefix_rft", aggregation="token_mean")
    batch, logp, entropy = make_batch(0)
    whole = loss(method, batch, logp, entropy).loss
    halves = [slice(0, 8), slice(8, 16)]
    means = sum(loss(method, batch.part(h), logp[h], entropy[h]).loss for h in halves) / 2
    assert (whole - means).abs() > 1e-3


def test_by_hand() -> None:
    """Two groups of two rows; the first row of each is hybrid; T = 3.

    Rewards 1, 0 | 0, 1: advantages +1/2, -1/2 | -1/2, +1/2. Old log-probs equal the new ones but
    for row 0, position 2: ratio exp(0.5) = 1.6487, clipped to 1.2 for a positive advantage.
    Prefix entropies: row 0 (2, 1), row 2 (4): 3 candidates, 20 % is 1 token: row 2, position 0.

        row 0   prefix 0 0, continuation min(1.6487/2, 1.2/2) = 0.6      gradient 0 (clipped)
        row 1   two tokens at -1/2                                       gradient -1/2 each
        row 2   prefix kept -1/2, continuation -1/2                      gradient -1/2 each
        row 3   one token at +1/2                                        gradient +1/2
        sum 0.6 - 1 - 1 + 0.5 = -0.9; 3 + 2 + 2 + 1 = 8 tokens; loss = 0.9 / 8 = 0.1125
    """
    t = torch.tensor
    response = t([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]).bool()
    prefix = t([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool()
    logp = torch.full((4, 3), -1.0, dtype=torch.float64, requires_grad=True)
    old = logp.detach().clone()
    old[0, 2] = -1.5
    entropy = t([[2.0, 1.0, 9.0], [9, 9, 9], [4, 9, 9], [9, 9, 9]]).double()
    batch = Batch(
        torch.zeros(4, 3, dtype=torch.int64),
        response,
        prefix,
        torch.zeros_like(prefix),
        old,
        t([1.0, 0, 0, 1]),
        t([0, 0, 1, 1]),
    )
    out = loss(load("prefix_rft", aggregation="token_mean"), batch, logp, entropy)
    assert out.loss.item() == pytest.approx(0.1125, abs=1e-12)
    (gradient,) = gradients(out.loss, logp)
    expected = t([[0, 0, 0], [1, 1, 0], [1, 1, 0], [-1.0, 0, 0]]).double() / 16
    assert torch.allclose(gradient, expected, atol=1e-12)
    assert out.metrics["prefix/kept"] == pytest.approx(1 / 3)
    assert out.metrics["policy/reward"] == 0.5
    assert out.metrics["prefix/reward"] == 0.5
    assert out.metrics["prefix/token_share"] == pytest.approx(3 / 8)
    # Eight acting tokens less two zeroed ones, of which one is clipped.
    assert out.metrics["clip_ratio/region_mean"] == pytest.approx(1 / 6)
    # The same numbers with the other normalisers: rows of 3, 2, 2, 1 tokens; and 4 rows x const 5.
    rows = loss(load("prefix_rft", aggregation="seq_mean_token_mean"), batch, logp, entropy)
    assert rows.loss.item() == pytest.approx(-(0.6 / 3 - 1 / 2 - 1 / 2 + 0.5) / 4, abs=1e-12)
    const = loss(load("prefix_rft", const=5), batch, logp, entropy)
    assert const.loss.item() == pytest.approx(0.9 / 20, abs=1e-12)


METHODS = ["prefix_rft", "dr_grpo", "grpo", "sft"]


@pytest.mark.parametrize(
    ("name", "aggregation"),
    rest_slow(product(METHODS, AGGREGATIONS), each_once("prefix_rft", AGGREGATIONS[0])),
)
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 15), unique=True), st.integers(0, 5), st.randoms())
def test_shares_of_micro_batches_add_up(
    name: str, aggregation: str, cuts: list[int], seed: int, rng: Any
) -> None:
    method = load(name, aggregation=aggregation)
    batch, logp, entropy = make_batch(seed, demo=name == "sft")
    whole = loss(method, batch, logp, entropy)
    order = list(range(16))
    rng.shuffle(order)
    edges = [0, *sorted(cuts), 16]
    targets = prepare(method, batch, entropy)
    total, stats = torch.zeros((), dtype=torch.float64), {}
    for start, end in itertools.pairwise(edges):
        rows = torch.tensor(order[start:end])
        width = int(batch.response_mask_BT[rows].sum(1).max())
        out = loss(
            method,
            batch.part(rows, width),
            logp[rows, :width],
            entropy[rows, :width],
            targets=targets.part(rows, width),
        )
        total = total + out.loss
        for key, (s, n) in out.stats.items():
            old = stats.get(key, (0.0, 0.0))
            stats[key] = (old[0] + s.item(), old[1] + n.item())
    assert total.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    for a, b in zip(gradients(total, logp), gradients(whole.loss, logp), strict=True):
        assert (a - b).abs().max() < 1e-12
    means = {k: s / n for k, (s, n) in stats.items() if n}
    assert means == pytest.approx(whole.metrics, abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_without_hybrid_rows_it_is_dr_grpo_bit_for_bit(aggregation: str) -> None:
    for seed in range(5):
        batch, logp, entropy = make_batch(seed, hybrid=False)
        out = [
            loss(load(name, aggregation=aggregation), batch, logp, entropy).loss
            for name in ("prefix_rft", "dr_grpo")
        ]
        assert torch.equal(*out)
        assert torch.equal(gradients(out[0], logp)[0], gradients(out[1], logp)[0])
    assert load("prefix_rft").normaliser.aggregation == load("dr_grpo").normaliser.aggregation


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", METHODS)
def test_empty_streams_and_flat_groups_are_zero(name: str, aggregation: str) -> None:
    method = load(name, aggregation=aggregation)
    # Rollouts for sft, demonstrations for the others: nothing to train.
    batch, logp, entropy = make_batch(0, demo=name != "sft")
    out = loss(method, batch, logp, entropy)
    assert out.loss.item() == 0
    assert torch.equal(gradients(out.loss, logp)[0], torch.zeros_like(logp))
    if name != "sft":
        batch, logp, entropy = make_batch(0)
        flat = replace(batch, reward_B=torch.full((16,), 0.1, dtype=torch.float64))
        out = loss(method, flat, logp, entropy)
        assert out.loss.item() == 0
        assert torch.equal(gradients(out.loss, logp)[0], torch.zeros_like(logp))
    assert all(x == x and abs(x) < 1e9 for x in out.metrics.values())


def test_no_old_policy_is_a_ratio_of_one() -> None:
    method = load("prefix_rft")
    batch, logp, entropy = make_batch(0)
    now = loss(method, replace(batch, old_logp_BT=logp.detach()), logp, entropy).loss
    none = loss(method, replace(batch, old_logp_BT=None), logp, entropy).loss
    assert torch.equal(now, none)
    assert torch.equal(gradients(now, logp)[0], gradients(none, logp)[0])


def test_sampler_weights_act_on_the_policy_gradient_alone() -> None:
    batch, logp, entropy = make_batch(0)
    weight = torch.full_like(logp, 3.0).detach()
    heavy = replace(batch, weight_BT=weight)
    method = load("prefix_rft")
    once, thrice = (loss(method, b, logp, entropy).loss for b in (batch, heavy))
    assert thrice.item() == pytest.approx(3 * once.item(), rel=1e-12)
    plain, kl = load("prefix_rft"), load("prefix_rft", beta=0.7)
    parts = [
        loss(kl, b, logp, entropy).loss - loss(plain, b, logp, entropy).loss for b in (batch, heavy)
    ]
    assert parts[0].item() == pytest.approx(parts[1].item(), rel=1e-9)


def test_what_contradicts_itself_is_refused() -> None:
    batch, logp, entropy = make_batch(0)
    with pytest.raises(ValueError, match="must lie inside response_mask_BT"):
        replace(batch, prefix_mask_BT=~batch.response_mask_BT)
    with pytest.raises(ValueError, match="a token has one origin"):
        replace(batch, demo_mask_BT=batch.prefix_mask_BT)
    with pytest.raises(ValueError, match=r"reward_B must have shape \(16,\)"):
        replace(batch, reward_B=batch.reward_B[:3])
    with pytest.raises(ValueError, match="prefix_mask_BT must be bool"):
        replace(batch, prefix_mask_BT=batch.prefix_mask_BT.long())
    with pytest.raises(ValueError, match="selects prefix tokens by entropy, but got none"):
        loss(load("prefix_rft"), batch, logp)
    with pytest.raises(ValueError, match="needs ref_logp_BT"):
        loss(load("grpo", beta=0.1), replace(batch, ref_logp_BT=None), logp, entropy)
    with pytest.raises(ValueError, match="needs entropies"):
        loss(load("grpo", entropy_coef=0.1), batch, logp)

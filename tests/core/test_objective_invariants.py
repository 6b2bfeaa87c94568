"""What holds for the objective whatever the rows: splits, processes, nothing to train, weights."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from batches import gradients as grads
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned import leaf, make
from torch import Tensor

from prefix_rft.core import Method, Stream, advantages, loss, prepare, select_prefix
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import linear
from prefix_rft.methods import load
from tables import rest_slow

NAN = float("nan")
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const")

EVERY = [
    ("prefix_rft", {"beta": 0.2, "entropy_coef": 0.1, "truncated": "mask"}),
    ("prefix_rft", {"prefix_loss": "static", "advantage": "prefix_group"}),
    ("prefix_rft", {"entropy_scope": "row", "advantage": "policy_baseline"}),
    ("prefix_rft", {"entropy_mode": "random", "entropy_keep": 0.4}),
    ("dr_grpo", {"beta": 0.2}),
    ("grpo", {"delta": 1.5}),
    ("sft", {}),
]


def shares(method: Method, made: tuple, pieces: list[list[int]], trim: bool = True) -> Any:
    """The sum of the losses of the pieces, from one ``prepare`` of the whole."""
    _, batch, _, logp, entropy = made
    targets = prepare(method, batch, entropy)
    total = 0.0
    for piece in pieces:
        rows = torch.tensor(piece)
        used = batch.response_mask_BT[rows].any(0).nonzero()
        width = (int(used.max()) + 1 if len(used) else 1) if trim else None
        part = loss(
            method,
            batch.part(rows, width),
            logp[rows, :width],
            entropy[rows, :width],
            targets=targets.part(rows, width),
        )
        assert all(math.isfinite(x) for x in part.metrics.values())
        total = total + part.loss
    return total


@pytest.mark.parametrize(
    ("name", "options", "aggregation"),
    rest_slow(
        ((*case, aggregation) for case in EVERY for aggregation in AGGREGATIONS),
        lambda name, options, aggregation: (
            aggregation == AGGREGATIONS[0] or (name, options) == EVERY[0]
        ),
    ),
    ids=str,
)
def test_equal_micro_batches_and_order(name: str, options: dict, aggregation: str) -> None:
    method = load(name, aggregation=aggregation, **options)
    made = make(5, B=16)
    whole = loss(method, made[1], made[3], made[4]).loss
    (expected,) = grads(whole, made[2])
    assert expected.abs().max() > 1e-6
    for n in (1, 2, 4, 8, 16):
        size = 16 // n
        pieces = [list(range(s, s + size)) for s in range(0, 16, size)]
        for trim in (True, False):
            total = shares(method, made, pieces, trim)
            assert total.item() == pytest.approx(whole.item(), abs=1e-12)
            assert (grads(total, made[2])[0] - expected).abs().max() < 1e-12
    if options.get("entropy_mode") != "random":
        rows = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        turned = loss(method, made[1].part(rows), made[3][rows], made[4][rows]).loss
        assert turned.item() == pytest.approx(whole.item(), abs=1e-12)
        assert (grads(turned, made[2])[0] - expected).abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.sampled_from(AGGREGATIONS),
    st.integers(0, 50),
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
def test_any_split_adds_up(case: tuple, aggregation: str, seed: int, where: list[int]) -> None:
    """Each row goes to any of five micro-batches, in any mixture of groups."""
    method = load(case[0], aggregation=aggregation, **case[1])
    made = make(seed)
    pieces = [[i for i, w in enumerate(where) if w == p] for p in range(5)]
    total = shares(method, made, [p for p in pieces if p])
    whole = loss(method, made[1], made[3], made[4]).loss
    assert total.item() == pytest.approx(whole.item(), abs=1e-12)
    assert (grads(total, made[2])[0] - grads(whole, made[2])[0]).abs().max() < 1e-12


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", ["prefix_rft", "grpo", "sft"])
def test_two_processes_add_up(name: str, aggregation: str) -> None:
    """Counts come from every process; advantages and selection are fixed over all rows first."""
    method = load(name, aggregation=aggregation)
    _, batch, theta, logp, entropy = make(8)
    whole = loss(method, batch, logp, entropy).loss
    adv = advantages(method, batch.reward_B, batch.group_B, batch.hybrid_B, batch.demo_B)
    keep = select_prefix(method, batch.prefix_mask_BT, entropy, 0)
    ranks, said = [torch.arange(0, 5), torch.arange(5, 12)], [[], []]

    def run(rank: int, all_sum: Any) -> Tensor:
        rows = ranks[rank]
        targets = prepare(
            method,
            batch.part(rows),
            entropy[rows],
            advantage_SB=adv[:, rows],
            keep_BT=keep[rows],
            all_sum=all_sum,
        )
        return loss(method, batch.part(rows), logp[rows], entropy[rows], targets=targets).loss

    for rank in (0, 1):  # first hear what each process would add ...
        run(rank, lambda x, rank=rank: said[rank].append(x.clone()) or x)
    assert len(said[0]) == len(said[1]) > 0
    total = torch.zeros((), dtype=torch.float64)
    for rank in (0, 1):  # ... then let both hear the sums
        sums = iter([a + b for a, b in zip(*said, strict=True)])
        total = total + run(rank, lambda x, sums=sums: next(sums).to(x))
    assert total.item() == pytest.approx(whole.item(), abs=1e-12)
    assert (grads(total, theta)[0] - grads(whole, theta)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.2, "entropy_coef": 0.1}, {"truncated": "mask", "delta": 1.5}],
    ids=str,
)
@pytest.mark.parametrize("prefix_loss", ["clip", "unclipped", "frozen", "all", "static"])
def test_no_hybrid_row_is_dr_grpo(options: dict, aggregation: str, prefix_loss: str) -> None:
    _, batch, theta, logp, entropy = make(9, hybrid=False)
    ours = load("prefix_rft", aggregation=aggregation, prefix_loss=prefix_loss, **options)
    a = loss(ours, batch, logp, entropy).loss
    b = loss(load("dr_grpo", aggregation=aggregation, **options), batch, logp, entropy).loss
    assert a.item() != 0
    assert torch.equal(a, b)
    assert torch.equal(grads(a, theta)[0], grads(b, theta)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_to_train_is_zero(aggregation: str, dtype: torch.dtype) -> None:
    """No demonstration for sft; no rollout for the others; a batch with no response token."""
    _, batch, _, logp, entropy = make(10, hybrid=False, demo=False)
    nothing = torch.zeros_like(batch.response_mask_BT)
    empty = replace(batch, response_mask_BT=nothing)
    demos = replace(batch, demo_mask_BT=batch.response_mask_BT)
    cases = [("sft", batch), ("sft", empty), ("prefix_rft", empty), ("grpo", empty)]
    for name, b in [*cases, ("grpo", demos), ("prefix_rft", demos)]:
        x = leaf(logp.to(dtype))
        out = loss(load(name, aggregation=aggregation), b, x, entropy.to(dtype))
        assert out.loss.item() == 0
        assert out.loss.requires_grad
        assert torch.equal(grads(out.loss, x)[0], torch.zeros_like(x))
        assert all(math.isfinite(v) for v in out.metrics.values())


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("name", ["prefix_rft", "dr_grpo", "grpo"])
def test_flat_groups_teach_nothing(name: str, reward: float) -> None:
    _, batch, _, logp, entropy = make(11)
    for dtype in (torch.float32, torch.float64):
        flat = replace(batch, reward_B=torch.full((12,), reward, dtype=dtype))
        x = leaf(logp)
        out = loss(load(name), flat, x, entropy)
        assert torch.equal(grads(out.loss, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
def test_no_old_policy_is_the_present_one(name: str, options: dict) -> None:
    _, batch, theta, logp, entropy = make(12)
    method = load(name, **options)
    none = loss(method, replace(batch, old_logp_BT=None), logp, entropy).loss
    now = loss(method, replace(batch, old_logp_BT=logp.detach()), logp, entropy).loss
    assert none.item() == pytest.approx(now.item(), abs=1e-15)
    assert (grads(none, theta)[0] - grads(now, theta)[0]).abs().max() < 1e-15


def test_weights_leave_the_regularisers_alone() -> None:
    """With every weight 0 only KL and entropy are left."""
    _, batch, theta, logp, entropy = make(13)
    zero = replace(batch, weight_BT=torch.zeros_like(logp).detach())
    flat = replace(zero, weight_BT=None, reward_B=torch.ones(12, dtype=torch.float64))
    method = load("prefix_rft", beta=0.3, entropy_coef=0.2)
    a, b = (loss(method, x, logp, entropy).loss for x in (zero, flat))
    assert a.item() == pytest.approx(b.item(), abs=1e-14)
    assert (grads(a, theta)[0] - grads(b, theta)[0]).abs().max() < 1e-14
    bare = loss(load("prefix_rft"), zero, logp, entropy).loss
    assert bare.item() == 0


def test_a_coefficient_follows_the_step() -> None:
    """CHORD's shape: (1 - mu) policy + mu demonstration, mu from 1 to 0 over 4 steps."""
    streams = (
        Stream("policy", ("policy",), coefficient=linear(0.0, 1.0, 4)),
        Stream("demonstration", ("demonstration",), "logp", 1.0, coefficient=linear(1.0, 0.0, 4)),
    )
    method = Method("mix", streams, rows=RandomPrefix(num_demonstrations=1))
    _, batch, _, logp, entropy = make(14, hybrid=False, weight=False)
    ends = [loss(method, batch, logp, entropy, step=s).loss.item() for s in (0, 4)]
    for step in (1, 3, 9):
        here = loss(method, batch, logp, entropy, step=step).loss.item()
        share = min(step, 4) / 4
        assert here == pytest.approx((1 - share) * ends[0] + share * ends[1], abs=1e-12)
    sft = load("sft")
    assert ends[0] == pytest.approx(loss(sft, batch, logp, entropy).loss.item(), abs=1e-12)


def test_an_open_coefficient_spans_the_run() -> None:
    method = Method("fade", (Stream("p", ("policy",), coefficient=linear(1.0, 0.0)),))
    _, batch, _, logp, _ = make(15)
    start = loss(method, batch, logp, step=0, total_steps=10).loss.item()
    assert start != 0
    middle = loss(method, batch, logp, step=5, total_steps=10).loss.item()
    assert middle == pytest.approx(start / 2, abs=1e-15)


def test_random_selection_keeps_the_count_and_turns_with_the_step() -> None:
    _, batch, _, _, entropy = make(16, B=40)
    method = load("prefix_rft", entropy_mode="random", entropy_keep=0.3)
    n = int(batch.prefix_mask_BT.sum())
    keeps = [select_prefix(method, batch.prefix_mask_BT, entropy, s) for s in (0, 0, 1)]
    assert all(int(k.sum()) == math.ceil(Fraction(3, 10) * n) for k in keeps)
    assert all(not (k & ~batch.prefix_mask_BT).any() for k in keeps)
    assert torch.equal(keeps[0], keeps[1])
    assert not torch.equal(keeps[0], keeps[2])


def test_entropies_at_other_tokens_do_not_select() -> None:
    """Only prefix entropies rank; those of continuations and plain rows may be anything."""
    _, batch, theta, logp, entropy = make(17)
    wild = entropy.detach().clone()
    wild[~batch.prefix_mask_BT] = NAN
    method = load("prefix_rft")
    a, b = (loss(method, batch, logp, e).loss for e in (entropy, wild))
    assert torch.equal(a, b)
    assert torch.equal(grads(a, theta)[0], grads(b, theta)[0])


def test_selection_carries_no_gradient() -> None:
    _, batch, _, logp, entropy = make(18)
    e = leaf(entropy)
    out = loss(load("prefix_rft"), batch, leaf(logp), e)
    assert torch.equal(grads(out.loss, e)[0], torch.zeros_like(e))

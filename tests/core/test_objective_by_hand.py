"""Outcomes, gates, levels and normalisers against numbers worked out by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefix_rft.core import Batch, Method, Stream, advantages, dropped, loss, prepare, with_sequence
from prefix_rft.core.advantage import group_advantage
from prefix_rft.core.outcome import all_right, all_wrong, overlong_penalty, solve_rate, solved
from prefix_rft.core.parts import Normaliser, Overlong
from prefix_rft.core.schedules import linear
from prefix_rft.core.surrogate import ratio
from prefix_rft.core.weights import Scores, Weight, probability
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError

NAN, INF = float("nan"), float("inf")
t = torch.tensor
POLICY, DEMO = ("policy",), ("demonstration",)


# ---- outcomes ------------------------------------------------------------------------------------


def test_solve_rates() -> None:
    reward = t([1.0, 0.0, 0.5, NAN, 1.0, 1.0, 0.0, NAN])
    group = t([7, 7, 7, 7, 2, 2, 5, 9])
    every = torch.ones(8, dtype=torch.bool)
    assert solved(reward, 0.0).tolist() == [True, False, True, False, True, True, False, False]
    rate = solve_rate(reward, group, every, 0.0)
    assert rate[:7].tolist() == pytest.approx([2 / 3] * 4 + [1.0, 1.0, 0.0])
    assert math.isnan(rate[7])
    assert all_right(rate).tolist() == [False] * 4 + [True, True, False, False]
    assert all_wrong(rate).tolist() == [False] * 6 + [True, False]
    # "Above" is above: 0.5 is not solved at 0.5; and rows that are left out do not count.
    assert solve_rate(reward, group, every, 0.5)[0].item() == pytest.approx(1 / 3)
    without = every & (torch.arange(8) != 0)
    assert solve_rate(reward, group, without, 0.0)[:4].tolist() == [0.5] * 4
    assert math.isnan(solve_rate(reward, group, ~every, 0.0)[0])
    assert len(solve_rate(reward[:0], group[:0], every[:0], 0.0)) == 0


def test_the_price_of_long_rows() -> None:
    """DAPO Eq. 13 with 20 tokens of which 4 are the buffer: 0 up to 16, -1 from 20 on."""
    length = t([0, 1, 15, 16, 17, 18, 19, 20, 21, 100])
    expected = [0, 0, 0, 0, -0.25, -0.5, -0.75, -1, -1, -1]
    assert overlong_penalty(length, 20, 4, 1.0).tolist() == pytest.approx(expected)
    assert overlong_penalty(length, 20, 4, 0.5).tolist() == pytest.approx([x / 2 for x in expected])
    assert overlong_penalty(t([0, 5, 10]), 10, 10, 1.0).tolist() == pytest.approx([0, -0.5, -1])
    for buffer in (0, 21):
        with pytest.raises(UserError, match=r"must be in \[1, 20\]"):
            overlong_penalty(length, 20, buffer, 1.0)
    method = load("dapo")
    assert method.groups.overlong == Overlong(0.2, 1.0)


def test_flat_groups_that_are_dropped() -> None:
    reward = t([0.0, 0, 1, 1, 1, 0, NAN, NAN, 1.0])
    group = t([0, 0, 1, 1, 2, 2, 3, 3, 0])
    demo = torch.arange(9) == 8  # a right demonstration does not solve its group
    wrong, right = {0, 1, 8}, {2, 3}

    def out(**options: str) -> set[int]:
        got = dropped(load("grpo", **options), reward, group, demo)
        return set(got.nonzero()[:, 0].tolist())

    assert out() == set()
    assert out(all_wrong="drop") == out(all_wrong="resample") == wrong
    assert out(all_right="drop") == out(all_right="resample") == right
    assert out(all_wrong="lengthen", all_right="keep") == set()
    assert out(all_wrong="demonstration") == set()
    assert out(all_wrong="drop", all_right="drop") == wrong | right
    assert set(dropped(load("dapo"), reward, group, demo).nonzero()[:, 0].tolist()) == wrong | right
    high = dropped(load("grpo", all_wrong="drop", solved_above=1.0), reward, group, demo)
    assert set(high.nonzero()[:, 0].tolist()) == {0, 1, 2, 3, 4, 5, 8}


# ---- a batch worked out by hand ------------------------------------------------------------------


def batch(rows: list[str], reward: list[float], group: list[int], **how: Any) -> Batch:
    """Rows of letters: p(refix), s(ampled), d(emonstration), and a space for none."""
    T = max(map(len, rows))
    kind = [list(row.ljust(T)) for row in rows]

    def where(letters: str) -> Tensor:
        return t([[k in letters for k in row] for row in kind])

    return Batch(
        torch.zeros(len(rows), T, dtype=torch.int64),
        where("psd"),
        where("p"),
        where("d"),
        how.pop("old", None),
        t(reward, dtype=torch.float64),
        t(group),
        **how,
    )


def gradient(method: Method, b: Batch, logp: Tensor | None = None, **how: Any) -> list[list[float]]:
    if logp is None:
        logp = torch.full(b.tokens_BT.shape, -1.0, dtype=torch.float64)
    logp = logp.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(method, b, logp, **how).loss, logp)
    return g.tolist()


def one(surrogate: str = "logp", tokens: tuple = POLICY, value: Any = 1.0, **how: Any) -> Method:
    """A method of one stream."""
    normaliser = Normaliser(**{k: how.pop(k) for k in ("aggregation", "const") if k in how})
    stream = Stream("only", tokens, surrogate, value, **how)
    return Method("one", (stream,), normaliser=normaliser)


B = batch(["ss", "sss", "pss", "d"], [1.0, 0.0, 1.0, 1.0], [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # 5 tokens of on-policy rows.
        (one(), [[-1 / 5] * 2 + [0], [-1 / 5] * 3, [0, 0, 0], [0, 0, 0]]),
        # All nine tokens are counted, five are trained.
        (one(count=("policy", "prefix", "continuation", "demonstration")),
         [[-1 / 9] * 2 + [0], [-1 / 9] * 3, [0, 0, 0], [0, 0, 0]]),
        # The one solved on-policy row: its own two tokens, or all five.
        (one(value="solved", counts="trained"), [[-1 / 2] * 2 + [0], *[[0, 0, 0]] * 3]),
        (one(value="solved"), [[-1 / 5] * 2 + [0], *[[0, 0, 0]] * 3]),
        (one(value="unsolved"), [[0, 0, 0], [1 / 5] * 3, *[[0, 0, 0]] * 2]),
        (one(value="reward", tokens=("continuation",)),
         [[0, 0, 0], [0, 0, 0], [0, -1 / 2, -1 / 2], [0, 0, 0]]),
        # A plain sum over a constant: no row and no token is counted.
        (one(aggregation="sum", const=4.0), [[-1 / 4] * 2 + [0], [-1 / 4] * 3, *[[0, 0, 0]] * 2]),
        (one(aggregation="sum_over_const", const=4.0),
         [[-1 / 8] * 2 + [0], [-1 / 8] * 3, *[[0, 0, 0]] * 2]),
        (one(aggregation="seq_mean_token_mean"),
         [[-1 / 4] * 2 + [0], [-1 / 6] * 3, *[[0, 0, 0]] * 2]),
        # Trained rows alone: one row of two tokens.
        (one(value="solved", counts="trained", aggregation="seq_mean_token_mean"),
         [[-1 / 2] * 2 + [0], *[[0, 0, 0]] * 3]),
        (one(value="solved", counts="trained", aggregation="sum_over_const", const=3.0),
         [[-1 / 3] * 2 + [0], *[[0, 0, 0]] * 3]),
        # One counted row, a demonstration; each trained row over its own tokens.
        (one(count=DEMO, aggregation="seq_mean_token_mean"),
         [[-1 / 2] * 2 + [0], [-1 / 3] * 3, *[[0, 0, 0]] * 2]),
        # exp(-1), and the detached exp(-1) as a weight.
        (one("likelihood"),
         [[-math.exp(-1) / 5] * 2 + [0], [-math.exp(-1) / 5] * 3, *[[0, 0, 0]] * 2]),
        (one(weight=probability(), tokens=DEMO), [*[[0, 0, 0]] * 3, [-math.exp(-1), 0, 0]]),
        # The stream's own normaliser goes before the method's.
        (Method("m", (Stream("s", DEMO, "logp", 1.0, aggregation="sum"),),
                normaliser=Normaliser(const=5.0)),
         [*[[0, 0, 0]] * 3, [-1 / 5, 0, 0]]),
    ],
)  # fmt: skip
def test_normalisers(method: Method, expected: list[list[float]]) -> None:
    for row, wanted in zip(gradient(method, B), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)


def test_the_default_constant_is_the_papers_budget() -> None:
    assert gradient(one(aggregation="sum"), B)[1] == pytest.approx([-1 / 8192] * 3)


def test_a_coefficient_follows_its_schedule() -> None:
    method = one(coefficient=linear(1.0, 0.0))
    for step, c in ((0, 1.0), (5, 0.5), (10, 0.0)):
        got = gradient(method, B, step=step, total_steps=10)
        assert got[1] == pytest.approx([-c / 5] * 3)


def test_dropped_rows_count_nowhere() -> None:
    out = t([False, True, False, False])
    b = replace(B, dropped_B=out)
    everyone = ("policy", "prefix", "continuation", "demonstration")
    assert gradient(one(), b)[0] == pytest.approx([-1 / 2, -1 / 2, 0])
    assert gradient(one(), b)[1] == [0, 0, 0]
    assert gradient(one(count=everyone), b)[0] == pytest.approx([-1 / 6, -1 / 6, 0])
    per_row = one(count=everyone, aggregation="seq_mean_token_mean")
    assert gradient(per_row, b)[0] == pytest.approx([-1 / 6, -1 / 6, 0])
    const = one(aggregation="sum_over_const", const=2.0)
    assert gradient(const, b)[0] == pytest.approx([-1 / 2, -1 / 2, 0])
    # Regularisers leave them out as well, and sliced rows keep their mark.
    both = load("grpo", beta=1.0, entropy_coef=1.0)
    b = replace(b, ref_logp_BT=torch.full((4, 3), -2.0, dtype=torch.float64))
    entropy = torch.ones(4, 3, dtype=torch.float64).requires_grad_()
    logp = torch.full((4, 3), -1.0, dtype=torch.float64).requires_grad_()
    out = loss(both, b, logp, entropy).loss
    for g in torch.autograd.grad(out, (logp, entropy)):
        assert not g[1].any()
        assert g[0].any()
    assert b.part(slice(1, 3)).dropped_B.tolist() == [True, False]  # type: ignore[union-attr]
    without = replace(b.part(t([0, 2, 3])), dropped_B=None)
    rest = loss(both, without, logp[t([0, 2, 3])], entropy[t([0, 2, 3])]).loss
    same_advantages = loss(
        both,
        b,
        logp,
        entropy,
        targets=prepare(
            both,
            b,
            advantage_SB=advantages(
                both, b.reward_B.where(~b.dropped_B, NAN), b.group_B, b.hybrid_B, b.demo_B
            ),
        ),
    ).loss
    assert same_advantages.item() == pytest.approx(rest.item())


def test_dropped_rows_take_no_place_in_the_selection() -> None:
    """20 % of the five prefix tokens that are left is one."""
    b = batch(["ppppps"] * 2, [0.0, 1.0], [0, 1], dropped_B=t([True, False]))
    entropy = t([[9.0, 8, 7, 6, 5, 0], [1, 2, 3, 4, 5, 0]])
    targets = prepare(load("prefix_rft"), b, entropy, advantage_SB=torch.ones(3, 2))
    assert targets.keep_BT.tolist() == [[False] * 6, [False] * 4 + [True, False]]


# ---- gates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "rl_groups", "sft_groups"),
    [
        ("hpt", {}, {1, 2, 3}, {0}),
        ("hpt", {"gate": 0.25}, {2, 3}, {0, 1}),
        ("hpt", {"gate": 0.24}, {1, 2, 3}, {0}),
        ("hpt", {"gate": 0.5}, {3}, {0, 1, 2}),
        ("superrl", {}, {1, 2, 3}, {0}),
        ("superrl", {"solved_above": 0.5}, {1, 3}, {0, 2}),
    ],
)
def test_gates(name: str, options: dict, rl_groups: set[int], sft_groups: set[int]) -> None:
    """Four rollouts each: none right, one, two (partly: 0.5), all; group 4 has no reward.

    The demonstration, row 4 of each group, is right and does not count.
    """
    per_group = [[0.0] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [1.0, 1, 1, 0.75], [NAN] * 4]
    reward = t([r for rs in per_group for r in [*rs, 1.0]], dtype=torch.float64)
    group = torch.arange(5).repeat_interleave(5)
    demo = torch.arange(25) % 5 == 4
    method = load(name, **options)
    rl, sft = advantages(method, reward, group, torch.zeros_like(demo), demo)[:2]
    assert {int(g) for g in group[(rl != 0) & ~demo]} == rl_groups
    assert {int(g) for g in group[(sft != 0) & demo]} == sft_groups
    assert set(sft[demo].tolist()) <= {0.0, 1.0}
    expected = group_advantage(reward, group, ~demo, method.baseline)
    for g in rl_groups:
        own = (group == g) & ~demo
        assert torch.equal(rl[own], expected[own])


def test_a_closed_gate_leaves_the_normaliser() -> None:
    b = batch(["s", "s", "d", "s", "s", "d"], [0.0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])
    got = gradient(load("hpt", entropy_coef=0.0, const=1.0), b)
    assert got == [[0.0], [0.0], [pytest.approx(-1 / 6)], [pytest.approx(-0.5 / 6)],
                   [pytest.approx(0.5 / 6)], [0.0]]  # fmt: skip


@pytest.mark.parametrize("surrogate", ["kl", "entropy"])
def test_a_regulariser_has_no_advantage(surrogate: str) -> None:
    """It acts on every row, whatever the rewards and the advantages given; but a gate holds."""
    b = batch(["s", "s", "s", "s"], [0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    for value in ("group", "solved", 1.0):
        method = one(surrogate, value=value)
        assert prepare(method, b).acts_SBT.all()
        assert prepare(method, b, advantage_SB=torch.zeros(1, 4)).acts_SBT.all()
        gated = one(surrogate, value=value, gate=(0.0, 1.0))
        assert prepare(gated, b).acts_SBT[0, :, 0].tolist() == [False, False, True, True]


def test_advantages_of_single_precision_rewards_are_double() -> None:
    """The mean of 0.1, 0.2 and 0.4, as single precision holds them, is not rounded again."""
    reward, none = t([0.1, 0.2, 0.4]), torch.zeros(3, dtype=torch.bool)
    (got,) = advantages(load("dr_grpo"), reward, torch.zeros(3, dtype=torch.int64), none, none)
    exact = reward.double() - reward.double().mean()
    assert got.dtype == torch.float64
    assert torch.allclose(got, exact, rtol=1e-14, atol=0)


# ---- the ratio of a row --------------------------------------------------------------------------


def test_a_ratio_of_the_sequence() -> None:
    """Log-ratios 0.3, -0.1 (mean 0.1) and 0.2; what is outside is 1."""
    logp = t([[-1.0, -2.0, NAN], [-0.5, INF, 0.0]], dtype=torch.float64)
    old = t([[-1.3, -1.9, 0.0], [-0.7, NAN, NAN]], dtype=torch.float64)
    b = batch(["ss", "s  "], [1.0, 0.0], [0, 0], old=old)
    mask = b.response_mask_BT
    tokens = ratio(b, logp, mask)
    assert tokens[mask].log().tolist() == pytest.approx([0.3, -0.1, 0.2])
    row = ratio(b, logp, mask, "sequence")
    assert row[mask].log().tolist() == pytest.approx([0.1, 0.1, 0.2])
    assert row[~mask].tolist() == tokens[~mask].tolist() == [1.0] * 3
    # d/d logp of the row's value: A exp(0.1)/2 from each of two tokens, over two tokens, two rows.
    method = load("gspo", epsilon=0.9, epsilon_high=9.0)
    half = 0.5 / (math.sqrt(0.5) + 1e-6)
    got = gradient(method, b, logp)
    assert got[0] == pytest.approx([-half * math.exp(0.1) / 4] * 2 + [0])
    assert got[1] == pytest.approx([half * math.exp(0.2) / 2, 0, 0])


def test_a_row_is_clipped_as_a_whole() -> None:
    """Ratios exp(0.3) and exp(-0.3): as tokens one is clipped, as a row (ratio 1) none is."""
    old = t([[-1.3, -0.7], [-1.0, -1.0]], dtype=torch.float64)
    b = batch(["ss", "ss"], [1.0, 0.0], [0, 0], old=old)
    tokens, row = gradient(load("grpo"), b), gradient(load("gspo", epsilon=0.2), b)
    assert tokens[0][0] == 0
    assert tokens[0][1] < 0
    assert row[0][0] == pytest.approx(row[0][1])
    assert row[0][0] < 0


# ---- contrasts and weights of someone else's -----------------------------------------------------


def test_a_contrasts_advantages_reach_the_streams_that_ask() -> None:
    asks, other = Stream("a", POLICY, "logp", "sequence"), Stream("b", DEMO, "logp", 1.0)
    method = replace(load("irft"), streams=(asks, other))
    before = t([[1.0, 1.0], [2.0, 3.0]])
    assert with_sequence(method, before, t([7.0, 8.0])).tolist() == [[7.0, 8.0], [2.0, 3.0]]


def test_a_gate_holds_for_a_contrast_too() -> None:
    """No rollout of group 0 is solved, so a gate on solved groups leaves it out."""
    stream = Stream("s", POLICY, "logp", "sequence", gate=(0.0, 1.0))
    method = Method("m", (stream,), contrast=load("irft").contrast)
    b = batch(["s"] * 4, [0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1])
    before = advantages(method, b.reward_B, b.group_B, b.hybrid_B, b.demo_B)
    after = with_sequence(method, before, t([7.0, 7, 7, 7], dtype=torch.float64))
    assert after.tolist() == [[0.0, 0.0, 7.0, 7.0]]


def test_what_a_weight_sees_is_0_outside_the_streams_tokens() -> None:
    seen: list[Scores] = []

    def of(s: Scores) -> Tensor:
        seen.append(s)
        return torch.ones_like(s.logp_BT)

    rubbish = torch.full((4, 3), NAN, dtype=torch.float64)
    logp, entropy, ref = (rubbish.where(~B.demo_mask_BT, x) for x in (-1.0, 2.0, -3.0))
    b = replace(B, ref_logp_BT=ref)
    gradient(one(weight=Weight("w", of), tokens=DEMO), b, logp, entropy_BT=entropy)
    assert seen  # by the loss, and by the metric of the weight
    for s in seen:
        assert torch.equal(s.mask_BT, B.demo_mask_BT)
        for x, value in ((s.logp_BT, -1.0), (s.entropy, 2.0), (s.ref_logp_BT, -3.0)):
            assert torch.equal(x, value * B.demo_mask_BT.double())
            assert not x.requires_grad
        assert s.log_ratio_to_ref[B.demo_mask_BT].tolist() == [2.0]


@pytest.mark.parametrize(
    "of", [lambda s: s.logp_BT[:, 0], lambda s: s.logp_BT[:1], lambda s: s.logp_BT.T]
)
def test_a_weight_of_another_shape_is_refused(of: Callable[[Scores], Tensor]) -> None:
    with pytest.raises(UserError, match=r"must have shape \(B, T\) or \(B, 1\)"):
        gradient(one(weight=Weight("w", of)), B)


def test_sampler_corrections_act_on_ratios_alone() -> None:
    """A factor of 3 on every token: three times the gradient where there is a ratio."""
    b = replace(B, ref_logp_BT=torch.full((4, 3), -2.0, dtype=torch.float64))
    heavy = replace(b, weight_BT=torch.full((4, 3), 3.0, dtype=torch.float64))
    for surrogate in ("clip", "ratio", "cispo", "logp", "likelihood", "kl"):
        once, thrice = (t(gradient(one(surrogate), x)) for x in (b, heavy))
        factor = 3.0 if surrogate in ("clip", "ratio", "cispo") else 1.0
        assert once.any()
        assert torch.allclose(thrice, factor * once)

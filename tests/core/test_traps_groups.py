"""Traps: who is compared with whom, flat groups, targets, temperature, and numbers far out."""

import math
from dataclasses import replace

import pytest
import torch
from test_traps import CONTRASTS, GROUPED, case, gradients
from torch import Tensor

from prefix_rft.core import Batch, Method, advantages, loss, prepare, with_sequence
from prefix_rft.core.contrast import Discriminative, SelfPlay, Sequences
from prefix_rft.core.weights import Scores, f_divergence, sequence_importance
from prefix_rft.methods import BUILT_IN, load

NAN, INF = float("nan"), float("inf")
t = torch.tensor
ON_POLICY = [n for n in BUILT_IN if any(s.advantage in GROUPED for s in load(n).streams)]
# Papers: the demonstration is a member of the group (LUFFY section 3, SRFT Eq. 7) or is not.
DEMO_IN = {"luffy", "srft"}
TRAIN_PREFIX = {"uft", "prefix_rft"}


def of_policy(method: Method) -> list[int]:
    """Streams with a group's advantage that train rollouts."""
    return [
        i
        for i, s in enumerate(method.streams)
        if s.advantage in GROUPED and set(s.tokens) & {"policy", "continuation"}
    ]


def group_of(rewards: list[float], *, demos: int = 0, hybrids: int = 0) -> tuple[Tensor, ...]:
    """Rewards, group ids, hybrid rows (first) and whole demonstrations (last)."""
    n, row = len(rewards), torch.arange(len(rewards))
    return t(rewards).double(), torch.zeros(n, dtype=torch.int64), row < hybrids, row >= n - demos


# ---- 4: composition of the group -----------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_demonstration_is_in_the_baseline_where_the_paper_has_it(name: str) -> None:
    method = load(name)
    one, two = (
        advantages(method, *group_of([1.0, 0.0, 0.0, 0.0, demo], demos=1)) for demo in (1.0, 0.0)
    )
    shifted = [not torch.equal(a[:4], b[:4]) for a, b in zip(one, two, strict=True)]
    grouped = [s.advantage in GROUPED for s in method.streams]
    assert shifted == [g and name in DEMO_IN for g in grouped]


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_rollout_without_mates_has_no_advantage(name: str) -> None:
    """0, and not its reward: also where the demonstration cannot be compared with."""
    method = load(name)
    for hybrids in (0, 1):
        alone = advantages(method, *group_of([1.0], hybrids=hybrids))
        ungraded = advantages(method, *group_of([1.0, NAN, NAN], demos=1, hybrids=hybrids))
        for s in of_policy(method):
            assert alone[s].tolist() == [0.0]
            assert ungraded[s].tolist() == [0.0, 0.0, 0.0]


def test_a_singleton_group_leaves_no_gradient() -> None:
    for name in ON_POLICY:
        c = case(name)
        alone = replace(c.batch, group_B=torch.arange(len(c.logp)))
        if "batch" in {s.advantage for s in c.method.streams}:
            continue  # there the group does not matter
        targets = prepare(c.method, alone, c.entropy.detach())
        for s in of_policy(c.method):
            assert not targets.acts_SBT[s].any()


def test_guided_rows_are_compared_with_guided_ones_alone() -> None:
    """POPE: hybrid rewards 1, 0 and plain 1, 0, 0, 0: std 1/sqrt(2) and 1/2."""
    plain, guided = advantages(load("pope"), *group_of([1.0, 0, 1, 0, 0, 0], hybrids=2))
    root = math.sqrt(0.5) + 1e-6
    assert guided[:2].tolist() == pytest.approx([0.5 / root, -0.5 / root])
    assert plain[2:].tolist() == pytest.approx([0.75 / 0.500001] + [-0.25 / 0.500001] * 3)


def test_a_batch_baseline_goes_over_groups() -> None:
    """QuestA: rewards 1, 1 | 0, 0: flat groups, but mean 1/2 and std 1/sqrt(3) over the batch."""
    reward, _, hybrid, demo = group_of([1.0, 1, 0, 0], hybrids=2)
    (got,) = advantages(load("questa"), reward, t([0, 0, 1, 1]), hybrid, demo)
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert got.tolist() == pytest.approx([a, a, -a, -a])


# ---- 5: flat groups ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -1.0])
def test_flat_groups_have_no_gradient(name: str, reward: float) -> None:
    c = case(name)
    flat = replace(c.batch, reward_B=torch.full_like(c.batch.reward_B, reward))
    targets = prepare(c.method, flat, c.entropy.detach())
    keep = of_policy(c.method)
    assert keep or name == "srft"
    assert not targets.acts_SBT[keep].any()
    rest = tuple(s for i, s in enumerate(c.method.streams) if i in keep)
    if rest:
        method = replace(c.method, streams=rest)
        (g,) = gradients(loss(method, flat, c.logp, c.entropy).loss, c.logp)
        assert not g.any()


def test_luffy_on_a_hard_prompt() -> None:
    """Seven rollouts fail, the demonstration is right: -1/8 each and +7/8; all right: 0."""
    method = load("luffy")
    policy, demonstration, _ = advantages(method, *group_of([0.0] * 7 + [1.0], demos=1))
    assert policy[:7].tolist() == [-0.125] * 7
    assert demonstration[7].item() == 0.875
    policy, demonstration, _ = advantages(method, *group_of([1.0] * 8, demos=1))
    assert not policy.any()
    assert not demonstration.any()


# ---- 7: temperature ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_methods_that_read_likelihoods_say_so(name: str) -> None:
    """Where all log-probs (old and reference ones too) move by the same amount, ratios stay."""
    c = case(name)
    moved = []
    for shift in (0.0, -0.4):
        assert c.batch.old_logp_BT is not None
        assert c.batch.ref_logp_BT is not None
        old, ref = c.batch.old_logp_BT + shift, c.batch.ref_logp_BT + shift
        batch = replace(c.batch, old_logp_BT=old, ref_logp_BT=ref)
        logp = (c.logp.detach() + shift).requires_grad_()
        value = loss(c.method, batch, logp, c.entropy, targets=c.targets).loss
        moved.append(gradients(value, logp)[0])
    reads = not torch.allclose(*moved, rtol=1e-9, atol=1e-15)
    assert reads == (name in {"luffy", "srft", "dft", "chord"})
    imitates = c.method.trains("demonstration")
    assert c.method.needs_unit_temperature or not (reads or imitates)


@pytest.mark.parametrize(("name", "how"), [("uft", {}), ("prefix_rft", {"prefix_loss": "static"})])
def test_likelihood_of_a_prefix_is_that_of_temperature_one(name: str, how: dict) -> None:
    assert load(name, **how).needs_unit_temperature


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "bread", "questa"])
def test_methods_of_ratios_have_any_temperature(name: str) -> None:
    assert not load(name).needs_unit_temperature


# ---- 8: targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_targets(name: str) -> None:
    """Never a prompt; a prefix in two methods; a demonstration up to and with its last token."""
    prefix = False
    for seed in range(4):
        c = case(name, seed=seed)
        demo = c.batch.demo_mask_BT
        last = demo & (demo.long().cumsum(1) == demo.sum(1, keepdim=True))
        # The end is the token that the policy is least sure of: MIFO picks such tokens.
        c.entropy = c.entropy.detach().where(~last, 9.0).requires_grad_()
        c.batch = replace(c.batch, old_logp_BT=None)
        gradient = c.run()[1]
        assert not gradient[~c.batch.response_mask_BT].any()
        prefix |= bool(gradient[c.batch.prefix_mask_BT].any())
        trained = (gradient * demo).any(1)
        assert bool(trained.any()) == c.method.trains("demonstration")
        assert gradient[last & trained[:, None]].all()
        if name not in ("mifo", "fdiv_sft"):
            assert gradient[demo & trained[:, None]].all()
    assert prefix == (name in TRAIN_PREFIX)


@pytest.mark.parametrize("name", sorted(TRAIN_PREFIX))
def test_hints_are_targets_only_while_there_are_any(name: str) -> None:
    c = case(name, "plain")
    hint = next(i for i, s in enumerate(c.method.streams) if s.tokens == ("prefix",))
    assert c.targets.scale_S[hint] == 0.0 or name == "prefix_rft"
    assert not c.targets.acts_SBT[hint].any()
    assert torch.isfinite(c.run()[1]).all()


# ---- 11: sums of whole sequences -----------------------------------------------------------------


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


# ---- 12: weights below zero, poles, unlikelihood -------------------------------------------------


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


# ---- groups that were sampled again ------------------------------------------------------------


def lengthens(name: str) -> bool:
    return load(name).trains("continuation") and load(name).contrast is None


@pytest.mark.parametrize("name", [n for n in BUILT_IN if lengthens(n)])
def test_a_group_that_branched_as_a_whole_is_trained(name: str) -> None:
    """``all_wrong: lengthen`` turns all rows but whole demonstrations into hybrid ones."""
    method = load(name, all_wrong="lengthen")
    demos = method.rows.num_demonstrations
    rewards, group, _, demo = group_of([1.0, 0.0, 0.0, *[1.0] * demos], demos=demos)
    got = advantages(method, rewards, group, ~demo, demo)
    sampled = [s for s, stream in enumerate(method.streams) if "continuation" in stream.tokens]
    trained = [s for s in sampled if method.streams[s].surrogate not in ("kl", "entropy")]
    assert got[trained][:, ~demo].any()

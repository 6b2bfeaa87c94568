"""The objective under its options and splits, with rubbish wherever nothing may be read."""

import math
import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import batches
import pytest
import torch
from batches import batch_of
from batches import gradients as grads
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefix_rft.core import Method, Stream, advantages, loss, prepare, select_prefix
from prefix_rft.core.planner import RandomPrefix
from prefix_rft.core.schedules import linear
from prefix_rft.methods import load
from second.objective import FORMULAS, Step
from second.objective.parts import DEMO, PAD, PREFIX, PROMPT, SAMPLED

NAN, INF = float("nan"), float("inf")
V = 7
GROUPS = (7, -3, 10**12)
AGGREGATIONS = ("token_mean", "seq_mean_token_mean", "sum_over_const")
RUBBISH = (NAN, INF, -INF, 1e300)


def make_rows(seed: int, B: int = 12, T: int = 9, hybrid: bool = True, demo: bool = True) -> dict:
    """Ragged rows of interleaved groups: plain, hybrid, whole demonstrations, one of them empty."""
    rng = random.Random(seed)
    rows: dict[str, list] = {"kind": [], "group": [], "reward": [], "truncated": []}
    for i in range(B):
        prompt, n = rng.randint(0, 2), rng.randint(2, T - 2)
        if i == 4:
            n = 0  # a rollout whose every token was masked out: still a rollout
        role = rng.random()
        if i in (1, 5):
            role = 0.1
        is_demo = demo and role > 0.85 and i != 4
        cut = rng.randint(1, max(1, n - 1)) if hybrid and role < 0.3 and n else 0
        body = [DEMO] * n if is_demo else [PREFIX] * cut + [SAMPLED] * (n - cut)
        rows["kind"].append([PROMPT] * prompt + body + [PAD] * (T - prompt - n))
        rows["group"].append(rng.choice(GROUPS))
        unknown = i == 6 or (i == 5 and seed % 2)
        rows["reward"].append(NAN if unknown else rng.choice((0.0, 0.1, 0.5, 1.0)))
        rows["truncated"].append(rng.random() < 0.3)
    return rows


def poisoned(values: Tensor, kind: list[list[str]], seed: int) -> Tensor:
    """The values, with NaN, infinities and huge numbers at prompts and padding."""
    rng, out = random.Random(seed), values.clone()
    for i, row in enumerate(kind):
        for t, k in enumerate(row):
            if k in (PROMPT, PAD):
                out[i, t] = rng.choice(RUBBISH)
    return out


def make(seed: int, *, old: bool = True, weight: bool = True, **kw: Any) -> tuple:
    """A step, a batch of it for the package, and a small policy's parameters and outputs."""
    rows = make_rows(seed, **kw)
    kind = rows["kind"]
    B, T = len(kind), len(kind[0])
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (B, T), generator=g)
    theta = torch.randn(V, V, generator=g, dtype=torch.float64, requires_grad=True)
    logp, entropy = policy(theta, tokens)
    noise = 0.35 * torch.randn(2, B, T, generator=g, dtype=torch.float64)
    weights = poisoned(0.5 + torch.rand(B, T, generator=g, dtype=torch.float64), kind, seed + 1)
    olds = poisoned(logp.detach() + noise[0], kind, seed + 2)
    refs = poisoned(logp.detach() + noise[1], kind, seed + 3)
    step = Step(
        **rows,
        logp=logp,
        entropy=entropy,
        old=olds.tolist() if old else None,
        ref=refs.tolist(),
        weight=weights.tolist() if weight else None,
    )
    return step, batch_of(step, tokens_BT=tokens), theta, logp, entropy


def policy(theta: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A bigram model, through log_softmax; fixed offsets keep any two entropies apart."""
    g = torch.Generator().manual_seed(99)
    offsets = torch.randn(*tokens.shape, V, generator=g, dtype=torch.float64) / 3
    table = (theta[torch.roll(tokens, 1, 1)] + offsets).log_softmax(-1)
    return table.gather(-1, tokens[..., None])[..., 0], -(table.exp() * table).sum(-1)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def agree(name: str, options: dict, seed: int, wrong: str = "", **kw: Any) -> bool:
    """Loss and gradients of the package and of the formula, through a model and as leaves."""
    step, batch, theta, *outputs = make(seed, **kw)
    # The same as leaves with rubbish at every position outside the responses.
    leaves = [leaf(poisoned(x.detach(), step.kind, seed + 4 + i)) for i, x in enumerate(outputs)]
    return batches.agree(name, options, batch, tuple(outputs), (theta,), wrong) and batches.agree(
        name, options, batch, tuple(leaves), leaves, wrong
    )


PREFIX_RFT: list[dict] = [
    {},
    {"prefix_loss": "unclipped"},
    {"prefix_loss": "unclipped", "entropy_keep": 1.0},
    {"prefix_loss": "unclipped", "entropy_keep": 1.0, "delta": 1.3},
    {"prefix_loss": "frozen"},
    {"prefix_loss": "all"},
    {"prefix_loss": "static", "static_weight": 0.3},
    {"advantage": "policy_baseline"},
    {"advantage": "prefix_group"},
    {"advantage": "prefix_group", "prefix_loss": "all"},
    {"advantage": "policy_baseline", "prefix_loss": "unclipped"},
    {"entropy_keep": 0.5, "entropy_mode": "low"},
    {"entropy_scope": "row"},
    {"entropy_scope": "row", "entropy_mode": "low", "entropy_keep": 0.4},
    {"entropy_scope": "step"},
    {"entropy_keep": 0.0},
    {"entropy_keep": 1.0},
    {"truncated": "mask"},
    {"truncated": "mask", "prefix_loss": "static", "static_weight": 0.3},
    {"epsilon": 0.1, "epsilon_high": 0.35},
    {"delta": 1.3},
    {"delta": 1.5, "epsilon_high": 0.28},
    {"beta": 0.4},
    {"entropy_coef": 0.05},
    {"beta": 0.1, "entropy_coef": 0.2, "truncated": "mask", "delta": 1.4},
]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("options", PREFIX_RFT, ids=str)
def test_prefix_rft(options: dict, aggregation: str) -> None:
    options = {**options, "aggregation": aggregation, "const": 11.0}
    assert agree("prefix_rft", options, 0)
    assert agree("prefix_rft", options, 2)
    assert agree("prefix_rft", options, 1, weight=False, old=False)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epsilon": 0.05, "epsilon_high": 0.28},
        {"delta": 1.25},
        {"beta": 0.04, "entropy_coef": 0.01},
        {"truncated": "mask"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["dr_grpo", "grpo"])
def test_policy_methods(name: str, options: dict, aggregation: str) -> None:
    options = {**options, "aggregation": aggregation, "const": 3.0}
    for seed in (2, 3):
        assert agree(name, options, seed, hybrid=False)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_sft(aggregation: str) -> None:
    """Whole demonstrations only; the rollouts beside them are neither trained nor counted."""
    for seed in range(4):
        assert any(DEMO in row for row in make_rows(seed)["kind"])
        assert agree("sft", {"aggregation": aggregation, "const": 3.0}, seed)


def test_defaults_of_the_aggregations() -> None:
    """Dr. GRPO and Prefix-RFT sum over a constant of 8192; GRPO means of means; SFT token mean."""
    said = {
        "prefix_rft": {"aggregation": "sum_over_const", "const": 8192.0},
        "dr_grpo": {"aggregation": "sum_over_const", "const": 8192.0},
        "grpo": {"aggregation": "seq_mean_token_mean"},
        "sft": {"aggregation": "token_mean"},
    }
    for name, options in said.items():
        hybrid = name in ("prefix_rft", "sft")
        _, batch, _, *outputs = make(0, hybrid=hybrid)
        by_default, as_said = (
            loss(load(name, **o), batch, *outputs).loss.item() for o in ({}, options)
        )
        assert by_default == as_said
        assert agree(name, {}, 0, hybrid=hybrid)


MISTAKES = {
    "hybrid out of the baseline": {},
    "std": {},
    "selection scope swapped": {},
    "no selection": {},
    "floor instead of ceil": {},
    "prefix not clipped": {},
    "denominator 1": {},
    "no dual clip": {},
    "only kept counted": {},
    "masked tokens not counted": {},
    "ungraded rows not counted": {"aggregation": "seq_mean_token_mean"},
    "empty rows not counted": {"aggregation": "sum_over_const"},
    "ungraded is reward -1": {},
    "k1": {},
    "weight on the KL": {},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_formula_disagrees(mistake: str) -> None:
    options = {"aggregation": "token_mean", "beta": 0.3, "entropy_keep": 0.5, "delta": 1.3}
    options |= {"truncated": "mask", "const": 11.0} | MISTAKES[mistake]
    seeds = range(6)
    assert all(agree("prefix_rft", options, s) for s in seeds)
    assert sum(not agree("prefix_rft", options, s, mistake) for s in seeds) >= 3


@pytest.mark.parametrize("mistake", ["biased std", "a singleton keeps its reward"])
def test_a_wrong_baseline_disagrees(mistake: str) -> None:
    name, options = (
        ("grpo" if mistake == "biased std" else "dr_grpo"),
        {"aggregation": "token_mean"},
    )
    kw = {"hybrid": False, "B": 5}  # small groups: some rows stand alone
    assert all(agree(name, options, s, **kw) for s in range(6))
    assert not all(agree(name, options, s, mistake, **kw) for s in range(6))


def test_a_mean_of_micro_batch_means_disagrees() -> None:
    options = {"aggregation": "token_mean", "prefix_loss": "all"}
    step, batch, _, logp, entropy = make(0)
    whole = loss(load("prefix_rft", **options), batch, logp, entropy).loss.item()
    tokens = [len(step.at(i, PREFIX, SAMPLED)) for i in range(12)]
    # Advantages stay those of the whole groups: only the normaliser is wrong.
    shares = []
    for part in (range(3), range(3, 12)):
        weight = [w if i in part else [0.0] * 9 for i, w in enumerate(step.weight)]
        share = FORMULAS["prefix_rft"](replace(step, o=options, weight=weight))
        shares.append((share.item(), sum(tokens) / sum(tokens[i] for i in part)))
    assert sum(s for s, _ in shares) == pytest.approx(whole, abs=1e-12)
    assert abs(sum(s * f for s, f in shares) / 2 - whole) > 1e-3


def test_two_rows_by_hand() -> None:
    """One group, one hybrid row (reward 1) and one plain row (reward 0): A = +1/2, -1/2.

    All of log pi is log(1/2). Old log-probs give the ratios below.

        hybrid   prefix (entropies .1, .9, .5)  r = 1, 2, 1/2   keep 1/3 of three: the middle one
                 continuation                   r = 1.1
        plain                                   r = 1.1, 2, 1/2

    Clip .2: kept prefix token min(2/2, 1.2/2) = .6, gradient 0; continuation 1.1/2 = .55, gradient
    .55. Plain: -1.1/2 = -.55; min(-2/2, -1.2/2) = -1 (not clipped: it must come down), gradient -1;
    min(-.25, -.4) = -.4, gradient 0 (clipped). Sum = .6 + .55 - .55 - 1 - .4 = -.8.
    Seven tokens: loss = .8 / 7; its gradient is minus those numbers over 7.
    """
    half = math.log(0.5)

    def old(*ratios: float) -> list[float]:
        return [half - math.log(r) for r in ratios]

    logp = torch.full((2, 4), half, dtype=torch.float64, requires_grad=True)
    entropy = torch.tensor([[0.1, 0.9, 0.5, NAN], [NAN] * 4], dtype=torch.float64)
    options = {"aggregation": "token_mean", "entropy_keep": 1 / 3}
    step = Step(
        kind=[[PREFIX] * 3 + [SAMPLED], [SAMPLED] * 3 + [PAD]],
        reward=[1.0, 0.0],
        group=[0, 0],
        logp=logp,
        entropy=entropy,
        old=[old(1, 2, 0.5, 1.1), [*old(1.1, 2, 0.5), NAN]],
        o=options,
    )
    out = loss(load("prefix_rft", **options), batch_of(step), logp, entropy)
    assert out.loss.item() == pytest.approx(0.8 / 7, abs=1e-12)
    expected = torch.tensor([[0, 0, 0, 0.55], [-0.55, -1.0, 0, 0]], dtype=torch.float64) / -7
    assert (grads(out.loss, logp)[0] - expected).abs().max() < 1e-12
    again = FORMULAS["prefix_rft"](step)
    assert again.item() == pytest.approx(0.8 / 7, abs=1e-12)
    assert (grads(again, logp)[0] - expected).abs().max() < 1e-12


# --- invariants -------------------------------------------------------------------------------

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


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
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

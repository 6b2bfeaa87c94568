"""All methods: normalisers, empty streams, detachment, padding, precision."""

from dataclasses import replace

import pytest
import torch
from batches import gradients
from cases import CONTRASTS, GROUPED, Case, case, loss, same
from torch import Tensor

from prefix_rft.core import Batch, Stream, Targets, advantages, prepare
from prefix_rft.core.weights import Scores
from prefix_rft.methods import BUILT_IN, load
from second.objective import LAYOUT

NAN, INF = float("nan"), float("inf")


# ---- micro-batches, processes, order -------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_micro_batches_add_up(name: str) -> None:
    c = case(name)
    whole = c.run()
    assert whole[1].abs().max() > 0
    rows = torch.arange(len(c.logp))
    for n in (1, 2, 4, 8):
        total = torch.zeros((), dtype=torch.float64)
        for part in rows.tensor_split(n):
            used = int(c.batch.response_mask_BT[part].nonzero()[:, 1].max()) + 1
            total = (
                total
                + loss(
                    c.method,
                    c.batch.part(part, used),
                    c.logp[part, :used],
                    c.entropy[part, :used],
                    targets=c.targets.part(part, used),
                ).loss
            )
        assert same(whole, [total.detach(), *gradients(total, c.logp, c.entropy)])


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in CONTRASTS])
def test_a_mean_of_micro_batch_means_is_something_else(name: str) -> None:
    """The control: each half as a step of its own, then the mean of the two."""
    c = case(name)
    rows = torch.arange(len(c.logp))
    halves = [
        loss(c.method, c.batch.part(part), c.logp[part], c.entropy[part]).loss
        for part in rows.tensor_split(2)
    ]
    (gradient,) = gradients(sum(halves) / 2, c.logp)
    difference = (gradient - c.run()[1]).abs().max()
    assert difference > 1e-3 * c.run()[1].abs().max()


@pytest.mark.parametrize("name", BUILT_IN)
def test_order_of_rows_does_not_matter(name: str) -> None:
    c = case(name)
    order = torch.randperm(len(c.logp), generator=torch.Generator().manual_seed(1))
    batch = c.batch.part(order)
    given = c.targets.advantage_SB[:, order] if name in CONTRASTS else None
    targets = prepare(c.method, batch, c.entropy[order].detach(), advantage_SB=given)
    value = loss(c.method, batch, c.logp[order], c.entropy[order], targets=targets).loss
    assert same(c.run(), [value.detach(), *gradients(value, c.logp, c.entropy)])


@pytest.mark.parametrize("name", BUILT_IN)
def test_processes_share_one_normaliser(name: str) -> None:
    c = case(name)
    parts = torch.arange(len(c.logp)).tensor_split([7, 8])
    counts: list[Tensor] = []

    def of(part: Tensor, all_sum: object) -> Targets:
        return prepare(
            c.method,
            c.batch.part(part),
            advantage_SB=c.targets.advantage_SB[:, part],
            keep_BT=c.targets.keep_BT[part],
            all_sum=all_sum,  # type: ignore[arg-type]
        )

    for part in parts:
        of(part, lambda x: counts.append(x) or x)
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        targets = of(part, lambda x: sum(counts))
        assert targets.scale_S == c.targets.scale_S
        total = (
            total
            + loss(
                c.method, c.batch.part(part), c.logp[part], c.entropy[part], targets=targets
            ).loss
        )
    assert same(c.run(), [total.detach(), *gradients(total, c.logp, c.entropy)])


# ---- empty streams -------------------------------------------------------------------------------


def only(c: Case, rows: Tensor) -> Case:
    """The case with some rows alone, as a step of its own."""
    batch = c.batch.part(rows)
    logp, entropy = (x.detach()[rows].requires_grad_() for x in (c.logp, c.entropy))
    given = c.targets.advantage_SB[:, rows] if c.method.contrast is not None else None
    targets = prepare(c.method, batch, entropy.detach(), advantage_SB=given)
    return replace(c, batch=batch, logp=logp, entropy=entropy, targets=targets)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("kind", ["policy", "prefix", "continuation", "demonstration"])
def test_a_stream_without_tokens_is_zero(name: str, kind: str) -> None:
    """A step without such rows is the same as the method without the streams on them."""
    c = case(name)
    rows = ~c.batch.rows_with((kind,))
    if not bool(rows.any()):
        return
    c = only(c, rows)
    got = c.run()
    assert all(torch.isfinite(x).all() for x in got)
    left = [i for i, s in enumerate(c.method.streams) if set(s.tokens) != {kind}]
    gone = [i for i in range(len(c.method.streams)) if i not in left]
    assert not c.targets.acts_SBT[gone].any()
    if left:
        t = c.targets
        fewer = Targets(
            tuple(t.scale_S[i] for i in left),
            t.acts_SBT[left],
            t.row_count_SB[left],
            t.advantage_SB[left],
            t.keep_BT,
        )
        streams = tuple(c.method.streams[i] for i in left)
        heard = tuple(t for t in c.method.teachers if t.name in {s.teacher for s in streams})
        method = replace(c.method, streams=streams, teachers=heard)
        assert same(got, replace(c, method=method, targets=fewer).run())
    else:
        assert got[0] == 0
        assert not got[1].any()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("why", ["all dropped", "no reward", "no row"])
def test_nothing_to_train(name: str, why: str) -> None:
    c = case(name)
    B = len(c.logp)
    if why == "all dropped":
        c = replace(c, batch=replace(c.batch, dropped_B=torch.ones(B, dtype=torch.bool)))
    elif why == "no reward":
        c = replace(c, batch=replace(c.batch, reward_B=torch.full((B,), NAN).double()))
    else:
        c = replace(c, batch=c.batch.part(slice(0, 0)), logp=c.logp[:0], entropy=c.entropy[:0])
    targets = prepare(c.method, c.batch, c.entropy.detach())
    got = c.run(targets)
    assert all(torch.isfinite(x).all() for x in got)
    out = loss(c.method, c.batch, c.logp, c.entropy, targets=targets)
    assert all(x == x for x in out.metrics.values())
    if why != "no reward":
        assert got[0] == 0
        assert not got[1].any()
        assert not got[2].any()
    else:
        graded = [s for s in c.method.streams if isinstance(s.advantage, str)]
        for stream in graded:
            if stream.advantage != "sequence":
                s = c.method.streams.index(stream)
                assert not targets.acts_SBT[s].any()


# ---- detachment ----------------------------------------------------------------------------------

WEIGHTED = [
    (n, s) for n in BUILT_IN for s in load(n).streams if s.weight is not None and not s.teacher
]
"""Those that read a teacher stand beside ratios: ``test_formulas`` has the mistake ``attached``."""


@pytest.mark.parametrize(("name", "stream"), WEIGHTED, ids=lambda x: getattr(x, "name", x))
def test_weights_carry_no_gradient(name: str, stream: Stream) -> None:
    """d/d log pi of ``w A log pi`` is ``w A``; with the gradient of w it is something else."""
    assert stream.weight is not None
    c = case(replace(load(name), streams=(stream,)))
    _, logp_gradient, entropy_gradient = c.run()
    acts, A = c.targets.acts_SBT[0], c.targets.advantage_SB[0][:, None]
    assert acts.any()
    assert not entropy_gradient.any()
    ref = c.batch.ref_logp_BT
    assert ref is not None
    value = []
    for detach in (True, False):
        logp, entropy = (x.where(acts, 0.0) for x in (c.logp, c.entropy))
        scores = [x.detach() if detach else x for x in (logp, entropy)]
        w = stream.weight.of(Scores(scores[0], acts, scores[1], ref.where(acts, 0.0)))
        n = c.targets.row_count_SB[0][:, None]
        total = -c.targets.scale_S[0] * (w * A / n * logp).where(acts, 0.0).sum()
        value.append(torch.cat(gradients(total, c.logp, c.entropy)))
    got = torch.cat([logp_gradient, entropy_gradient])
    assert torch.allclose(got, value[0], rtol=1e-12, atol=0)
    # A choice of tokens is a step function: there is no gradient to forget.
    assert torch.allclose(got, value[1], rtol=1e-2, atol=0) == stream.weight.name.startswith("top")


@pytest.mark.parametrize("name", BUILT_IN)
def test_only_an_entropy_stream_reaches_entropies(name: str) -> None:
    c = case(name)
    bonus = any(s.surrogate == "entropy" for s in c.method.streams)
    assert bool(c.run()[2].any()) == bonus


# ---- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("where", ["outside the response", "where no stream acts"])
def test_garbage_is_never_read(name: str, where: str) -> None:
    c = case(name)
    clean = c.run()
    outside = ~c.batch.response_mask_BT
    if where == "where no stream acts":
        outside = ~c.targets.acts_SBT.any(0)
    assert outside.any()
    ratio = c.method.streams[0].surrogate in ("clip", "ratio", "cispo")
    weight = torch.ones_like(c.logp).detach()
    for rubbish in (NAN, INF, -INF, 1e30, -1e30):
        old, ref = c.batch.old_logp_BT, c.batch.ref_logp_BT
        assert old is not None
        assert ref is not None
        batch = replace(
            c.batch,
            old_logp_BT=old.masked_fill(outside, rubbish),
            ref_logp_BT=ref.masked_fill(outside, -rubbish),
            weight_BT=weight.masked_fill(outside, rubbish) if ratio else None,
        )
        logp, entropy = (
            x.detach().masked_fill(outside, rubbish).requires_grad_() for x in (c.logp, c.entropy)
        )
        got = replace(c, batch=batch, logp=logp, entropy=entropy).run()
        assert same(clean, got)
        if where == "outside the response" and name not in CONTRASTS:
            targets = prepare(c.method, batch, entropy.detach())
            assert torch.equal(targets.acts_SBT, c.targets.acts_SBT)
            assert targets.scale_S == c.targets.scale_S


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_half_precision_is_summed_in_single(name: str) -> None:
    c = case(name, LAYOUT[name])
    half = c.logp.detach().bfloat16()
    entropy = c.entropy.detach().float()
    assert c.batch.old_logp_BT is not None
    assert c.batch.ref_logp_BT is not None
    old, ref = c.batch.old_logp_BT.bfloat16(), c.batch.ref_logp_BT.bfloat16()
    batch = replace(c.batch, old_logp_BT=old, ref_logp_BT=ref)
    value = loss(c.method, batch, half.requires_grad_(), entropy, targets=c.targets).loss
    assert value.dtype == torch.float32
    exact = loss(c.method, batch, half.double(), entropy.double(), targets=c.targets).loss
    assert value.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-9)
    (gradient,) = torch.autograd.grad(value, half)
    assert torch.isfinite(gradient).all()


def test_half_precision_would_show() -> None:
    """The control: 4,012 log-probs of -1/3 added up with eight bits."""
    T = 4012
    logp = torch.full((1, T), -1 / 3, dtype=torch.bfloat16)
    everywhere = torch.ones(1, T, dtype=torch.bool)
    batch = Batch(
        torch.zeros(1, T, dtype=torch.int64),
        everywhere,
        ~everywhere,
        everywhere,
        None,
        torch.ones(1),
        torch.zeros(1, dtype=torch.int64),
    )
    exact = logp.double().sum().item()
    value = loss(load("sft", aggregation="sum", const=1.0), batch, logp).loss
    assert value.item() == pytest.approx(-exact, rel=1e-6)
    assert abs(logp.sum().item() - exact) > 1e-3 * abs(exact)


def test_half_precision_entropies_are_summed_in_single() -> None:
    T = 4012
    entropy = torch.full((1, T), 1 / 3, dtype=torch.bfloat16)
    everywhere = torch.ones(1, T, dtype=torch.bool)
    batch = Batch(
        torch.zeros(1, T, dtype=torch.int64),
        everywhere,
        ~everywhere,
        ~everywhere,
        None,
        torch.zeros(1),
        torch.zeros(1, dtype=torch.int64),
    )
    method = load("grpo", entropy_coef=1.0, aggregation="sum", const=1.0)
    value = loss(method, batch, torch.zeros_like(entropy), entropy).loss
    assert value.item() == pytest.approx(-entropy.double().sum().item(), rel=1e-6)


def test_advantages_are_exact_whatever_the_rewards_precision() -> None:
    """A mean of single-precision rewards must not leave a flat group with a gradient."""
    reward = torch.full((7,), 0.1)
    none = torch.zeros(7, dtype=torch.bool)
    for name in BUILT_IN:
        method = load(name)
        got = advantages(method, reward, torch.zeros(7, dtype=torch.int64), none, none)
        for stream, row in zip(method.streams, got, strict=True):
            if stream.advantage in GROUPED:
                assert not row.any()

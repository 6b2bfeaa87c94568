"""The divergence per token: by hand, by enumeration, in loops, and as TRL 1.16 has it."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from prefix_rft.core import chunked_divergence
from prefix_rft.core.chunked_divergence import ChunkedDivergence
from prefix_rft.core.divergence import Divergence, divergence
from prefix_rft.support.errors import UserError

P, Q = (0.5, 0.3, 0.2), (0.1, 0.3, 0.6)
ALPHAS = (0.0, 1.0, 0.5, 0.25)
SUPPORTS: list[dict[str, Any]] = [
    {},
    *({"support": s, "top": 3, "tail": t} for s in ("student", "teacher") for t in (True, False)),
]
CAPS: list[dict[str, Any]] = [{}, {"cap": 0.3}, {"cap": 0.05, "cap_level": "entry"}]
SPECS = [Divergence(alpha=a, **s, **c) for a, s, c in product(ALPHAS, SUPPORTS, CAPS)]


def logits(*probabilities: tuple[float, ...]) -> Tensor:
    """Logits of these distributions; a constant is added, which a softmax does not see."""
    return torch.tensor(probabilities, dtype=torch.float64).log() + 0.7


def by_autograd(student: Tensor, teacher: Tensor, spec: Divergence, **kw: Any) -> list[Tensor]:
    """Values and gradients of the dense form."""
    student = student.clone().requires_grad_()
    value = divergence(student, teacher, spec, **kw)
    return [value.detach(), *torch.autograd.grad(value.sum(), student)]


# ---- by hand -------------------------------------------------------------------------------------

FORWARD = [0.4, 0.0, -0.4]  # p - q
REVERSE = [0.512221, -0.175499, -0.336722]  # p (log(p / q) - .584996)
JS = [0.098511, -0.017518, -0.080993]  # m = (.3, .3, .4)
# m = .75 p + .25 q = (.4, .3, .3); KL(p || m) = .5 log 1.25 + .2 log(2/3) = .030479; .75 p (r - KL)
JS_25 = [0.072249, -0.006858, -0.065391]
TOP = {"support": "student", "top": 2}
# Renormalised p = (.625, .375), q = (.25, .75): p - q, and p (r - KL) with r = log(2.5, .5).
TWO = {0.0: [0.375, -0.375, 0.0], 1.0: [0.377212, -0.377212, 0.0]}
TWO[0.5] = [0.089313, -0.089313, 0.0]  # m = (.4375, .5625): .5 p (log(p/m) - KL(p || m))


@pytest.mark.parametrize(
    ("spec", "value", "gradient"),
    [
        (Divergence(0.0), 0.498224, FORWARD),
        (Divergence(1.0), 0.584996, REVERSE),
        (Divergence(0.5), 0.125101, JS),
        (Divergence(0.25), 0.092174, JS_25),
        (Divergence(0.0, tail=False, **TOP), 0.290788, TWO[0.0]),
        (Divergence(0.5, tail=False, **TOP), 0.073365, TWO[0.5]),
        (Divergence(1.0, tail=False, **TOP), 0.312752, TWO[1.0]),
        # Of three tokens the tail is the third: all as over the vocabulary.
        (Divergence(0.0, **TOP), 0.498224, FORWARD),
        (Divergence(0.5, **TOP), 0.125101, JS),
        (Divergence(1.0, **TOP), 0.584996, REVERSE),
        # Entries -.160944, 0 and .659167, of which the last is capped: it is pushed down by the
        # softmax of the others, although the teacher has .6 there.
        (Divergence(0.0, cap=0.05, cap_level="entry"), -0.110944, [0.10, -0.18, 0.08]),
        (Divergence(0.0, cap=0.49), 0.49, [0.0, 0.0, 0.0]),
        (Divergence(0.0, cap=0.51), 0.498224, FORWARD),
    ],
    ids=str,
)
def test_by_hand(spec: Divergence, value: float, gradient: list[float]) -> None:
    found, slope = by_autograd(logits(P), logits(Q), spec)
    assert found.tolist() == pytest.approx([value], abs=1e-6)
    assert slope[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_what_lies_outside_the_support_by_hand() -> None:
    """p = (.4, .3, .2, .1), q = (.1, .2, .3, .4), the student's top two and a tail of .3 and .7.

    Forward: p - q of the entries is (.3, .1, -.4); the tail's -.4 spreads as .2 to .1 = 2 to 1.
    """
    four = logits((0.4, 0.3, 0.2, 0.1)), logits((0.1, 0.2, 0.3, 0.4))
    value, slope = by_autograd(*four, Divergence(**TOP))
    expected = 0.1 * math.log(0.1 / 0.4) + 0.2 * math.log(0.2 / 0.3) + 0.7 * math.log(0.7 / 0.3)
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert slope[0].tolist() == pytest.approx([0.3, 0.1, -0.8 / 3, -0.4 / 3], abs=1e-12)


def test_the_temperature_divides_both_logits() -> None:
    """T = 2 of p^2 and q^2 is p and q; the gradient is halved."""
    value, slope = by_autograd(2 * logits(P), 2 * logits(Q), Divergence(), temperature=2.0)
    assert value.item() == pytest.approx(0.498224, abs=1e-6)
    assert slope[0].tolist() == pytest.approx([0.2, 0.0, -0.2], abs=1e-12)


def test_between_the_ends_it_is_no_limit() -> None:
    """JS tends to 0 at both ends, where the special cases are not 0."""
    for end, near in ((0.0, 1e-6), (1.0, 1.0 - 1e-6)):
        assert by_autograd(logits(P), logits(Q), Divergence(near))[0].item() < 1e-5
        assert by_autograd(logits(P), logits(Q), Divergence(end))[0].item() > 0.4


def test_verl_s_sum_over_the_teacher_s_top_is_another_one() -> None:
    """verl 0.9.1: no tail, not renormalised, held at 0. Its token has no gradient where ours has.

    p = (.05, .35, .60): .3 log(.3 / .35) + .6 log(.6 / .6) = -.046245.
    """
    student, teacher = logits((0.05, 0.35, 0.60)), logits(Q)
    log_p, log_q = student.log_softmax(1)[0], teacher.log_softmax(1)[0]
    theirs = sum((log_q[v].exp() * (log_q[v] - log_p[v])).item() for v in (1, 2))
    assert theirs == pytest.approx(-0.046245, abs=1e-6)
    value, slope = by_autograd(student, teacher, Divergence(support="teacher", top=2))
    assert value.item() == pytest.approx(-0.046245 + 0.1 * math.log(2), abs=1e-6)
    assert slope[0].tolist() == pytest.approx([-0.05, 0.05, 0.0], abs=1e-12)


# ---- what a loss on the sampled token minimises: the expected gradient, by enumeration -----------


def sampled(name: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Losses of a token with these log-probabilities, as other programs write them."""
    gap = log_q - log_p
    return {
        "k1": -gap,
        "k2": gap**2 / 2,
        "k3": gap.exp() - gap - 1,
        "advantage": -gap.detach() * log_p,
        "gate 0": torch.sigmoid(0.0 * gap).detach() * gap,
        "gate 5": torch.sigmoid(5.0 * gap).detach() * gap,
    }[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k1", [0.0, 0.0, 0.0]),
        ("k2", REVERSE),
        ("advantage", REVERSE),
        ("k3", FORWARD),
        ("gate 0", [0.0, 0.0, 0.0]),
        ("gate 5", [0.174510, -0.045198, -0.129312]),
    ],
)
def test_expected_gradients_of_losses_on_the_sampled_token(
    name: str, expected: list[float]
) -> None:
    z, log_q = logits(P)[0].requires_grad_(), logits(Q)[0].log_softmax(0)
    total = torch.zeros(3, dtype=torch.float64)
    for y, probability in enumerate(P):
        total += (
            probability * torch.autograd.grad(sampled(name, z.log_softmax(0)[y], log_q[y]), z)[0]
        )
    assert total.tolist() == pytest.approx(expected, abs=1e-6)
    for alpha in (0.0, 1.0):
        ours = by_autograd(logits(P), logits(Q), Divergence(alpha))[1][0]
        assert torch.allclose(total, ours) is (expected == [FORWARD, REVERSE][int(alpha)])


# ---- a second computation, in loops --------------------------------------------------------------


def in_loops(z: np.ndarray, y: np.ndarray, spec: Divergence, temperature: float) -> float:
    """One token's divergence: probabilities first, logarithms of their ratios last."""
    p, q = (np.exp((x - x.max()) / temperature) for x in (z, y))
    p, q = p / p.sum(), q / q.sum()
    pairs = list(zip(p, q, strict=True))
    if spec.support != "vocabulary":
        by = p if spec.support == "student" else q
        chosen = sorted(range(len(p)), key=lambda v: -by[v])[: spec.top]
        rest = [pairs[v] for v in range(len(p)) if v not in chosen]
        pairs = [pairs[v] for v in chosen]
        if spec.tail:
            pairs.append((sum(a for a, _ in rest), sum(b for _, b in rest)))
        else:
            whole = [sum(side) for side in zip(*pairs, strict=True)]
            pairs = [(a / whole[0], b / whole[1]) for a, b in pairs]
    total = 0.0
    for a, b in pairs:
        m = (1 - spec.alpha) * a + spec.alpha * b
        if spec.alpha == 0:
            part = -b * math.log(a / b)
        elif spec.alpha == 1:
            part = -a * math.log(b / a)
        else:
            part = -(1 - spec.alpha) * a * math.log(m / a) - spec.alpha * b * math.log(m / b)
        total += min(part, spec.cap or math.inf) if spec.cap_level == "entry" else part
    return min(total, spec.cap or math.inf) if spec.cap_level == "token" else total


def far_apart(seed: int, tokens: int, size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(2.0 * torch.randn(tokens, size, generator=rng).double() for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_in_loops(spec: Divergence) -> None:
    """Values, and the gradient by central differences of the loops."""
    student, teacher = far_apart(0, 5, 7)
    value, slope = by_autograd(student, teacher, spec, temperature=1.3)
    z, y = student.numpy(), teacher.numpy()
    again = [in_loops(a, b, spec, 1.3) for a, b in zip(z, y, strict=True)]
    assert value.tolist() == pytest.approx(again, abs=1e-10)
    h = 1e-5
    for n, v in product(range(5), range(7)):
        step = np.eye(7)[v] * h
        ends = [in_loops(z[n] + s * step, y[n], spec, 1.3) for s in (1, -1)]
        assert slope[n, v].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-8)


def test_a_support_of_the_whole_vocabulary_is_the_vocabulary() -> None:
    student, teacher = far_apart(1, 3, 6)
    whole = by_autograd(student, teacher, Divergence(0.5))
    for support, tail, top in product(("student", "teacher"), (True, False), (6, 100)):
        spec = Divergence(0.5, support, top, tail)
        torch.testing.assert_close(by_autograd(student, teacher, spec), whole)


# ---- in chunks -----------------------------------------------------------------------------------


def heads(seed: int, tokens: int = 9, size: int = 11, dtype: torch.dtype = torch.float64) -> list:
    """Hidden states, weight and bias of a student of 4 and of a teacher of 3 hidden units."""
    rng = torch.Generator().manual_seed(seed)
    shapes = [(tokens, 4), (size, 4), (size,), (tokens, 3), (size, 3), (size,)]
    return [torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in shapes]


def gradients(of: Any, inputs: list, seed: int = 5) -> list[Tensor]:
    """Values and gradients of the student's three tensors, with another factor at each token."""
    learnt = [x.clone().requires_grad_() for x in inputs[:3]]
    value = of(*learnt, *inputs[3:])
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    return [value.detach(), *torch.autograd.grad(value, learnt, upstream.to(value.dtype))]


def dense(spec: Divergence, temperature: float = 1.0, caps: tuple = (1.0, None) * 2) -> Any:
    def of(h: Tensor, w: Tensor, b: Tensor, *teacher: Tensor) -> Tensor:
        z, y = h @ w.T + b, teacher[0] @ teacher[1].T + teacher[2]
        z, y = z * caps[0], y * caps[2]
        z = z if caps[1] is None else caps[1] * torch.tanh(z / caps[1])
        y = y if caps[3] is None else caps[3] * torch.tanh(y / caps[3])
        return divergence(z, y, spec, temperature)

    return of


def chunked(
    spec: Divergence, temperature: float = 1.0, chunk: int = 4, caps: tuple = (1.0, None) * 2
) -> Any:
    return lambda *x: ChunkedDivergence.apply(*x, spec, temperature, *caps, chunk)


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_chunked_is_dense(spec: Divergence) -> None:
    inputs = heads(2)
    expected = gradients(dense(spec, 0.8), inputs)
    for chunk in (1, 4, 9, 100):
        assert_equal(gradients(chunked(spec, 0.8, chunk), inputs), expected, 1e-10)


CAPPED = (0.5, 2.0, 1.5, 3.0)


@pytest.mark.parametrize("spec", [Divergence(0.25), Divergence(0.5, "student", 3)], ids=str)
def test_scales_and_soft_caps_of_the_heads(spec: Divergence) -> None:
    inputs = heads(3)
    found = gradients(chunked(spec, 0.8, caps=CAPPED), inputs)
    assert_equal(found, gradients(dense(spec, 0.8, CAPPED), inputs), 1e-10)
    plain = gradients(dense(spec, 0.8), inputs)
    assert (found[0] - plain[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    "spec",
    [Divergence(), Divergence(0.3, "teacher", 2), Divergence(1.0, "student", 2, tail=False)],
    ids=str,
)
def test_gradients_numerically(spec: Divergence) -> None:
    inputs = heads(4, tokens=3, size=5)
    learnt = tuple(x.requires_grad_() for x in inputs[:3])
    of = chunked(spec, 1.5, 2)
    assert torch.autograd.gradcheck(lambda *x: of(*x, *inputs[3:]), learnt)


def test_without_a_bias_and_where_only_one_gradient_is_asked_for() -> None:
    h, w, _, *teacher = heads(5)
    arguments = (None, teacher[0], teacher[1], None, Divergence(0.5))
    zero = torch.zeros(11, dtype=torch.float64)
    expected = gradients(dense(Divergence(0.5)), [h, w, zero, *teacher[:2], zero], 1)
    upstream = torch.randn(9, generator=torch.Generator().manual_seed(1)).double()
    for learnt, wanted in ((h, expected[1]), (w, expected[2])):
        learnt.requires_grad_()
        value = ChunkedDivergence.apply(h, w, *arguments)
        [found] = torch.autograd.grad(value, learnt, upstream)
        learnt.requires_grad_(False)
        assert_equal([found], [wanted], 1e-10)


def test_no_token_at_all() -> None:
    inputs = heads(6)
    inputs[0], inputs[3] = inputs[0][:0], inputs[3][:0]
    value, *slopes = gradients(chunked(Divergence(0.5, "student", 3)), inputs)
    assert value.shape == (0,)
    assert [x.abs().sum().item() for x in slopes] == [0, 0, 0]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_model_that_teaches_itself_learns_nothing(spec: Divergence) -> None:
    inputs = heads(7)
    found = gradients(chunked(spec), [*inputs[:3], *inputs[:3]])
    found += gradients(dense(spec), [*inputs[:3], *inputs[:3]])
    assert max(x.abs().max().item() for x in found) < 1e-12


def test_a_shared_head_learns_as_the_student_s_alone() -> None:
    """The same tensor in both places. With the teacher's path left in, the gradient is another."""
    h, w, b, *_ = heads(8)
    teacher = heads(9)[0]
    spec = Divergence(0.5)
    apart = gradients(chunked(spec), [h, w, b, teacher, w, b])
    w.requires_grad_()
    upstream = torch.randn(9, generator=torch.Generator().manual_seed(5)).double()
    for of in (chunked(spec), dense(spec)):
        [found] = torch.autograd.grad(of(h, w, b, teacher, w, b), w, upstream)
        assert_equal([found], [apart[2]], 1e-10)
    log_p, log_q = ((x @ w.T + b).log_softmax(1) for x in (h, teacher))  # both with gradient
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    both = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(1) / 2
    [attached] = torch.autograd.grad(both, w, upstream)
    assert (attached - apart[2]).abs().max() > 0.1


@pytest.mark.parametrize("form", [dense, chunked])
def test_a_teacher_has_no_gradient(form: Any) -> None:
    inputs = [x.requires_grad_() for x in heads(10)]
    form(Divergence(0.5))(*inputs).sum().backward()
    assert [x.grad is None for x in inputs] == [False] * 3 + [True] * 3


def test_tokens_that_neither_model_can_have_add_nothing() -> None:
    """Logits of -inf, as padded vocabularies have them."""
    for spec in (Divergence(a, **s) for a in ALPHAS for s in SUPPORTS):
        inputs = heads(11)
        expected = gradients(dense(spec), inputs)
        for x in (1, 2, 4, 5):
            value = -math.inf if x in (2, 5) else 0.0
            inputs[x] = torch.cat((inputs[x], inputs[x].new_full((2, *inputs[x].shape[1:]), value)))
        for form in (dense, chunked):
            value, of_h, of_w, of_b = gradients(form(spec), inputs)
            assert_equal([value, of_h, of_w[:11], of_b[:11]], expected, 1e-10)
            assert of_w[11:].abs().max() == 0


def test_a_small_tail_keeps_its_digits() -> None:
    """A mass of e^-40 outside the support: in float64, 1 less the mass inside is 0."""
    student = torch.tensor([[0.0, -40.0, -50.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, -30.0, -50.0]], dtype=torch.float64)
    spec = Divergence(support="student", top=1)
    value, slope = by_autograd(student, teacher, spec)
    q = math.exp(-30.0)
    assert value.item() == pytest.approx(q * 10 - q, rel=1e-2, abs=0)
    assert slope[0, 1].item() == pytest.approx(-q, rel=1e-2, abs=0)


# ---- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Divergence(0.5), Divergence(0.0, "student", 3)], ids=str)
def test_sums_of_bf16_are_those_of_float32(
    spec: Divergence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers in float32: values equal, gradients too but for their last rounding."""
    monkeypatch.setattr(chunked_divergence, "CAST_ROWS", 5)  # a head in three blocks
    inputs = heads(12, dtype=torch.bfloat16)
    found = gradients(chunked(spec), inputs)
    expected = gradients(chunked(spec), [x.float() for x in inputs])
    assert found[0].dtype == torch.float32
    assert [x.dtype for x in found[1:]] == [torch.bfloat16] * 3
    assert_equal(found[:1], expected[:1], 1e-6)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2**-8, atol=1e-6)
    many = [x.repeat(40, 1) if x.dim() == 2 and len(x) == 9 else x for x in inputs]
    found, expected = (gradients(chunked(spec, chunk=1), [y.to(d) for y in many])
                       for d in (torch.bfloat16, torch.float64))  # fmt: skip
    for a, b in zip(found[1:], expected[1:], strict=True):  # summed over 360 chunks
        torch.testing.assert_close(a.double(), b, rtol=2**-8, atol=1e-4)


def test_autocast_does_not_act_inside() -> None:
    inputs = heads(13, dtype=torch.float32)
    expected = gradients(chunked(Divergence(0.5)), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(chunked(Divergence(0.5)), inputs)
    assert_equal(found, expected, 0.0)


def test_a_tile_has_the_size_that_it_is_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most CHUNK_BYTES for 8 V bytes a token, and a token at least."""
    seen = []
    logits_of = chunked_divergence.Head.logits
    monkeypatch.setattr(
        chunked_divergence.Head,
        "logits",
        lambda self, h: seen.append(len(h)) or logits_of(self, h),
    )
    for size, chunks in ((8 * 11 * 4, [4, 4, 4, 4, 1, 1]), (1, [1] * 18)):
        monkeypatch.setattr(chunked_divergence, "CHUNK_BYTES", size)
        seen.clear()
        ChunkedDivergence.apply(*heads(14), Divergence())
        assert seen == chunks


# ---- TRL's ---------------------------------------------------------------------------------------


def theirs_dense(beta: float, temperature: float) -> Any:
    def of(z: Tensor, y: Tensor) -> Tensor:
        return GKDTrainer.generalized_jsd_loss(
            z, y, beta=beta, temperature=temperature, num_items_in_batch=1
        )

    return of


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_as_gkd_has_it(alpha: float) -> None:
    student, teacher = (x.float() for x in far_apart(15, 6, 50))
    z = student.clone().requires_grad_()
    loss = theirs_dense(alpha, 1.4)(z[None], teacher[None])
    value, slope = by_autograd(student, teacher, Divergence(alpha), temperature=1.4)
    assert loss.item() == pytest.approx(value.sum().item(), abs=1e-5)
    assert_equal([slope], list(torch.autograd.grad(loss, z)), 1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("caps", [(1.0, None, 1.0, None), CAPPED], ids=["plain", "capped"])
def test_as_trl_s_kernel_has_it(alpha: float, caps: tuple) -> None:
    inputs = heads(16, 20, 60, torch.float32)

    def theirs(*x: Any) -> Tensor:
        return ChunkedDivergenceFunction.apply(*x, alpha, 1.4, *caps)[0]  # type: ignore[index]

    found = gradients(chunked(Divergence(alpha), 1.4, 7, caps), inputs)
    expected = gradients(theirs, inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    assert_equal(found[1:], expected[1:], 1e-5)  # of up to 4, sums over tokens or vocabulary


@pytest.mark.parametrize(("alpha", "tail"), list(product((0.0, 0.5, 1.0), (True, False))))
def test_as_sdft_and_sdpo_have_the_student_s_top(alpha: float, tail: bool) -> None:
    student, teacher = far_apart(17, 6, 30)
    z = student.clone().requires_grad_()
    loss = compute_topk_self_distillation_loss(
        z, teacher, distillation_topk=5, distillation_alpha=alpha, distillation_add_tail=tail
    )
    value, slope = by_autograd(student, teacher, Divergence(alpha, "student", 5, tail))
    assert_equal([value, slope], [loss, *torch.autograd.grad(loss.sum(), z)], 1e-6)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 1.1}, "alpha of a divergence must be in"),
        ({"alpha": math.nan}, "alpha of a divergence must be in"),
        ({"support": "students"}, "unknown support of a divergence 'students': did you mean"),
        ({"cap": 0.1, "cap_level": "row"}, "unknown cap_level of a divergence 'row'"),
        ({"support": "student", "top": 0}, "top of a divergence must be at least 1"),
        ({"cap": 0.0}, "cap of a divergence must be positive or None"),
        ({"top": 20}, "no effect with support 'vocabulary'"),
        ({"tail": False}, "no effect with support 'vocabulary'"),
        ({"cap_level": "entry"}, "no effect without cap"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Divergence(**options)
    with pytest.raises(UserError, match=words):
        replace(Divergence(), **options)


def test_what_cannot_be_compared() -> None:
    student, teacher = far_apart(18, 3, 5)
    with pytest.raises(UserError, match=r"got \(3, 5\) of the student and \(3, 4\)"):
        divergence(student, teacher[:, :4], Divergence())
    with pytest.raises(UserError, match="temperature of a divergence must be positive"):
        divergence(student, teacher, Divergence(), temperature=0.0)
    inputs = heads(19)
    with pytest.raises(UserError, match=r"got \(9, 11\) of the student and \(8, 11\)"):
        chunked(Divergence())(*inputs[:3], inputs[3][:8], *inputs[4:])
    with pytest.raises(UserError, match="tokens of a chunk"):
        chunked(Divergence(), chunk=0)(*inputs)

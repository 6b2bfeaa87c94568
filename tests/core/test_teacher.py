"""Teachers by hand: weights that read one, what they really minimise, and what follows a metric."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefix_rft.core import Batch, Method, Stream, loss, prepare
from prefix_rft.core.schedules import Following
from prefix_rft.core.stream import SAMPLED
from prefix_rft.core.teacher import ANSWER, Teacher, without_thinking
from prefix_rft.core.weights import Scores, evidence, gap, gate
from prefix_rft.methods import load
from prefix_rft.support.errors import UserError

P, Q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.3, 0.6]).double()
REVERSE = (0.512221, -0.175499, -0.336722)
FORWARD = (0.4, 0.0, -0.4)


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def batch_of(tokens: Tensor, teacher_BT: Tensor, taught: list[bool], reward: Tensor) -> Batch:
    shape = tokens.shape
    off = torch.zeros(shape, dtype=torch.bool)
    return Batch(
        tokens, ~off, off, off, None, reward, torch.arange(len(tokens)) // 2,
        teacher_logp_MBT=teacher_BT[None], taught_MB=torch.tensor([taught]),
    )  # fmt: skip


def test_opd_by_hand() -> None:
    """One row y = (1, 3), both positions with p and q: the loss is .255413."""
    logits = P.log().repeat(1, 2, 1).requires_grad_()
    tokens = torch.tensor([[0, 2]])
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    told = Q.log()[tokens]
    batch = batch_of(tokens, told, [True], t(0.0))
    value = loss(load("opd"), batch, logp).loss
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(0.255413, abs=1e-6)
    assert gradient[0, 0].tolist() == pytest.approx([0.402359, -0.241416, -0.160944], abs=1e-6)
    assert gradient[0, 1].tolist() == pytest.approx([0.274653, 0.164792, -0.439445], abs=1e-6)


def expected_gradient(value_of: object) -> list[float]:
    """The mean over y ~ p of a loss's gradient with respect to the logits, by enumeration."""
    total = torch.zeros(3, dtype=torch.float64)
    for y in range(3):
        logits = P.log().requires_grad_()
        logp = logits.log_softmax(0)[y]
        (gradient,) = torch.autograd.grad(value_of(logp, Q[y].log()), logits)  # type: ignore
        total += P[y] * gradient
    return total.tolist()


def test_what_a_loss_on_the_sampled_token_minimises() -> None:
    """The reverse KL as an advantage; k1 that is backpropagated is nothing, k3 the forward KL."""

    def ours(logp: Tensor, told: Tensor) -> Tensor:
        batch = batch_of(torch.tensor([[0]]), told.view(1, 1), [True], t(0.0))
        return loss(load("opd"), batch, logp.view(1, 1)).loss

    def sdar(logp: Tensor, told: Tensor, beta: float) -> Tensor:
        batch = batch_of(torch.tensor([[0]]), told.view(1, 1), [True], t(0.0))
        return loss(load("sdar", coef=1.0, gate_beta=beta), batch, logp.view(1, 1)).loss

    near = lambda *numbers: pytest.approx(numbers, abs=1e-6)  # noqa: E731
    assert expected_gradient(ours) == near(*REVERSE)
    assert expected_gradient(lambda p, q: p - q) == near(0, 0, 0)
    assert expected_gradient(lambda p, q: (q - p).exp() - (q - p) - 1) == near(*FORWARD)
    # SDAR raises every token: with beta 0 that is nothing, with 5 the right way at a third of it.
    assert expected_gradient(lambda p, q: sdar(p, q, 0.0)) == near(0, 0, 0)
    assert expected_gradient(lambda p, q: sdar(p, q, 5.0)) == near(0.174510, -0.045198, -0.129312)


def scores(D: Tensor, advantage: float = 1.0) -> Scores:
    mask = torch.ones_like(D, dtype=torch.bool)
    return Scores(torch.zeros_like(D), mask, gap_BT=D, advantage_B1=t(advantage)[None])


def test_weights_by_hand() -> None:
    D = (Q.log() - P.log())[None]  # -1.609438, 0, 1.098612
    assert gate(5.0).of(scores(D))[0].tolist() == pytest.approx([0.000320, 0.5, 0.995902], abs=1e-6)
    assert gap(1.0).of(scores(D))[0].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    # RLSD: A (1/2 + w/2) with w clipped to .8 and 1.2
    for A, expected in ((1.0, [0.9, 1.0, 1.1]), (-1.0, [-1.1, -1.0, -0.9])):
        w = evidence(0.2).of(scores(D, A))[0]
        assert (A * (0.5 + 0.5 * w)).tolist() == pytest.approx(expected)
    assert evidence(0.2).of(scores(t(1e4, -1e4)[None])).tolist()[0] == pytest.approx([1.2, 0.8])
    wide = evidence(0.9).of(scores(t(-2.0, -9.0, 0.5)[None])).tolist()[0]
    assert wide == pytest.approx([math.exp(-2.0), 0.1, math.exp(0.5)])


def test_a_signed_weight_is_inside_the_min_of_ppo() -> None:
    """min(rho D, clip(rho) D) is not D min(rho, clip(rho)) where D is negative."""
    stream = Stream("teacher", SAMPLED, "clip", 1.0, weight=gap(), teacher="teacher")
    method = Method("m", (stream,), teachers=(Teacher(context="none"),))
    logp, old = t(-1.0, -1.0)[None].requires_grad_(), t(-1.5, -1.5)[None]
    batch = replace(
        batch_of(torch.tensor([[0, 1]]), t(-2.0, 0.5)[None], [True], t(0.0)), old_logp_BT=old
    )
    rho, D = math.exp(0.5), (-1.0, 1.5)
    expected = [min(rho * d, 1.2 * d) for d in D]  # -1.648721: unclipped; 1.8
    value = loss(method, batch, logp).loss
    assert value.item() == pytest.approx(-sum(expected) / 2)
    (gradient,) = torch.autograd.grad(value, logp)
    assert gradient[0].tolist() == pytest.approx([rho / 2, 0.0])


def test_following_by_hand() -> None:
    """GATS with M_T = .6 and a window of 5."""
    follows = Following("policy/reward", 0.6, 5)
    assert follows.value(()) == 1.0
    assert follows.value((0.0, 0.1, 0.2)) == pytest.approx(0.8333, abs=1e-4)
    assert follows.value((0.1, 0.2, 0.3, 0.4, 0.5)) == pytest.approx(0.5)
    seen: tuple[float, ...] = ()
    for score in (0.5, 0.6, 0.7, 0.6, 0.6):
        seen = follows.after(seen, score)
    assert follows.value(seen) == 0.0
    for score in [0.3] * 5:  # latched
        seen = follows.after(seen, score)
    assert follows.value(seen) == 0.0
    # Without the latch it comes back.
    open_ = replace(follows, latch=False)
    seen = (0.7,) * 5
    for score in [0.3] * 5:
        seen = open_.after(seen, score)
    assert open_.value(seen) == pytest.approx(0.5)
    # Only the last five count.
    assert follows.after((0.1, 0.1, 0.1, 0.1, 0.1), 0.2) == (0.1, 0.1, 0.1, 0.1, 0.2)


def test_a_teacher_of_coefficient_0_is_not_heard_and_need_not_be() -> None:
    method = load("gats", reference=0.5)
    tokens, told = torch.tensor([[0, 1], [1, 0]]), t(-1.0, -2.0).repeat(2, 1)
    batch = batch_of(tokens, told, [True, True], t(1.0, 0.0))
    silent = replace(batch, teacher_logp_MBT=None)
    logp = t(-0.5, -0.7).repeat(2, 1).requires_grad_()
    targets = prepare(method, silent, followed={"teacher": (0.6,)})
    assert targets.scale_S[1] == 0.0
    assert not targets.acts_SBT[1].any()
    grpo = loss(load("grpo"), silent, logp).loss
    assert loss(method, silent, logp, targets=targets).loss.item() == grpo.item()
    assert "teacher/weight" not in loss(method, silent, logp, targets=targets).stats


def test_rows_that_are_not_taught_are_plain_grpo_in_rlsd() -> None:
    tokens, told = torch.tensor([[0, 1], [1, 0]]), t(-1.0, -2.0).repeat(2, 1)
    logp = t(-0.5, -0.7).repeat(2, 1)
    none = batch_of(tokens, told, [False, False], t(1.0, 0.0))
    method = load("rlsd", epsilon_high=0.2)
    assert loss(method, none, logp).loss.item() == pytest.approx(
        loss(load("grpo"), none, logp).loss.item(), abs=1e-15
    )
    both = batch_of(tokens, told, [True, True], t(1.0, 0.0))
    assert loss(method, both, logp).loss.item() != pytest.approx(
        loss(load("grpo"), both, logp).loss.item(), abs=1e-3
    )


def test_skipped_tokens_neither_act_nor_count() -> None:
    stream = Stream("teacher", SAMPLED, "logp", 1.0, weight=gap(), teacher="teacher", skip=1)
    method = Method("m", (stream,), teachers=(Teacher(context="none"),))
    batch = batch_of(torch.tensor([[0, 1, 2]]), t(-1.0, -2.0, -3.0)[None], [True], t(0.0))
    logp = t(-0.5, -0.5, -0.5)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(method, batch, logp).loss, logp)
    assert gradient[0].tolist() == pytest.approx([0.0, 1.5 / 2, 2.5 / 2])


def test_the_gaps_of_right_and_wrong_rows_are_told_apart() -> None:
    tokens, told = torch.tensor([[0, 1], [1, 0], [0, 0]]), torch.zeros(3, 2).double()
    batch = batch_of(tokens, told, [True, True, False], t(1.0, 0.0, 1.0))
    logp = torch.stack([t(-1.0, -1.0), t(-3.0, -1.0), t(-9.0, -9.0)])
    found = loss(load("opd"), batch, logp).metrics
    assert found["teacher/gap_right"] == pytest.approx(1.0)
    assert found["teacher/gap_wrong"] == pytest.approx(2.0)
    assert found["teacher/gap"] == pytest.approx(1.5)
    assert found["teacher/taught"] == pytest.approx(2 / 3)


def test_a_template_is_filled_once() -> None:
    """What a demonstration says in braces is no place of the template."""
    teacher = Teacher(context="column", column="answer", template=ANSWER)
    assert "1+1?" in teacher.write("1+1?", "{prompt} 2")
    assert "{prompt} 2" in teacher.write("1+1?", "{prompt} 2")
    assert without_thinking("<think>so\nso</think>\n2") == "2"
    assert without_thinking("<think>so") == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"context": "hint"}, "unknown context of a teacher 'hint'"),
        ({"weights": "old"}, "unknown weights of a teacher 'old'"),
        ({"context": "column"}, "go together"),
        ({"path": "x"}, "a path has no effect with 'frozen'"),
        ({"template": "{prompt}"}, "needs {prompt} and {context} once each"),
        ({"rate": 0.0}, "must be in"),
        ({"control": "other"}, "unknown control 'other'"),
    ],
)
def test_what_a_teacher_refuses(fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Teacher(**fields)


def test_methods_and_options_of_teachers() -> None:
    method = load("rlsd", teacher={"weights": "frozen"}, control="unrelated")
    assert method.teachers[0].weights == "frozen"
    assert method.teachers[0].shown == "unrelated"
    two = load("opd", teachers={"m": {"path": "a", "only": {"s": 1}}, "c": {"path": "b"}})
    assert [t.name for t in two.teachers] == [s.teacher for s in two.streams] == ["m", "c"]
    with pytest.raises(UserError, match="has no teacher"):
        load("grpo", control="none")
    with pytest.raises(UserError, match="unknown option of teacher 'weightz'"):
        load("rlsd", teacher={"weightz": "live"})
    with pytest.raises(UserError, match="each is read"):
        replace(load("grpo"), teachers=(Teacher(),))
    assert not load("opd").reads_rewards
    assert load("opd", rewards=True).reads_rewards
    assert load("gats").reads_rewards

"""Losses of methods that distil beside those of TRL 1.16's own trainers, on the same tensors."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from batches import gradients
from torch import Tensor
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.sdft.sdft_trainer import DistillationLogits, SDFTTrainer
from trl.experimental.sdpo.sdpo_trainer import SDPOTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from prefix_rft.core import Batch, Method, loss
from prefix_rft.core.chunked_divergence import ChunkedDivergence
from prefix_rft.core.divergence import divergence
from prefix_rft.methods import load

B, T, V = 5, 7, 11
LENGTHS = (7, 4, 5, 2, 6)
UNTAUGHT = 3


class Case:
    """Both models' logits at the tokens of ragged rows, one of which is not taught."""

    def __init__(self, taught: bool = True) -> None:
        rng = torch.Generator().manual_seed(3)
        self.student, self.teacher = 1.5 * torch.randn(2, B, T, V, generator=rng).double()
        self.student.requires_grad_()
        self.ids = torch.randint(0, V, (B, T), generator=rng)
        self.mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
        self.logp = self.student.log_softmax(-1).gather(-1, self.ids[..., None])[..., 0]
        noise = 0.6 * torch.randn(B, T, generator=rng).double()
        self.old = self.logp.detach() + noise
        self.taught = torch.ones(B, dtype=torch.bool)
        self.taught[UNTAUGHT] = taught

    def ours(self, method: Method, old: bool = False) -> Tensor:
        """The package's loss."""
        none = torch.zeros(B, T, dtype=torch.bool)
        told = self.teacher.log_softmax(-1).gather(-1, self.ids[..., None])[..., 0]
        found = [
            torch.zeros(B, T)
            if s.divergence is None
            else divergence(self.student.flatten(0, 1), self.teacher.flatten(0, 1), s.divergence)
            for s in method.streams
        ]
        batch = Batch(
            self.ids, self.mask, none, none, self.old if old else None, torch.zeros(B),
            torch.arange(B), teacher_logp_MBT=told[None], taught_MB=self.taught[None],
            divergence_SBT=torch.stack([x.view(B, T) for x in found]),
        )  # fmt: skip
        return loss(method, batch, self.logp).loss

    def theirs(self, trainer: Any, skip: int = 0, old: bool = False, **args: Any) -> Tensor:
        """TRL's, from a trainer of which only the loss is asked."""
        mask = self.mask & self.taught[:, None] & (torch.arange(T) >= skip)
        logits = DistillationLogits(self.ids, mask.long(), self.student, self.teacher)
        stub = SimpleNamespace(
            args=SimpleNamespace(**{"distillation_is_clip": None, **args}),
            accelerator=SimpleNamespace(gather=lambda x: x),
            _log_self_distillation_metric=lambda *_: None,
        )
        given = {"old_per_token_logps": self.old if old else None}
        model = SimpleNamespace(training=True)
        return trainer._compute_self_distillation_loss(stub, model, given, logits)

    def same(self, a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
        (ga,), (gb,) = (gradients(x, self.student) for x in (a, b))
        size = gb.abs().max()
        assert size > 1e-6
        return bool(
            (a - b).abs() < tolerance * b.abs() and (ga - gb).abs().max() < tolerance * size
        )


FULL = {"distillation_mode": "full_logits"}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("skip", [0, 1])
def test_sdft_over_the_vocabulary(alpha: float, skip: int) -> None:
    case = Case()
    ours = case.ours(load("sdft", skip=skip, divergence={"alpha": alpha}))
    assert case.same(ours, case.theirs(SDFTTrainer, skip, **FULL, distillation_alpha=alpha))
    other = case.theirs(SDFTTrainer, skip, **FULL, distillation_alpha=1.0 - alpha / 2)
    assert not case.same(ours, other, 1e-2)


def test_sdft_with_an_old_policy() -> None:
    case = Case()
    given = {**FULL, "distillation_alpha": 0.0, "distillation_is_clip": 1.3, "old": True}
    theirs = case.theirs(SDFTTrainer, **given)
    assert case.same(case.ours(load("sdft", skip=0, ratio_cap=1.3), old=True), theirs)
    assert not case.same(case.ours(load("sdft", skip=0, ratio_cap=2.0), old=True), theirs, 1e-3)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_sdft_on_the_students_top(alpha: float, tail: bool) -> None:
    case = Case()
    spec = {"alpha": alpha, "support": "student", "top": 4, "tail": tail}
    given = {"distillation_mode": "topk_logits", "distillation_topk": 4}
    theirs = case.theirs(SDFTTrainer, **given, distillation_alpha=alpha, distillation_add_tail=tail)
    assert case.same(case.ours(load("sdft", skip=0, divergence=spec)), theirs)


def test_the_sampled_token_is_the_gap_as_advantage() -> None:
    """``sampled_token`` is ``sg(log p - log q) log p``: opd's, whose ratio is 1, by rows."""
    case = Case()
    theirs = case.theirs(SDFTTrainer, distillation_mode="sampled_token", distillation_alpha=1.0)
    ours = case.ours(load("opd", path="x", aggregation="seq_mean_token_mean"))
    (ga,), (gb,) = (gradients(x, case.student) for x in (ours, theirs))
    assert (ga - gb).abs().max() < 1e-12


def test_sdpo_and_rows_without_a_teacher() -> None:
    """TRL has such rows as 0 in the mean over rows; SDPO's own code, and ours, leave them out."""
    case = Case(taught=False)
    spec = {"divergence": {"top": 4}, "aggregation": "seq_mean_token_mean"}
    method = load("sdpo", **spec)
    theirs = case.theirs(
        SDPOTrainer, distillation_mode="topk_logits", distillation_topk=4,
        distillation_alpha=0.5, distillation_add_tail=True,
    )  # fmt: skip
    counted = replace(method, streams=(replace(method.streams[0], counts="all"),))
    assert case.same(case.ours(counted), theirs)
    assert case.ours(method).item() == pytest.approx(theirs.item() * B / (B - 1))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gkd_and_the_chunked_kernel(beta: float) -> None:
    case = Case()
    ours = case.ours(load("gkd", path="x", divergence={"alpha": beta}))
    labels = case.ids.masked_fill(~case.mask, -100)
    theirs = GKDTrainer.generalized_jsd_loss(
        case.student, case.teacher, labels, beta, num_items_in_batch=int(case.mask.sum())
    )
    assert case.same(ours, theirs)
    # DistillationTrainer's, from hidden states: the heads of both, in single precision.
    rng = torch.Generator().manual_seed(4)
    hidden, weight = torch.randn(9, 3, generator=rng), torch.randn(V, 3, generator=rng)
    other, head = torch.randn(9, 4, generator=rng), torch.randn(V, 4, generator=rng)
    spec = load("gkd", path="x", divergence={"alpha": beta}).streams[0].divergence
    both = [x.requires_grad_() for x in (hidden, weight)]
    mine = ChunkedDivergence.apply(hidden, weight, None, other, head, None, spec, 0.8)
    kernel = ChunkedDivergenceFunction.apply(hidden, weight, None, other, head, None, beta, 0.8)[0]
    assert torch.allclose(mine, kernel, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(mine.sum(), *both), gradients(kernel.sum(), *both), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)

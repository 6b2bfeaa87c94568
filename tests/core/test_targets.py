"""Which tokens of which rows a method trains, and at which temperature it may."""

from dataclasses import replace

import pytest
import torch
from batches import gradients
from cases import case

from prefix_rft.core import loss
from prefix_rft.methods import BUILT_IN, load

t = torch.tensor
TRAIN_PREFIX = {"uft", "prefix_rft", "trapo"}


# ---- temperature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_methods_that_read_likelihoods_say_so(name: str) -> None:
    """Where all log-probs (old and reference ones too) move by the same amount, ratios stay."""
    c = case(name)
    moved = []
    for shift in (0.0, -0.4):
        assert c.batch.old_logp_BT is not None
        assert c.batch.ref_logp_BT is not None
        old, ref = c.batch.old_logp_BT + shift, c.batch.ref_logp_BT + shift
        assert c.batch.teacher_logp_MBT is not None
        told = c.batch.teacher_logp_MBT + shift
        batch = replace(c.batch, old_logp_BT=old, ref_logp_BT=ref, teacher_logp_MBT=told)
        logp = (c.logp.detach() + shift).requires_grad_()
        value = loss(c.method, batch, logp, c.entropy, targets=c.targets).loss
        moved.append(gradients(value, logp)[0])
    reads = not torch.allclose(*moved, rtol=1e-9, atol=1e-15)
    assert reads == (name in {"luffy", "srft", "dft", "chord", "trapo"})
    imitates = c.method.trains("demonstration")
    assert c.method.needs_unit_temperature or not (reads or imitates)


@pytest.mark.parametrize(("name", "how"), [("uft", {}), ("prefix_rft", {"prefix_loss": "static"})])
def test_likelihood_of_a_prefix_is_that_of_temperature_one(name: str, how: dict) -> None:
    assert load(name, **how).needs_unit_temperature


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "bread", "questa"])
def test_methods_of_ratios_have_any_temperature(name: str) -> None:
    assert not load(name).needs_unit_temperature


# ---- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_targets(name: str) -> None:
    """Never a prompt; a prefix in three methods; a demonstration up to and with its last token."""
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
    hint = next(
        i for i, s in enumerate(c.method.streams) if s.name in ("prefix", "hint", "imitation")
    )
    assert c.targets.scale_S[hint] == 0.0 or name != "uft"  # which counts hints alone
    assert not c.targets.acts_SBT[hint].any()
    assert torch.isfinite(c.run()[1]).all()

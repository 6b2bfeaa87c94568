"""Where an earlier version and its own docstrings, or the formulas, parted ways."""

from typing import Any

import pytest
import torch
from test_oracle_parts import small

from prefix_rft.core import Batch, Method, Stream, group_advantage, loss
from prefix_rft.core.parts import Normaliser
from prefix_rft.core.schedules import parse
from prefix_rft.core.select import number_kept
from prefix_rft.methods import load

GROUP = torch.zeros(4, dtype=torch.int64)


def plain(reward: list[float], old: float, **changes: Any) -> Batch:
    """One group of rows with one token each, in single precision."""
    n = len(reward)
    mask = torch.ones(n, 1, dtype=torch.bool)
    parts = {
        "tokens_BT": mask.long(),
        "response_mask_BT": mask,
        "prefix_mask_BT": ~mask,
        "demo_mask_BT": ~mask,
        "old_logp_BT": torch.full((n, 1), old),
        "reward_B": torch.tensor(reward),
        "group_B": torch.zeros(n, dtype=torch.int64),
    }
    return Batch(**{**parts, **changes})


@pytest.mark.parametrize("reward", [[1, 0, 0, 0], [True, False, False, False]], ids=str)
def test_whole_number_rewards_keep_their_signal(reward: list) -> None:
    """R - mean = .75, -.25, -.25, -.25, or a refusal; not 0, 0, 0, 0 and not True, True, ..."""
    try:
        got = group_advantage(torch.tensor(reward), GROUP)
    except ValueError:
        return
    assert got.tolist() == [0.75, -0.25, -0.25, -0.25]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens_BT", torch.zeros(4, 4)),
        ("group_B", torch.tensor([0.0, 0.5, 1.0, 1.5])),
        ("truncated_B", torch.tensor([1, 0, 0, 1])),
    ],
)
def test_dtypes_are_checked(name: str, value: torch.Tensor) -> None:
    """Batch: whole-number tokens and groups, bool truncated; ValueError where dtypes disagree."""
    with pytest.raises(ValueError, match=name):
        small(**{name: value})


def test_a_row_is_hybrid_or_a_demonstration() -> None:
    """One row with prefix tokens and whole-demonstration tokens contradicts itself."""
    batch = small()
    demo = batch.demo_mask_BT.clone()
    demo[1, 2] = True
    with pytest.raises(ValueError, match="mask"):
        small(demo_mask_BT=demo)


@pytest.mark.parametrize(("fraction", "count"), [(1e-6, 1), (1e-9, 5)])
def test_any_positive_fraction_keeps_one(fraction: float, count: int) -> None:
    """number_kept: at least one of a non-empty set for any positive fraction."""
    assert number_kept(fraction, count) == 1


@pytest.mark.parametrize(
    "options", [{"epsilon": "0.2"}, {"const": "9"}, {"num_hybrid": 1.5}, {"const": float("nan")}]
)
def test_values_of_a_wrong_type_are_value_errors(options: dict) -> None:
    """load: ValueError for an unknown value; a recipe may well quote a number."""
    name = "prefix_rft" if "num_hybrid" in options else "grpo"
    with pytest.raises(ValueError, match=next(iter(options))):
        load(name, **options)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "linear", "start": "a", "end": 1.0},
        {"kind": "linear", "start": 0.0, "end": 1.0, "steps": "ten"},
        {"kind": "constant", "start": 0.5, "end": 0.9},
    ],
    ids=str,
)
def test_schedule_values_are_understood_or_refused(data: dict) -> None:
    """parse: ValueError where a value is not understood (or, last, would be ignored)."""
    with pytest.raises(ValueError, match=r"start|steps|end"):
        parse(data)


def test_masking_truncated_rows_needs_to_know_them() -> None:
    """truncated='mask' without truncated_B masks nothing and says nothing."""
    logp = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="truncated_B"):
        loss(load("grpo", truncated="mask"), plain([1.0, 0.0], 0.0), logp)


@pytest.mark.parametrize(
    ("options", "row"), [({}, 0), ({"delta": 2.0}, 0), ({"delta": 2.0}, 1)], ids=str
)
def test_a_clipped_token_has_gradient_zero_however_far(options: dict, row: int) -> None:
    """rho = e^100 overflows float32. Row 0 has A > 0: clip. Row 1 has A < 0: dual clip at delta."""
    logp = torch.zeros(2, 1, requires_grad=True)
    old = torch.full((2, 1), 0.0)
    old[row] = -100.0
    batch = plain([1.0, 0.0], 0.0, old_logp_BT=old)
    out = loss(load("dr_grpo", **options), batch, logp)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert logp.grad[row].item() == 0


@pytest.mark.parametrize("name", ["sft", "prefix_rft"])
def test_weights_do_not_touch_a_likelihood_term(name: str) -> None:
    """weight_BT: a factor on the policy-gradient terms; constant-advantage likelihood is none."""
    options = {"prefix_loss": "static", "entropy_keep": 1.0} if name == "prefix_rft" else {}
    logp, entropy = torch.full((4, 4), -1.0), torch.ones(4, 4)
    flat = torch.ones(4)
    method = load(name, **options)
    once, twice = (
        loss(method, small(reward_B=flat, weight_BT=w), logp, entropy).loss.item()
        for w in (None, torch.full((4, 4), 2.0))
    )
    assert once > 0
    assert twice == once


@pytest.mark.parametrize("surrogate", ["kl", "entropy"])
def test_regularisers_do_not_use_the_advantage(surrogate: str) -> None:
    """Stream: the advantage is unused by kl and entropy; its default is 'group', here flat."""
    batch = plain([1.0, 1.0], 0.0, ref_logp_BT=torch.full((2, 1), -2.0))
    logp, entropy = torch.full((2, 1), -1.0), torch.full((2, 1), 0.5)
    by_default, by_constant = (
        loss(
            Method(
                "m",
                (Stream("r", ("policy",), surrogate, **kw),),
                normaliser=Normaliser("token_mean"),
            ),
            batch,
            logp,
            entropy,
        ).loss.item()
        for kw in ({}, {"advantage": 1.0})
    )
    # k3 at a log-ratio of -1 is 1/e; minus the entropy is -1/2.
    assert by_constant == pytest.approx(0.36787944 if surrogate == "kl" else -0.5, abs=1e-6)
    assert by_default == by_constant

"""Batches: origins of tokens and rows, parts, and what contradicts itself."""

import dataclasses

import pytest
import torch
from batches import small

from prefix_rft.core import Batch
from prefix_rft.core.schedules import constant
from prefix_rft.methods import load


def test_every_token_and_row_has_its_origin() -> None:
    batch = small()
    assert batch.hybrid_B.tolist() == [False, True, False, False]
    assert batch.demo_B.tolist() == [False, False, True, False]
    assert batch.policy_B.tolist() == [True, False, False, True]
    origin = {
        "policy": [(0, 2), (0, 3)],
        "prefix": [(1, 0), (1, 1)],
        "continuation": [(1, 2)],
        "demonstration": [(2, 1), (2, 2)],
    }
    for name, spots in origin.items():
        assert [tuple(p) for p in batch.origin((name,)).nonzero().tolist()] == spots
    assert torch.equal(batch.origin(tuple(origin)), batch.response_mask_BT)
    rollouts = ("policy", "prefix", "continuation")
    assert batch.rows_with(rollouts).tolist() == [True, True, False, True]
    assert batch.rows_with(("policy",)).tolist() == [True, False, False, True]
    assert batch.rows_with(("demonstration",)).tolist() == [False, False, True, False]


def test_a_row_with_a_hint_is_hybrid_and_all_of_it_was_sampled() -> None:
    batch = small(hinted_B=torch.tensor([True, False, False, False]))
    assert batch.hybrid_B.tolist() == [True, True, False, False]
    assert batch.policy_B.tolist() == [False, False, False, True]
    # What was the policy's in row 0 is a continuation now, and no token is lost or counted twice.
    assert batch.origin(("continuation",))[0].tolist() == small().origin(("policy",))[0].tolist()
    assert batch.origin(("continuation",))[0].any()
    assert not batch.origin(("policy", "prefix", "demonstration"))[0].any()
    everything = ("policy", "prefix", "continuation", "demonstration")
    assert torch.equal(batch.origin(everything), batch.response_mask_BT)
    assert batch.rows_with(("continuation",)).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="a row of demo_mask_BT has a prefix or a hint too"):
        small(hinted_B=torch.tensor([False, False, True, False]))


def test_a_prefix_that_is_context_is_a_prefix_still() -> None:
    """Its tokens and its row count; they are not open to be trained."""
    batch = small(context_B=torch.tensor([False, True, False, False]))
    assert torch.equal(batch.origin(("prefix",)), small().origin(("prefix",)))
    assert small().open_prefix_BT.nonzero().tolist() == [[1, 0], [1, 1]]
    assert not batch.open_prefix_BT.any()
    assert batch.rows_with(("prefix",)).tolist() == [False, True, False, False]


def several(name: str) -> bool:
    """Whether a field has something for each teacher or stream."""
    return name.rpartition("_")[2][0] in "MS"


def test_part_takes_rows_and_width_of_everything() -> None:
    batch = small(
        ref_logp_BT=torch.ones(4, 4),
        weight_BT=torch.ones(4, 4),
        hinted_B=torch.tensor([False, True, False, False]),
        context_B=torch.tensor([False, True, False, False]),
        truncated_B=torch.tensor([True, False, True, False]),
        guided_B=torch.tensor([True, False, False, False]),
        dropped_B=torch.tensor([False, False, True, True]),
        teacher_logp_MBT=torch.arange(32.0).view(2, 4, 4),
        taught_MB=torch.tensor([[True, False, True, False], [False, True, True, True]]),
        divergence_SBT=torch.arange(48.0).view(3, 4, 4),
    )
    part = batch.part(torch.tensor([2, 0]), 3)
    for f in dataclasses.fields(Batch):
        whole, piece = getattr(batch, f.name), getattr(part, f.name)
        rows = whole.transpose(0, 1)[[2, 0]].transpose(0, 1) if several(f.name) else whole[[2, 0]]
        expected = rows[..., :3] if f.name.endswith("BT") else rows
        assert torch.equal(piece.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert small().part(slice(1, 3)).tokens_BT.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert small(old_logp_BT=None).part(slice(0, 1)).old_logp_BT is None


BT = [f.name for f in dataclasses.fields(Batch) if f.name.endswith("_BT")]
B1 = [f.name for f in dataclasses.fields(Batch) if f.name.endswith("_B")]
M = [f.name for f in dataclasses.fields(Batch) if several(f.name)]


@pytest.mark.parametrize("name", [*BT, *B1])
def test_shapes_are_checked(name: str) -> None:
    if name == "tokens_BT":
        with pytest.raises(ValueError, match=r"tokens_BT must have shape \(B, T\), got \(4,\)"):
            small(tokens_BT=torch.zeros(4, dtype=torch.int64))
        return
    bad = torch.zeros(4, 5) if name in BT else torch.zeros(5)
    shape = r"\(4, 4\)" if name in BT else r"\(4,\)"
    with pytest.raises(ValueError, match=rf"{name} must have shape {shape}, got"):
        small(**{name: bad.bool() if "mask" in name else bad})


@pytest.mark.parametrize("name", [n for n in BT if "mask" in n])
def test_masks_are_bool(name: str) -> None:
    """An int64 mask used as an index is a bug of the authors' code (prefix-rft.md 3.3)."""
    with pytest.raises(ValueError, match=f"{name} must be bool, got torch.int64"):
        small(**{name: torch.zeros(4, 4, dtype=torch.int64)})


def test_masks_must_not_contradict() -> None:
    with pytest.raises(ValueError, match="a token has one origin"):
        small(demo_mask_BT=small().prefix_mask_BT)
    for name in ("prefix_mask_BT", "demo_mask_BT"):
        outside = torch.zeros(4, 4, dtype=torch.bool)
        outside[3, 3] = True
        with pytest.raises(ValueError, match="must lie inside response_mask_BT"):
            small(**{name: outside})


def test_data_is_frozen() -> None:
    method = load("prefix_rft")
    for thing in (
        method,
        method.streams[0],
        method.selection,
        method.rows.prefix,
        small(),
        constant(1),
    ):
        name = dataclasses.fields(thing)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, None)


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

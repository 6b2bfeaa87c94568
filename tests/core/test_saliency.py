"""Scores and masks by hand."""

import pytest
import torch
from torch import Tensor

from prefix_rft.core.saliency import SCORES, keep_most_salient, salience, term
from prefix_rft.support.errors import UserError

W = torch.tensor([1.0, -2.0, 3.0, 0.5])
G = torch.tensor([0.4, 0.1, -0.2, 0.3])


def chosen(mask: Tensor) -> set[int]:
    return set(mask.flatten().nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("score", "values", "kept"),
    [
        ("gradient", [0.4, 0.1, 0.2, 0.3], {0, 3}),
        ("magnitude", [1.0, 2.0, 3.0, 0.5], {1, 2}),
        ("snip", [0.4, 0.2, 0.6, 0.15], {0, 2}),
        ("force", [-0.4, 0.2, 0.6, -0.15], {1, 2}),
    ],
)
def test_scores_by_hand(score: str, values: list[float], kept: set[int]) -> None:
    """Of one gradient, and of two that add up to it; two of four weights."""
    total = term(score, G + 1.0) + term(score, torch.full_like(G, -1.0))
    for found in (salience(score, W, term(score, G)), salience(score, W, total)):
        torch.testing.assert_close(found, torch.tensor(values))
        assert chosen(keep_most_salient({"w": found}, count=2)["w"]) == kept
        assert chosen(keep_most_salient({"w": found}, 0.5)["w"]) == kept


def test_taylor_is_snip() -> None:
    """(w g)^2 orders weights as |w g| does, so the paper's tenth score chooses nothing else."""
    taylor = {"w": (W * G) ** 2}
    for k in (1, 2, 3):
        snip = {"w": salience("snip", W, G)}
        assert keep_most_salient(taylor, count=k)["w"].equal(keep_most_salient(snip, count=k)["w"])


def test_fisher_does_not_cancel() -> None:
    """Of two examples whose gradients cancel the squares remain: .16 + .16, .01 + .01, ..."""
    total = term("fisher", G) + term("fisher", -G)
    torch.testing.assert_close(salience("fisher", W, total), torch.tensor([0.32, 0.02, 0.08, 0.18]))
    assert not salience("gradient", W, term("gradient", G) + term("gradient", -G)).any()


def test_sums_are_float32() -> None:
    """In bfloat16, 256 + 1 is 256."""
    g = torch.ones(1, dtype=torch.bfloat16)
    total = term("gradient", g * 256) + term("gradient", g)
    assert total.dtype == torch.float32
    assert total.item() == 257


def test_random_is_its_seed() -> None:
    first, again, other = (salience("random", W, None, seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


TWO = {"a": torch.tensor([[9.0, 8.0], [7.0, 1.0]]), "b": torch.tensor([3.0, 2.0, 2.0])}


@pytest.mark.parametrize(
    ("amount", "scope", "a", "b"),
    [
        ({"count": 4}, "global", {0, 1, 2}, {0}),
        ({"count": 6}, "global", {0, 1, 2}, {0, 1, 2}),
        ({"count": 5}, "global", {0, 1, 2}, {0, 1}),  # of the two twos the earlier one
        ({"count": 3}, "local", {0, 1}, {0}),  # the first tensor has the one that is left
        ({"count": 1}, "local", {0}, set()),
        ({"fraction": 0.5}, "local", {0, 1}, {0, 1}),  # round(1.5) is 2
        ({"fraction": 0.01}, "local", {0}, {0}),
        ({"count": 7}, "global", {0, 1, 2, 3}, {0, 1, 2}),
    ],
)
def test_masks_by_hand(amount: dict, scope: str, a: set[int], b: set[int]) -> None:
    masks = keep_most_salient(TWO, scope=scope, **amount)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in TWO.items()}
    assert (chosen(masks["a"]), chosen(masks["b"])) == (a, b)


@pytest.mark.parametrize(
    ("amount", "scope", "sentence"),
    [
        ({"count": 8}, "global", "count=8 is more than the 7 weights there are: lower it"),
        ({"count": 7}, "local", "count=7 is 4 of each of 2 tensors, and one has only 3"),
        ({"count": 2, "fraction": 0.1}, "global", "one of the two"),
        ({}, "global", "one of the two"),
        ({"fraction": 0.0}, "local", r"must be in \(0, 1\]"),
        ({"fraction": 0.5}, "tensor", "scope of the mask"),
    ],
)
def test_what_cannot_be_kept(amount: dict, scope: str, sentence: str) -> None:
    scores = dict(reversed(TWO.items()))  # the first one has three entries, the second four
    with pytest.raises(UserError, match=sentence):
        keep_most_salient(scores, scope=scope, **amount)


def test_unknown_scores() -> None:
    assert len(SCORES) == 6
    with pytest.raises(UserError, match="did you mean 'force'"):
        salience("forcee", W, G)

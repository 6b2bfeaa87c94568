"""Which prefix tokens keep their advantage."""

import pytest
import torch

from prefix_rft.core import keep_fraction
from prefix_rft.core.select import number_kept

INF, NAN = float("inf"), float("nan")
SCORE = torch.tensor([[5.0, 1.0, NAN, 4.0], [INF, 3.0, 2.0, 6.0]])
CANDIDATE = torch.tensor([[True, True, False, True], [False, True, True, True]])


def kept(fraction: float, **options: object) -> list[tuple[int, int]]:
    mask = keep_fraction(SCORE, CANDIDATE, fraction, **options)
    assert not (mask & ~CANDIDATE).any()
    return [tuple(x) for x in mask.nonzero().tolist()]


@pytest.mark.parametrize(
    ("fraction", "count", "expected"),
    [(0.2, 5, 1), (0.2, 6, 2), (0.2, 15, 3), (0.2, 1, 1), (0.2, 0, 0), (0.0, 9, 0), (1.0, 9, 9)],
)
def test_how_many(fraction: float, count: int, expected: int) -> None:
    assert number_kept(fraction, count) == expected


def test_pooled_and_per_row() -> None:
    # Six candidates: 6 > 5 > 4 > 3 > 2 > 1.
    assert kept(1 / 3) == [(0, 0), (1, 3)]
    assert kept(1 / 3, mode="low") == [(0, 1), (1, 2)]
    assert kept(1 / 3, per_row=True) == [(0, 0), (1, 3)]
    assert kept(0.5) == [(0, 0), (0, 3), (1, 3)]
    # Half of three is two in each row.
    assert kept(0.5, per_row=True) == [(0, 0), (0, 3), (1, 1), (1, 3)]


def test_one_row_can_lose_everything_in_the_pool() -> None:
    score = torch.tensor([[9.0, 8.0], [1.0, 2.0]])
    everyone = torch.ones(2, 2, dtype=torch.bool)
    assert keep_fraction(score, everyone, 0.5).tolist() == [[True, True], [False, False]]


def test_random_has_the_count_and_a_seed() -> None:
    everyone = torch.ones(4, 50, dtype=torch.bool)
    masks = [keep_fraction(torch.zeros(4, 50), everyone, 0.2, "random", seed=s) for s in (1, 1, 2)]
    assert all(int(m.sum()) == 40 for m in masks)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_ties_go_to_the_earlier_position() -> None:
    everyone = torch.ones(2, 3, dtype=torch.bool)
    assert keep_fraction(torch.zeros(2, 3), everyone, 0.5).tolist() == [[True] * 3, [False] * 3]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown entropy mode 'hig': did you mean 'high'"):
        kept(0.5, mode="hig")
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        kept(1.5)
    with pytest.raises(ValueError, match="must agree"):
        keep_fraction(SCORE, CANDIDATE[:, :2], 0.5)

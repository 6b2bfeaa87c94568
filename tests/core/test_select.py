"""Which prefix tokens keep their advantage."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_how_many_in_whole_numbers() -> None:
    for percent, n in itertools.product(range(101), range(301)):
        assert number_kept(percent / 100, n) == -(-percent * n // 100), (percent, n)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["high", "low"]),
    st.booleans(),
    st.integers(0, 20),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_selection(
    seed: int, mode: str, per_row: bool, twentieths: int, levels: int, density: float
) -> None:
    """With one or three levels of score most are ties: the earlier row and position wins."""
    rng = random.Random(seed)
    B, T = rng.randint(1, 5), rng.randint(1, 8)
    chosen_from = [[rng.random() < density for _ in range(T)] for _ in range(B)]
    score = [
        [
            float(rng.randrange(levels)) if chosen_from[b][t] else rng.choice([NAN, INF, -INF, 5e9])
            for t in range(T)
        ]
        for b in range(B)
    ]
    mask = torch.tensor(chosen_from)
    got = keep_fraction(torch.tensor(score), mask, twentieths / 20, mode, per_row)
    assert got.dtype == torch.bool
    pools = [[(b, t) for t in range(T) if chosen_from[b][t]] for b in range(B)]
    if not per_row:
        pools = [[spot for pool in pools for spot in pool]]
    want = set()
    for pool in pools:
        count = -(-twentieths * len(pool) // 20)
        for _ in range(count):  # take the best one, the earliest among equals, again and again
            left = [p for p in pool if p not in want]
            best = (max if mode == "high" else min)(score[b][t] for b, t in left)
            want.add(next(p for p in left if score[p[0]][p[1]] == best))
    assert {tuple(p) for p in got.nonzero().tolist()} == want


def test_random_is_uniform_over_candidates() -> None:
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, 1:5] = mask[2, 2:8] = True
    hits = torch.zeros(3, 8)
    for seed in range(1000):
        got = keep_fraction(torch.full((3, 8), NAN), mask, 0.3, "random", seed=seed)
        assert int(got.sum()) == 3
        hits += got
    assert (hits[~mask] == 0).all()
    assert ((hits[mask] > 240) & (hits[mask] < 360)).all()  # 300 +- 4 deviations of 14.5
    per_row = keep_fraction(torch.zeros(3, 8), mask, 0.3, "random", True)
    assert per_row.sum(1).tolist() == [2, 0, 2]


@pytest.mark.parametrize(("fraction", "count"), [(1e-6, 1), (1e-9, 5)])
def test_any_positive_fraction_keeps_one(fraction: float, count: int) -> None:
    """number_kept: at least one of a non-empty set for any positive fraction."""
    assert number_kept(fraction, count) == 1

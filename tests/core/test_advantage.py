"""Group baselines by hand."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_rft.core import advantages, group_advantage
from prefix_rft.methods import load

NAN = float("nan")


def adv(reward: list, group: list, include: list | None = None, baseline: str = "mean") -> list:
    return group_advantage(
        torch.tensor(reward, dtype=torch.float64),
        torch.tensor(group),
        None if include is None else torch.tensor(include),
        baseline,
    ).tolist()


def test_mean() -> None:
    assert adv([1, 0, 0, 3], [7, 7, 7, 7]) == [0, -1, -1, 2]


def test_groups_may_be_interleaved() -> None:
    assert adv([1, 10, 0, 30], [5, -2, 5, -2]) == [0.5, -10, -0.5, 10]


def test_std_is_unbiased() -> None:
    """Rewards 1, 0, 0, 0: mean 1/4, variance (9/16 + 3/16) / 3 = 1/4, std 1/2."""
    assert adv([1, 0, 0, 0], [0] * 4, baseline="mean_std") == pytest.approx(
        [0.75 / 0.500001] + [-0.25 / 0.500001] * 3, rel=1e-12
    )


def test_leave_one_out() -> None:
    """Each reward against the mean of the two others."""
    assert adv([3, 0, 0], [0] * 3, baseline="leave_one_out") == pytest.approx([3, -1.5, -1.5])
    # A row outside the baseline has nothing to leave out.
    got = adv([3, 0, 0], [0] * 3, [False, True, True], "leave_one_out")
    assert got == pytest.approx([3, 0, 0])


def test_split_baseline() -> None:
    assert adv([1, 1, 0], [0] * 3, [False, True, True]) == [0.5, 0.5, -0.5]


@pytest.mark.parametrize("baseline", ["mean", "mean_std", "leave_one_out"])
def test_alone_ungraded_and_flat(baseline: str) -> None:
    assert adv([5.0], [0], baseline=baseline) == [0]
    assert adv([NAN, 5.0], [0, 0], baseline=baseline) == [0, 0]
    assert adv([NAN, NAN], [0, 0], baseline=baseline) == [0, 0]
    assert adv([0.1] * 7, [0] * 7, baseline=baseline) == [0] * 7  # exactly, not nearly
    assert adv([1 / 3] * 3, [0] * 3, [True, True, False], baseline) == [0] * 3


def test_ungraded_rows_leave_the_baseline() -> None:
    assert adv([1, NAN, 0], [0] * 3) == [0.5, 0, -0.5]


def test_the_row_that_rests_on_no_one_else() -> None:
    assert adv([1, 0], [0, 0], [True, False]) == [0, -1]
    assert adv([1, 0], [0, 0], [False, False]) == [0, 0]


def table(advantage: str) -> list[list[float]]:
    """Seven plain rows of which two are right, and a right hybrid row, which stands first."""
    method = load("prefix_rft", advantage=advantage)
    reward = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    hybrid = torch.tensor([True] + [False] * 7)
    out = advantages(method, reward, torch.zeros(8, dtype=torch.int64), hybrid, ~hybrid & hybrid)
    assert [s.name for s in method.streams] == ["policy", "continuation", "prefix"]
    return [[round(x, 4) for x in row] for row in out.tolist()]


def test_the_three_groupings() -> None:
    policy, continuation, prefix = table("one_group")
    assert policy[1:] == [0.625, 0.625] + [-0.375] * 5
    assert continuation[0] == prefix[0] == 0.625
    policy, continuation, prefix = table("policy_baseline")
    assert policy[1:] == [0.7143, 0.7143] + [-0.2857] * 5
    assert continuation[0] == prefix[0] == 0.7143
    policy, continuation, prefix = table("prefix_group")
    assert policy[1:] == [0.7143, 0.7143] + [-0.2857] * 5
    assert prefix[0] == 0.7143
    assert continuation[0] == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'means': did you mean 'mean'"):
        adv([1, 0], [0, 0], baseline="means")
    with pytest.raises(ValueError, match="infinite"):
        adv([float("inf"), 0], [0, 0])
    with pytest.raises(ValueError, match="of one length"):
        adv([1, 0], [0])


@st.composite
def grouped(draw: Any) -> tuple[list, list, list]:
    n = draw(st.integers(1, 14))
    reward = draw(
        st.lists(st.sampled_from([0.0, 1.0, 0.1, 0.9, -2.5, NAN]), min_size=n, max_size=n)
    )
    group = draw(st.lists(st.sampled_from([0, -9, 2**40]), min_size=n, max_size=n))
    include = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return reward, group, include


@settings(max_examples=150, deadline=None)
@given(grouped(), st.booleans(), st.sampled_from(["mean", "mean_std", "leave_one_out"]))
def test_baselines_are_exact(case: tuple, split: bool, baseline: str) -> None:
    reward, group, include = case
    got = group_advantage(
        torch.tensor(reward, dtype=torch.float64),
        torch.tensor(group),
        torch.tensor(include) if split else None,
        baseline,
    ).tolist()
    for i, r in enumerate(reward):
        mates = [
            j
            for j, other in enumerate(reward)
            if group[j] == group[i] and not math.isnan(other) and (include[j] or not split)
        ]
        if math.isnan(r) or mates in ([], [i]):
            assert got[i] == 0
            continue
        values = [Fraction(reward[j]) for j in mates]
        mean = sum(values) / len(values)
        if baseline == "leave_one_out" and i in mates:
            mean = (sum(values) - Fraction(r)) / (len(values) - 1)
        want = float(Fraction(r) - mean)
        if baseline == "mean_std":
            if len(values) == 1 or len(set(values)) == 1:
                # (R - mean) / (0 + eps) is huge for a row outside a flat baseline: see the report.
                if want == 0:
                    assert got[i] == 0
                continue
            squares = sum((v - mean) ** 2 for v in values)
            want /= math.sqrt(squares / (len(values) - 1)) + 1e-6
        assert got[i] == pytest.approx(want, rel=1e-9, abs=1e-12)
        if len({*values, Fraction(r)}) == 1:
            assert got[i] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_flat_is_flat(dtype: torch.dtype) -> None:
    for value in (0.1, 1 / 3, 0.7, 1e-8, 123.456):
        for n in (2, 3, 7, 8):
            for baseline in ("mean", "mean_std", "leave_one_out"):
                got = group_advantage(
                    torch.full((n,), value, dtype=dtype),
                    torch.zeros(n, dtype=torch.int64),
                    baseline=baseline,
                )
                assert got.dtype == dtype
                assert (got == 0).all()


@pytest.mark.parametrize("reward", [[1, 0, 0, 0], [True, False, False, False]], ids=str)
def test_whole_number_rewards_keep_their_signal(reward: list) -> None:
    """R - mean = .75, -.25, -.25, -.25, or a refusal; not 0, 0, 0, 0 and not True, True, ..."""
    try:
        got = group_advantage(torch.tensor(reward), torch.zeros(4, dtype=torch.int64))
    except ValueError:
        return
    assert got.tolist() == [0.75, -0.25, -0.25, -0.25]

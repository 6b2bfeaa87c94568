"""Group baselines by hand."""

import pytest
import torch

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

"""Who is compared with whom, and groups that are flat, alone or sampled again."""

import math
from dataclasses import replace

import pytest
import torch
from batches import gradients
from cases import GROUPED, case
from torch import Tensor

from prefix_rft.core import Method, advantages, loss, prepare
from prefix_rft.methods import BUILT_IN, load

NAN = float("nan")
t = torch.tensor
ON_POLICY = [n for n in BUILT_IN if any(s.advantage in GROUPED for s in load(n).streams)]
# Papers: the demonstration is a member of the group (LUFFY section 3, SRFT Eq. 7) or is not.
DEMO_IN = {"luffy", "srft", "trapo"}


def of_policy(method: Method) -> list[int]:
    """Streams with a group's advantage that train rollouts."""
    return [
        i
        for i, s in enumerate(method.streams)
        if s.advantage in GROUPED and set(s.tokens) & {"policy", "continuation"}
    ]


def group_of(rewards: list[float], *, demos: int = 0, hybrids: int = 0) -> tuple[Tensor, ...]:
    """Rewards, group ids, hybrid rows (first) and whole demonstrations (last)."""
    n, row = len(rewards), torch.arange(len(rewards))
    return t(rewards).double(), torch.zeros(n, dtype=torch.int64), row < hybrids, row >= n - demos


# ---- composition of the group --------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_demonstration_is_in_the_baseline_where_the_paper_has_it(name: str) -> None:
    method = load(name)
    one, two = (
        advantages(method, *group_of([1.0, 0.0, 0.0, 0.0, demo], demos=1)) for demo in (1.0, 0.0)
    )
    shifted = [not torch.equal(a[:4], b[:4]) for a, b in zip(one, two, strict=True)]
    grouped = [s.advantage in GROUPED for s in method.streams]
    assert shifted == [g and name in DEMO_IN for g in grouped]


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_rollout_without_mates_has_no_advantage(name: str) -> None:
    """0, and not its reward: also where the demonstration cannot be compared with."""
    method = load(name)
    for hybrids in (0, 1):
        alone = advantages(method, *group_of([1.0], hybrids=hybrids))
        ungraded = advantages(method, *group_of([1.0, NAN, NAN], demos=1, hybrids=hybrids))
        for s in of_policy(method):
            assert alone[s].tolist() == [0.0]
            assert ungraded[s].tolist() == [0.0, 0.0, 0.0]


def test_a_singleton_group_leaves_no_gradient() -> None:
    for name in ON_POLICY:
        c = case(name)
        alone = replace(c.batch, group_B=torch.arange(len(c.logp)))
        if "batch" in {s.advantage for s in c.method.streams}:
            continue  # there the group does not matter
        targets = prepare(c.method, alone, c.entropy.detach())
        for s in of_policy(c.method):
            assert not targets.acts_SBT[s].any()


def test_guided_rows_are_compared_with_guided_ones_alone() -> None:
    """POPE: hybrid rewards 1, 0 and plain 1, 0, 0, 0: std 1/sqrt(2) and 1/2."""
    plain, guided = advantages(load("pope"), *group_of([1.0, 0, 1, 0, 0, 0], hybrids=2))
    root = math.sqrt(0.5) + 1e-6
    assert guided[:2].tolist() == pytest.approx([0.5 / root, -0.5 / root])
    assert plain[2:].tolist() == pytest.approx([0.75 / 0.500001] + [-0.25 / 0.500001] * 3)


def test_a_batch_baseline_goes_over_groups() -> None:
    """QuestA: rewards 1, 1 | 0, 0: flat groups, but mean 1/2 and std 1/sqrt(3) over the batch."""
    reward, _, hybrid, demo = group_of([1.0, 1, 0, 0], hybrids=2)
    (got,) = advantages(load("questa"), reward, t([0, 0, 1, 1]), hybrid, demo)
    a = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert got.tolist() == pytest.approx([a, a, -a, -a])


# ---- flat groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -1.0])
def test_flat_groups_have_no_gradient(name: str, reward: float) -> None:
    c = case(name)
    flat = replace(c.batch, reward_B=torch.full_like(c.batch.reward_B, reward))
    targets = prepare(c.method, flat, c.entropy.detach())
    keep = of_policy(c.method)
    assert keep or name == "srft"
    assert not targets.acts_SBT[keep].any()
    rest = tuple(s for i, s in enumerate(c.method.streams) if i in keep)
    if rest:
        heard = tuple(t for t in c.method.teachers if t.name in {s.teacher for s in rest})
        kept = replace(c.method.groups, all_wrong="keep")  # there may be no guided stream left
        method = replace(c.method, streams=rest, teachers=heard, groups=kept)
        (g,) = gradients(loss(method, flat, c.logp, c.entropy).loss, c.logp)
        assert not g.any()


def test_luffy_on_a_hard_prompt() -> None:
    """Seven rollouts fail, the demonstration is right: -1/8 each and +7/8; all right: 0."""
    method = load("luffy")
    policy, demonstration, _ = advantages(method, *group_of([0.0] * 7 + [1.0], demos=1))
    assert policy[:7].tolist() == [-0.125] * 7
    assert demonstration[7].item() == 0.875
    policy, demonstration, _ = advantages(method, *group_of([1.0] * 8, demos=1))
    assert not policy.any()
    assert not demonstration.any()


# ---- groups that were sampled again ------------------------------------------------------------


def lengthens(name: str) -> bool:
    method = load(name)
    whole = method.contrast is None and not method.planner.waits and method.guide is None
    return method.trains("continuation") and whole


@pytest.mark.parametrize("name", [n for n in BUILT_IN if lengthens(n)])
def test_a_group_that_branched_as_a_whole_is_trained(name: str) -> None:
    """``all_wrong: lengthen`` turns all rows but whole demonstrations into hybrid ones."""
    method = load(name, all_wrong="lengthen")
    demos = method.rows.num_demonstrations
    rewards, group, _, demo = group_of([1.0, 0.0, 0.0, *[1.0] * demos], demos=demos)
    got = advantages(method, rewards, group, ~demo, demo)
    sampled = [s for s, stream in enumerate(method.streams) if "continuation" in stream.tokens]
    trained = [s for s in sampled if method.streams[s].surrogate not in ("kl", "entropy")]
    assert got[trained][:, ~demo].any()

"""What is suspected to be wrong: each test fails today and will say so once it passes."""

import pytest
from test_traps_groups import group_of

from prefix_rft.core import advantages
from prefix_rft.methods import BUILT_IN, load


def lengthens(name: str) -> bool:
    return load(name).trains("continuation") and load(name).contrast is None


IN_VAIN = pytest.mark.xfail(
    strict=True, reason="the baseline is of on-policy rows, of which a branched group has none"
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=IN_VAIN if n == "chord" else ()) for n in BUILT_IN if lengthens(n)],
)
def test_a_group_that_branched_as_a_whole_is_trained(name: str) -> None:
    """``all_wrong: lengthen`` turns all rows but whole demonstrations into hybrid ones."""
    method = load(name, all_wrong="lengthen")
    demos = method.num_demonstrations
    rewards, group, _, demo = group_of([1.0, 0.0, 0.0, *[1.0] * demos], demos=demos)
    got = advantages(method, rewards, group, ~demo, demo)
    sampled = [s for s, stream in enumerate(method.streams) if "continuation" in stream.tokens]
    trained = [s for s in sampled if method.streams[s].surrogate not in ("kl", "entropy")]
    assert got[trained][:, ~demo].any()

"""Metrics of a generation, with the same names and meanings in all engines.

Letters: N rows of all processes, those that only fill a batch left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from torch import Tensor

from prefix_rft.core import Method, PrefixSampler, outcome
from prefix_rft.core.planner import Record
from prefix_rft.core.store import Trace


def group_metrics(method: Method, rate_N: Tensor, changed_N: Tensor) -> dict[str, float]:
    """Shares of the rows whose group failed, was solved, or was sampled again.

    Args:
        method: the method whose groups they are.
        rate_N: solve rate of the sampled rows of each row's group; NaN where none has a reward.
        changed_N: bool, rows of groups that were sampled again.
    """
    shares = {"all_wrong": outcome.all_wrong(rate_N), "all_right": outcome.all_right(rate_N)}
    if method.groups.sampled_again:
        shares["resampled"] = changed_N
    return {f"groups/{name}": share.float().mean().item() for name, share in shares.items()}


def start_metrics(
    method: Method, length_N: Tensor, hybrid_N: Tensor, demo_N: Tensor
) -> dict[str, float]:
    """How many rows start from a prefix, how long it is, and how many are demonstrations.

    Args:
        method: the method whose rows they are; none of this is told of one that never starts from
            anything.
        length_N: tokens of the demonstration that each row starts from.
        hybrid_N: bool, rows that continue a prefix.
        demo_N: bool, whole demonstrations.
    """
    if not method.branches:
        return {}
    lengths = length_N[hybrid_N]
    metrics = {"prefix/row_share": len(lengths) / len(hybrid_N)}
    if len(lengths):
        metrics["prefix/length"] = lengths.float().mean().item()
    if method.trains("demonstration"):
        metrics["demonstration/row_share"] = demo_N.float().mean().item()
    return metrics


def memory_metrics(examples: Mapping[int, Record]) -> dict[str, float]:
    """What a planner remembers: of how many examples, and the means of a controller's numbers.

    Args:
        examples: its records by example.
    """
    found = {"memory/examples": float(len(examples))}
    for metric, name in (("control/u", "u"), ("control/rate", "rate")):
        if known := [record[name] for record in examples.values() if name in record]:
            found[metric] = mean(known)
    return found


def store_metrics(traces: Mapping[int, Sequence[Trace]]) -> dict[str, float]:
    """How much is kept of own rollouts.

    Args:
        traces: the rollouts that are kept of each example.
    """
    tokens = sum(len(trace.ids) for some in traces.values() for trace in some)
    return {"store/examples": float(len(traces)), "store/tokens": float(tokens)}


def prefix_bounds(
    planner: PrefixSampler, steps: Sequence[int], total_steps: int
) -> dict[str, float]:
    """Means of the bounds of the prefix law over the steps in which rows were planned.

    Args:
        planner: the planner of the prefix length.
        steps: optimizer steps, at least one.
        total_steps: steps of the run.
    """
    lows, highs = zip(*(planner.interval(step, total_steps) for step in steps), strict=True)
    return {"prefix/low": mean(lows), "prefix/high": mean(highs)}

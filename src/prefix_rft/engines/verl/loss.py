"""The loss of a micro-batch on verl's engines: core's, of targets that its mini-batch has fixed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from prefix_rft.core import Method, loss
from prefix_rft.engines.verl.columns import get_targets, to_batch

SUM, COUNT = "prefix_rft_sum/", "prefix_rft_count/"
"""What verl's metrics are called on the way; the rest of the name is in hexadecimal digits, because
verl takes the maximum of what has ``max`` in its name, and the minimum likewise."""


def method_loss(
    method: Method, model_output: Any, data: Any, dp_group: Any = None
) -> tuple[Tensor, dict[str, Metric]]:
    """This micro-batch's share of the loss of its optimizer step.

    Args:
        method: the method whose loss it is.
        model_output: verl's, with ``log_probs`` and ``entropy`` of all tokens.
        data: the rows, with targets.
        dp_group: unused; the counts over processes are in the targets.
    """
    logp_BT = no_padding_2_padding(model_output["log_probs"], data)
    entropy_BT = no_padding_2_padding(model_output["entropy"], data)
    out = loss(
        method, to_batch(data), logp_BT, entropy_BT, targets=get_targets(data, logp_BT.size(1))
    )
    metrics = {}
    for name, (s, n) in out.stats.items():
        code = name.encode().hex()
        metrics[SUM + code] = Metric(AggregationType.SUM, s)
        metrics[COUNT + code] = Metric(AggregationType.SUM, n)
    # Where no stream acts, since no teacher is heard, verl wants a gradient all the same: 0.
    loss_of_rows = out.loss + logp_BT[:0].sum()
    # Data-parallel engines average gradients over processes; these are shares of one sum.
    return loss_of_rows * data["dp_size"], metrics


def means(metrics: dict[str, Any]) -> dict[str, float]:
    """Take sums and counts out of verl's metrics, and give their quotients by name.

    verl has averaged both over processes and mini-batches, which leaves the quotient as it is.
    """
    prefix = "actor/" + SUM
    quotients = {}
    for key in [k for k in metrics if k.startswith(prefix)]:
        code = key.removeprefix(prefix)
        s, n = metrics.pop(key), metrics.pop(f"actor/{COUNT}{code}")
        if n > 0:
            quotients[bytes.fromhex(code).decode()] = float(s / n)
    return quotients

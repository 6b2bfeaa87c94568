"""What one generation is on the way from TRL's prompts to the loss: plain values, passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prefix_rft.engines.plan import RowPlan
from prefix_rft.engines.trl.rollout.scores import score_columns
from prefix_rft.engines.trl.rollout.verdicts import Rewards, Verdicts
from prefix_rft.engines.trl.window import Rows

Inputs = list[dict[str, Any]]
"""One example of the dataset for each row."""

Lists = Mapping[str, Sequence[float]]
"""By the name of a metric, numbers of which a line of the log holds the mean."""


@dataclass(frozen=True)
class Sampled:
    """The rows of one attempt at a generation, sampled and rewarded.

    Attributes:
        rows: TRL's tensors of this process's rows.
        reward_N: rewards of the rows of all processes as graded, before any price on their length;
            NaN where there is none.
        verdicts: name and verdicts of each grader, of this process's rows.
        metrics: the metrics of this attempt, which count if it stays.
    """

    rows: Rows
    reward_N: Tensor
    verdicts: Verdicts
    metrics: Lists


Sampler = Callable[[Inputs, list[RowPlan]], Sampled]
"""Samples and rewards rows as planned."""


@dataclass
class Attempt:
    """One call of TRL's that samples and rewards rows: what its hooks are given, and leave.

    Attributes:
        plans: the plans of the rows.
        inputs: the examples of the rows, with their own prompts.
        sampled: TRL has sampled them.
        scores_2BT: log-probs and entropies of the policy at the tokens of the rows that were
            sampled, where the sampler says them.
        rewards: what was said of them, once they are graded.
    """

    plans: list[RowPlan]
    inputs: Inputs = field(default_factory=list)
    sampled: bool = False
    scores_2BT: Tensor | None = None
    rewards: Rewards | None = None

    @property
    def more(self) -> bool:
        """Whether rows are yet to be sampled, so that only ids and rewards of this call count."""
        return any(plan.more for plan in self.plans)

    def gave(self, rows: Rows, metrics: Lists) -> Sampled:
        """The rows that TRL has returned, with their rewards.

        Raises:
            RuntimeError: TRL has not called the hooks, so that no plan was followed.
        """
        if not self.sampled or self.rewards is None:
            raise RuntimeError(
                "this version of TRL did not call _generate_single_turn or _calculate_rewards, "
                "so no prefix was used; supported: trl>=1.16,<2"
            )
        scores = score_columns(self.plans, self.scores_2BT, rows["completion_ids"])
        return Sampled({**rows, **scores}, self.rewards.reward_N, self.rewards.verdicts, metrics)


def take_new(
    lists: MutableMapping[str, list[float]], before: Mapping[str, int]
) -> dict[str, list[float]]:
    """Take out of lists of numbers what was added since they had these lengths."""
    added = {name: values[before.get(name, 0) :] for name, values in lists.items()}
    for name, values in added.items():
        del lists[name][len(lists[name]) - len(values) :]
        if name not in before:
            del lists[name]
    return {name: values for name, values in added.items() if values}


@dataclass(frozen=True)
class Generation:
    """The rollouts of a generation on this process.

    Attributes:
        inputs: one example for each row.
        plans: what was known of each row.
        sampled: the attempt that stayed.
        imitation: the rows are demonstrations that had been set aside.
        metrics: the metrics of the generation and of the attempt that stayed.
    """

    inputs: Inputs
    plans: list[RowPlan]
    sampled: Sampled
    imitation: bool
    metrics: Lists

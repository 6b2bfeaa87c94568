"""Log-probs and entropies of the rows of a step, without gradient.

Every process runs the same number of forwards, as sharded models require: each holds the same
number of rows, and where it does not, it runs idle ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.reference import ReferencePolicy
from prefix_rft.engines.trl.window import Rows

Score = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor | None]]
"""Of token ids (B, L), their attention mask, the last ``width`` positions that are wanted, and
whether entropies are: log-probs and entropies of the policy there, each of shape (B, width)."""


class Forward:
    """The policy that is trained, and its reference, as functions of rows.

    Args:
        score: a forward of the model's present weights, at the temperature of the rollouts.
        args: the trainer's configuration, for the rows of one forward.
        processes: the run's processes.
        reference: the policy that the method keeps for itself; None where it keeps none.
    """

    def __init__(
        self, score: Score, args: Any, processes: Processes, reference: ReferencePolicy | None
    ) -> None:
        self.score, self.size = score, int(args.per_device_train_batch_size)
        self.processes, self.reference = processes, reference

    @torch.no_grad()
    def log_probs(self, rows: Rows) -> Tensor:
        """Log-probs of the completions under the present weights, shape (B, T), 0 outside."""
        logp_BT, _ = self.score(
            torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1),
            torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1),
            rows["completion_ids"].size(1),
            False,
        )
        return logp_BT.masked_fill(~rows["completion_mask"].bool(), 0.0)

    def reference_log_probs(self, rows: Rows) -> Tensor | None:
        """The same under the reference policy; None where the method keeps none."""
        if self.reference is None:
            return None
        with self.reference.swapped():
            return self.log_probs(rows)

    @torch.no_grad()
    def prefix_entropy(self, rows: Rows) -> Tensor:
        """Entropy in nats at the prefix tokens of these rows, shape (B, T), 0 elsewhere.

        A forward reads prompt and prefix of the hybrid rows alone.
        """
        mask = rows["prefix_mask"]
        entropy = torch.zeros(mask.shape, device=mask.device)
        hybrid = mask.any(1).nonzero()[:, 0]
        # Sorted by length, so that a chunk holds little padding.
        hybrid = hybrid[mask[hybrid].sum(1).argsort(stable=True)]
        chunks = list(hybrid.split(self.size)) if len(hybrid) else []
        count = torch.tensor([len(chunks)], device=mask.device)
        wanted = int(self.processes.gather(count).max())
        idle = torch.zeros(1, dtype=torch.long, device=mask.device)
        for i in range(wanted):
            chunk = chunks[i] if i < len(chunks) else idle
            width = max(1, int(mask[chunk].sum(1).max()))
            prompts = rows["prompt_mask"][chunk]
            left = int(prompts.sum(1).max())
            ids = torch.cat(
                [rows["prompt_ids"][chunk][:, -left:], rows["completion_ids"][chunk][:, :width]], 1
            )
            attention = torch.cat(
                [prompts[:, -left:], rows["completion_mask"][chunk][:, :width]], 1
            )
            _, entropy_BT = self.score(ids, attention, width, True)
            if i < len(chunks):
                assert entropy_BT is not None  # noqa: S101  (asked for)
                entropy[chunk, :width] = entropy_BT.float()
        return entropy * mask

"""Log-probs and entropies of the rows of a step, without gradient.

Every process runs the same number of forwards, as sharded models require: where it has fewer rows
to score than others, it runs idle ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefix_rft.engines.kept_weights import KeptWeights
from prefix_rft.engines.states import States
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.engines.trl.scorer import Scorer, TokenScores
from prefix_rft.engines.trl.window import Rows, few


class Forward:
    """The policy that is trained, and its reference, as functions of rows.

    Args:
        scorer: how rows are scored.
        model: gives the model that scores, which a trainer may yet wrap or shard.
        plain: the same without what is wrapped around it.
        size: rows of one forward.
        processes: the run's processes.
        reference: the policy that the method keeps for itself; None where it keeps none.
    """

    def __init__(
        self,
        scorer: Scorer,
        model: Callable[[], Any],
        plain: Any,
        size: int,
        processes: Processes,
        reference: KeptWeights | None,
    ) -> None:
        self.scorer, self.model, self.plain, self.size = scorer, model, plain, size
        self.processes, self.reference = processes, reference

    @torch.no_grad()
    def of(self, rows: Rows, wanted_BT: Tensor, entropy: bool) -> TokenScores:
        """Log-probs, and entropies if asked for, of some tokens of the completions; 0 elsewhere.

        Rows of which no token is wanted are left out.
        """
        live = wanted_BT.any(1).nonzero()[:, 0]
        # The longest ones together, so that a chunk holds little padding.
        T = wanted_BT.size(1)
        last_B = (wanted_BT * torch.arange(1, T + 1, device=wanted_BT.device)).amax(1)
        if self.scorer.why_whole is not None:
            live = live[last_B[live].argsort(stable=True)]
        chunks = list(live.split(self.size)) if len(live) else []
        count = torch.tensor([len(chunks)], device=wanted_BT.device)
        out = [torch.zeros(wanted_BT.shape, device=wanted_BT.device) for _ in range(1 + entropy)]
        idle = torch.zeros(1, dtype=torch.long, device=wanted_BT.device)
        with self.scorer.ready(self.plain):
            for i in range(int(self.processes.gather(count).max())):
                chunk = chunks[i] if i < len(chunks) else idle
                width = max(1, int(last_B[chunk].max()))
                wanted = wanted_BT[chunk, :width]
                if i >= len(chunks):
                    wanted = torch.ones_like(wanted)
                found = self.scorer.of(self.model(), few(rows, chunk), wanted, entropy)
                if i < len(chunks):
                    for whole_BT, part in zip(out, found[: len(out)], strict=True):
                        assert part is not None  # noqa: S101  (asked for)
                        whole_BT[chunk, :width] = part.float().where(wanted, 0.0)
        return TokenScores(out[0], out[1] if entropy else None)

    @torch.no_grad()
    def states(self, rows: Rows, wanted_BT: Tensor, copy: bool) -> tuple[Tensor, States]:
        """Log-probs of the wanted tokens, 0 elsewhere, and the states before them, in one forward.

        Args:
            rows: TRL's tensors, taken apart.
            wanted_BT: bool, the tokens; where there are none a forward is run all the same.
            copy: whether the head is about to get other weights.
        """
        asked_BT = wanted_BT.clone()
        asked_BT[0, 0] |= ~wanted_BT.any()
        live = asked_BT.any(1).nonzero()[:, 0]
        with self.scorer.ready(self.plain):
            logp_BT, _, _, states = self.scorer.of(
                self.model(), few(rows, live), asked_BT[live], False, beside=lambda s: s.kept(copy)
            )
        found_BT = torch.zeros(wanted_BT.shape, device=wanted_BT.device)
        found_BT[live] = logp_BT.float().where(asked_BT[live], 0.0)
        return found_BT, states.at(wanted_BT[asked_BT])

    def log_probs(self, rows: Rows) -> Tensor:
        """Log-probs of the completions under the present weights, shape (B, T), 0 outside."""
        return self.of(rows, rows["completion_mask"].bool(), False).logp_BT

    def reference_log_probs(self, rows: Rows) -> Tensor | None:
        """The same under the reference policy; None where the method keeps none."""
        if self.reference is None:
            return None
        with self.reference.swapped():
            return self.log_probs(rows)

    def prefix_entropy(self, rows: Rows) -> Tensor:
        """Entropy in nats at the prefix tokens of these rows, shape (B, T), 0 elsewhere.

        A forward reads prompt and prefix of the hybrid rows alone.
        """
        entropy_BT = self.of(rows, rows["prefix_mask"], True).entropy_BT
        assert entropy_BT is not None  # noqa: S101  (asked for)
        return entropy_BT

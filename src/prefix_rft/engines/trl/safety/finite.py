"""Numbers that are not finite are found before they reach the weights, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefix_rft.core import Batch
from prefix_rft.engines.nonfinite import first_bad, gradients, optimizer_states, weights
from prefix_rft.engines.trl.processes import Processes
from prefix_rft.support.errors import RunError, UserError

POLICIES = ("stop", "skip")
HELP = "A lower learning_rate or max_grad_norm, or on_nonfinite: skip, may help"


class Finite:
    """Looks at log-probs, loss, gradient, optimizer state and weights of a run.

    What a micro-batch shows is kept until its optimizer step is complete; then all processes agree
    and either stop, or leave the step out (``on_nonfinite: skip``), at most ``nonfinite_limit``
    times in a run. Weights and optimizer states that are not finite always stop the run.

    Gradients are not looked at where they are scaled (fp16: the scaler leaves such steps out by
    itself) or not there (DeepSpeed, which also has made its update by then).

    Args:
        processes: the processes that share the steps.
        on_nonfinite: one of ``POLICIES``.
        limit: the most steps that may be left out.
        deepspeed: DeepSpeed makes the updates.

    Attributes:
        skipped: steps left out so far.

    Raises:
        UserError: steps are to be left out where they cannot be.
    """

    def __init__(
        self, processes: Processes, on_nonfinite: str, limit: int, deepspeed: bool
    ) -> None:
        if deepspeed and on_nonfinite == "skip":
            raise UserError(
                "on_nonfinite: skip cannot be had with DeepSpeed, which updates before anyone can "
                "look: leave it at stop"
            )
        self.processes, self.deepspeed = processes, deepspeed
        self.on_nonfinite, self.limit = on_nonfinite, limit
        self.skipped = 0
        self.seen: str | None = None
        self.losses: list[Tensor] = []

    def rows(
        self, batch: Batch, name_of_row: Callable[[int], str], values: Mapping[str, Tensor | None]
    ) -> None:
        """Look at numbers of each response token of a micro-batch, and at those in the batch.

        Args:
            batch: the batch, with log-probs of the old and the reference policy, where there are
                any.
            name_of_row: gives a row's name from its place in the micro-batch.
            values: the values by what they are, each of shape (B, T); None where there are none.
        """
        where_BT = batch.response_mask_BT
        batch_values = {"old log-prob": batch.old_logp_BT, "reference log-prob": batch.ref_logp_BT}
        values = {**values, **batch_values}
        bad = {k: ~v.isfinite() & where_BT for k, v in values.items() if v is not None}
        if self.seen is not None or not bool(torch.stack([b.any() for b in bad.values()]).any()):
            return
        name, bad_BT = next((k, b) for k, b in bad.items() if bool(b.any()))
        row, token = bad_BT.nonzero()[0].tolist()
        number = values[name][row, token].item()  # pyright: ignore[reportOptionalSubscript]
        self.seen = f"the {name} of token {token} of {name_of_row(row)} is {number}"

    def loss(self, loss: Tensor) -> None:
        """Take note of the loss of a micro-batch."""
        self.losses.append(loss.detach())

    def before_update(
        self, model: torch.nn.Module, optimizer: Any, step: int, scaled: bool
    ) -> str | None:
        """Stop the run, or take the gradient of this optimizer step away, where it is due.

        Args:
            model: the policy, with the gradient of the whole step.
            optimizer: None before there is one.
            step: optimizer steps done.
            scaled: the gradients are scaled, as for fp16.

        Returns:
            Why the step is left out; None where it is not.

        Raises:
            RunError: a number is not finite.
        """
        lasting = _lasting(model, optimizer)
        losses, self.losses = torch.stack(self.losses), []
        passing = self.seen
        if not bool(losses.isfinite().all()):
            passing = passing or f"the loss is {losses.sum().item()}"
        if not scaled and (name := first_bad(gradients(model))):
            passing = passing or f"the gradient of {name} is not finite"
        self.seen = None
        everyone = self.processes.gather_list([(lasting, passing)])
        for words, _ in everyone:
            if words is not None:
                self._stop(words, step)
        for _, words in everyone:
            if words is not None:
                self._leave_out(model, words, step, scaled)
                return words
        return None

    def before_saving(self, model: torch.nn.Module, optimizer: Any, step: int) -> None:
        """Look at what would be saved; the last update has been looked at by nobody.

        Args:
            model: the policy.
            optimizer: None before there is one.
            step: optimizer steps done.

        Raises:
            RunError: a weight or optimizer state is not finite.
        """
        for words in self.processes.gather_list([_lasting(model, optimizer)]):
            if words is not None:
                raise RunError(
                    f"after step {step} {words}, so nothing is saved; older "
                    f"checkpoints are as they were. {HELP}"
                )

    def _leave_out(self, model: torch.nn.Module, words: str, step: int, scaled: bool) -> None:
        if self.on_nonfinite == "stop":
            self._stop(words, step)
        if self.skipped >= self.limit:
            self._stop(f"{words}, and nonfinite_limit ({self.limit}) steps were left out", step)
        self.skipped += 1
        for p in model.parameters():
            if scaled and p.grad is not None:
                p.grad.fill_(torch.nan)  # which makes the scaler leave the step out
            else:
                p.grad = None

    def _stop(self, words: str, step: int) -> None:
        # DeepSpeed updates within the backward pass, before anyone can look.
        when = "after" if self.deepspeed else "before"
        raise RunError(
            f"step {step + 1} stopped {when} its update: {words}; older checkpoints are as they "
            f"were. {HELP}"
        )


def _lasting(model: torch.nn.Module, optimizer: Any) -> str | None:
    """What of the weights and of the optimizer is not finite on this process."""
    if name := first_bad(weights(model)):
        return f"the weight {name} is not finite"
    if optimizer is not None and (name := first_bad(optimizer_states(model, optimizer))):
        return f"the optimizer's state of {name} is not finite"
    return None

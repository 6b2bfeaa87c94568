"""Numbers that are not finite are found before they reach the weights, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from prefix_rft.engines.nonfinite import first_bad, gradients, optimizer_states, weights
from prefix_rft.support.errors import RunError, UserError

POLICIES = ("stop", "skip")
HELP = "A lower learning_rate or max_grad_norm, or on_nonfinite: skip, may help"


class Finite:
    """Looks at log-probs, loss, gradient, optimizer state and weights of a trainer.

    What a micro-batch shows is kept until its optimizer step is complete; then all processes agree
    and either stop, or leave the step out (``on_nonfinite: skip``), at most ``nonfinite_limit``
    times in a run. Weights and optimizer states that are not finite always stop the run.

    Gradients are not looked at where they are scaled (fp16: the scaler leaves such steps out by
    itself) or not there (DeepSpeed, which also has made its update by then).

    Attributes:
        skipped: steps left out so far.

    Raises:
        UserError: steps are to be left out where they cannot be.
    """

    def __init__(self, trainer: Any) -> None:
        if trainer.is_deepspeed_enabled and trainer.args.on_nonfinite == "skip":
            raise UserError(
                "on_nonfinite: skip cannot be had with DeepSpeed, which updates before anyone can "
                "look: leave it at stop"
            )
        self.trainer = trainer
        self.skipped = 0
        self.seen: str | None = None
        self.losses: list[Tensor] = []

    def rows(
        self,
        where_BT: Tensor,
        name_of_row: Callable[[int], str],
        values: Mapping[str, Tensor | None],
    ) -> None:
        """Look at numbers of each token of a micro-batch.

        Args:
            where_BT: bool, where they count.
            name_of_row: from its place in the micro-batch.
            values: by what they are, each of shape (B, T); None where there are none.
        """
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

    def before_update(self) -> None:
        """Stop the run, or take the gradient of this optimizer step away, where it is due.

        Raises:
            RunError: a number is not finite.
        """
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        lasting = self._lasting(model)
        losses, self.losses = torch.stack(self.losses), []
        passing = self.seen
        if not bool(losses.isfinite().all()):
            passing = passing or f"the loss is {losses.sum().item()}"
        if trainer.accelerator.scaler is None and (name := first_bad(gradients(model))):
            passing = passing or f"the gradient of {name} is not finite"
        self.seen = None
        everyone = self._gathered((lasting, passing))
        for words, _ in everyone:
            if words is not None:
                self._stop(words)
        for _, words in everyone:
            if words is not None:
                self._leave_out(model, words)
                return

    def before_saving(self) -> None:
        """Look at what would be saved; the last update has been looked at by nobody.

        Raises:
            RunError: a weight or optimizer state is not finite.
        """
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        for words in self._gathered(self._lasting(model)):
            if words is not None:
                raise RunError(
                    f"after step {trainer.state.global_step} {words}, so nothing is saved; older "
                    f"checkpoints are as they were. {HELP}"
                )

    def _lasting(self, model: Any) -> str | None:
        """What of the weights and of the optimizer is not finite on this process."""
        if name := first_bad(weights(model)):
            return f"the weight {name} is not finite"
        optimizer = self.trainer.optimizer
        if optimizer is not None and (name := first_bad(optimizer_states(model, optimizer))):
            return f"the optimizer's state of {name} is not finite"
        return None

    def _gathered(self, own: Any) -> list[Any]:
        """What all processes have found."""
        return gather_object([own]) if self.trainer.accelerator.num_processes > 1 else [own]

    def _leave_out(self, model: Any, words: str) -> None:
        trainer, args = self.trainer, self.trainer.args
        if args.on_nonfinite == "stop":
            self._stop(words)
        if self.skipped >= args.nonfinite_limit:
            self._stop(f"{words}, and nonfinite_limit ({args.nonfinite_limit}) steps were left out")
        self.skipped += 1
        trainer._metrics["train"]["nonfinite/skipped"].append(1.0)
        scaled = trainer.accelerator.scaler is not None
        for p in model.parameters():
            if scaled and p.grad is not None:
                p.grad.fill_(torch.nan)  # which makes the scaler leave the step out
            else:
                p.grad = None
        step = trainer.state.global_step + 1
        trainer.warn(f"step {step} is left out: {words} ({self.skipped} so far)")

    def _stop(self, words: str) -> None:
        step = self.trainer.state.global_step
        # DeepSpeed updates within the backward pass, before anyone can look.
        when = "after" if self.trainer.is_deepspeed_enabled else "before"
        raise RunError(
            f"step {step + 1} stopped {when} its update: {words}; older checkpoints are as they "
            f"were. {HELP}"
        )

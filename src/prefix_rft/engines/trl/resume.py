"""Where a resumed run goes on."""

from __future__ import annotations

from typing import Any


class ResumesExactly:
    """Mixin for trainers: a run resumed from its last checkpoint trains nothing more.

    transformers' Trainer takes one step beyond ``max_steps`` before it notices.
    """

    state: Any
    control: Any

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

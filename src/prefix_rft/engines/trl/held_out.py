"""What a trainer evaluates on, and who does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object

from prefix_rft.engines.trl.plain_rows import plain_rows


class EvaluatesHeldOut:
    """Mixin for trainers: an evaluation that is due may be somebody else's than TRL's.

    Attributes:
        held_out: measures the model as it is, on all processes together, and returns numbers by
            name; None leaves evaluations to TRL.
    """

    args: Any
    state: Any
    control: Any
    model: Any
    callback_handler: Any
    log: Callable[[dict[str, float]], None]
    held_out: Callable[[], dict[str, float]] | None = None

    def get_eval_dataloader(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, on plain rows: a dataset to evaluate on may have a format too."""
        data = plain_rows(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(data, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's where a dataset is given or nobody else measures; it logs what was measured."""
        if self.held_out is None or eval_dataset is not None:
            return super().evaluate(eval_dataset, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        # One process speaks for all: a grader may time out in one of them alone.
        metrics = gather_object([self.held_out()])[0]
        training = self.model.training
        self.model.eval()  # metrics of training wait for a line of their own
        try:
            self.log(dict(metrics))
        finally:
            self.model.train(training)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

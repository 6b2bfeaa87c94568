"""What a method remembers from step to step: kept with the trainer, saved with each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefix_rft.core.planner import Record
from prefix_rft.errors import UserError

FILE = "method_state.json"


@dataclass
class MethodState:
    """The same on every process.

    Attributes:
        method: whose memory it is.
        examples: what the planner or the contrast remembers of each example.
        shared: what the planner remembers of all.
        waiting: examples, and which demonstration of each, that wait for a step of imitation.
        stage: of the reference policy.
    """

    method: str = ""
    examples: dict[int, dict[str, float]] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    stage: int = 0

    def remember(self, updates: Mapping[int, Record]) -> None:
        """Take over what is now known of some examples."""
        self.examples |= {k: dict(v) for k, v in updates.items() if v}

    def save(self, folder: Path) -> None:
        """Write ``method_state.json``."""
        data = {**vars(self), "examples": {str(k): v for k, v in self.examples.items()}}
        (folder / FILE).write_text(json.dumps(data) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the checkpoint has none, or it is damaged or of another method.
        """
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"checkpoint '{folder}' has no {FILE}: it is not one of this trainer's")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            read = MethodState(
                data["method"],
                {int(k): dict(v) for k, v in data["examples"].items()},
                dict(data["shared"]),
                [(int(e), int(d)) for e, d in data["waiting"]],
                int(data["stage"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
        if read.method != self.method:
            raise UserError(
                f"checkpoint '{folder}' is of method '{read.method}', not of '{self.method}'"
            )
        vars(self).update(vars(read))


class SaveState(TrainerCallback):
    """Adds a trainer's own state to every checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write into the checkpoint that has just been saved."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for part in parts(self.trainer):
            part.save(folder)


def parts(trainer: Any) -> list[Any]:
    """What of the trainer has a state of its own."""
    found = [trainer.method_state, trainer.reference, trainer.parameter_mask]
    return [p for p in found if p is not None]


def load_state(trainer: Any, checkpoint: str) -> None:
    """Restore a trainer's own state from a checkpoint.

    Raises:
        UserError: it has none.
    """
    for part in parts(trainer):
        part.load(Path(checkpoint))

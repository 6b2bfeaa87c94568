"""The best weights of a run by its evaluations along the way: which they are, and where.

While a run goes on they are in ``RUN/best-N``, N the optimizer step. What was the best at the time
of a checkpoint stays as long as the checkpoint does, for the run may go on from there. At the end
the folder is ``RUN/best``. Which step is the best is a function of the log alone, and the log is
part of every checkpoint.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefix_rft.runs.checkpoints import checkpoints, place
from prefix_rft.support.errors import UserError

BEST = "best"
NOTE = "best.json"
"""In the folder of the best weights: the step, the metric and its value."""
CHOOSES = ("eval_avg", "eval_pass")
"""The metrics of an evaluation by which weights are chosen: the higher, the better."""

History = Sequence[tuple[int, float]]
"""Steps at which a run was evaluated, in their order, and the value of one metric at each."""


class Chosen(NamedTuple):
    """The best evaluation of a run."""

    step: int
    value: float

    def note(self, metric: str) -> dict[str, Any]:
        """What is written beside its weights.

        Args:
            metric: the metric by which it was chosen.
        """
        return {"step": self.step, "metric": metric, "value": self.value}


def history_of(lines: Iterable[Mapping[str, Any]], metric: str) -> History:
    """The evaluations in the lines of a log; NaN where one has no value."""
    found = [(line["step"], line[metric]) for line in lines if metric in line]
    return [(int(step), math.nan if value is None else float(value)) for step, value in found]


def best_of(history: History) -> Chosen | None:
    """The evaluation with the highest value, of equal ones the first; None where none has any."""
    best = None
    for step, value in history:
        if math.isfinite(value) and (best is None or value > best.value):
            best = Chosen(step, value)
    return best


def since_best(history: History) -> int:
    """The evaluations behind the best one; all of them where none has a value."""
    best = best_of(history)
    return sum(best is None or step > best.step for step, _ in history)


def best_folders(run: Path) -> dict[int, Path]:
    """The folders ``best-N`` of a run that goes on, by step."""
    found = {re.fullmatch(rf"{BEST}-(\d+)", p.name): p for p in run.glob(f"{BEST}-*")}
    return {int(match[1]): path for match, path in found.items() if match}


def drop_surpassed(run: Path, history: History) -> None:
    """Delete weights that are the best neither now nor as any checkpoint of the run sees it."""
    ends = [*checkpoints(run), math.inf]
    needed = {best_of([x for x in history if x[0] <= end]) for end in ends}
    steps = {best.step for best in needed if best is not None}
    for step, path in best_folders(run).items():
        if step not in steps:
            shutil.rmtree(path)


def settle(run: Path, step: int) -> None:
    """Give the best weights, of this step, the name that they have when the run has ended."""
    place(run / f"{BEST}-{step}", run / BEST)


def reopen(run: Path, step: int) -> None:
    """Have the best weights as they were when the run had done ``step`` optimizer steps.

    Raises:
        UserError: nobody knows of which step those of an ended run are.
    """
    if (run / BEST).is_dir():
        (run / BEST).rename(run / f"{BEST}-{_step_in(run / BEST)}")
    for later, path in best_folders(run).items():
        if later > step:
            shutil.rmtree(path)


def verify_best(checkpoint: Path, metric: str) -> None:
    """Look whether the best weights are there with which a checkpoint goes on; changes nothing.

    Raises:
        UserError: they are not.
    """
    run, path = checkpoint.parent, checkpoint / "trainer_state.json"
    try:
        log = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        best = best_of(history_of(log, metric))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error
    if best is None or best.step in best_folders(run):
        return
    if not (run / BEST).is_dir() or _step_in(run / BEST) != best.step:
        raise UserError(
            f"the best weights of the run '{run}' up to {checkpoint.name}, those of step "
            f"{best.step}, are gone: resume from another checkpoint, or begin a new run"
        )


def _step_in(folder: Path) -> int:
    path = folder / NOTE
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' does not say which step '{folder}' is of: move that folder away"
        ) from error

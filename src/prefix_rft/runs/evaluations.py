"""``eval.json``: how good a run's model was on held-out problems, before and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefix_rft.runs.numbers import count, finite
from prefix_rft.support.writing import write_text

FILE = "eval.json"


@dataclass(frozen=True)
class HeldOut:
    """Mean reward over held-out problems (avg@k) with a 95 % interval over problems.

    Attributes:
        problems: the number of problems that could be graded.
        samples: k, the number of samples of each problem.
        mean: the mean reward over all samples.
        low: the lower end of the interval.
        high: the upper end of the interval.
        truncated: the share of samples that ran into the length limit; None where not recorded.
        no_answer: the share of samples in which the grader found no answer, which count as 0; None
            where not recorded.
        ungraded: the number of samples that could not be graded (timeout, error, ...), which do not
            count; None where not recorded.
        per_problem: the mean reward of each graded problem; None where not recorded.
        step: the optimizer step whose weights were chosen; None for those before or after training.
    """

    problems: int
    samples: int
    mean: float
    low: float
    high: float
    truncated: float | None = None
    no_answer: float | None = None
    ungraded: int | None = None
    per_problem: list[float] | None = None
    step: int | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> HeldOut:
        """One evaluation of the file, checked.

        Raises:
            KeyError: it lacks one of the numbers that every version writes.
            TypeError: a value is not a number of its kind.
        """
        rewards = data.get("per_problem")
        return cls(
            mean=_needed(data, "mean"),
            low=_needed(data, "low"),
            high=_needed(data, "high"),
            problems=count(data["problems"]),
            samples=count(data["samples"]),
            truncated=finite(data.get("truncated")),
            no_answer=finite(data.get("no_answer")),
            ungraded=None if data.get("ungraded") is None else count(data["ungraded"]),
            per_problem=None if rewards is None else [_number(r) for r in rewards],
            step=None if data.get("step") is None else count(data["step"]),
        )


def write_evaluations(folder: Path, evaluations: Mapping[str, HeldOut]) -> None:
    """Write ``eval.json`` in a run's folder.

    Args:
        folder: the run's folder.
        evaluations: the evaluations by what was evaluated: ``base``, ``trained``, ``best``.

    Raises:
        UserError: it cannot be written.
    """
    data = {stage: asdict(found) for stage, found in evaluations.items()}
    write_text(folder / FILE, json.dumps(data, indent=2) + "\n")


def _needed(data: Mapping[str, Any], key: str) -> float:
    value = finite(data[key])
    if value is None:
        raise TypeError(f"'{key}' is no finite number")
    return value


def _number(value: Any) -> float:
    return _needed({"per_problem": value}, "per_problem")

"""From samples to the numbers of a table: avg@k, pass@k, maj@k, by column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from prefix_rft.evaluation.estimates import Estimate, bootstrap, maj_at_k, pass_at_k
from prefix_rft.evaluation.samples import Request, Sample, mean_reward, sample_and_grade
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.verdict import NO_ANSWER, Verdict
from prefix_rft.runs.evaluations import HeldOut
from prefix_rft.support.errors import UserError, nearest

FEW = 8
"""A column with at most so many different values is split by value, a number by quarters."""


@dataclass(frozen=True)
class Problem:
    """One held-out problem and the samples of it.

    Attributes:
        number: its row in the data, from 0.
        columns: short values of its row, by name.
        samples: graded.
    """

    number: int
    columns: Mapping[str, Any]
    samples: Sequence[Sample]

    def to_json(self) -> dict[str, Any]:
        """As a line of a samples file holds it."""
        return {
            "problem": self.number,
            "columns": dict(self.columns),
            "samples": [asdict(s) for s in self.samples],
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Problem:
        """What :meth:`to_json` gave.

        Raises:
            KeyError, TypeError: the line is another one.
        """
        samples = [Sample(**{**s, "verdict": Verdict(**s["verdict"])}) for s in line["samples"]]
        return cls(int(line["problem"]), line["columns"], samples)

    @property
    def graded(self) -> list[Sample]:
        """The samples that could be graded."""
        return [s for s in self.samples if s.reward is not None]

    @property
    def reward(self) -> float | None:
        """Mean reward of the graded samples; None without any."""
        return mean_reward(self.samples)


@dataclass(frozen=True)
class EvalScores:
    """What the samples of some problems say.

    Attributes:
        total: problems, graded or not.
        problems: the number of problems that have at least one graded sample.
        samples: k.
        avg: mean reward (avg@k), bootstrap interval over problems; None where none was graded.
        pass_at: unbiased pass@k by k, over the problems with k graded samples.
        maj_at: maj@k by k; empty where the grader names no answers.
        truncated: share of samples that ran into the length limit.
        no_answer: share of samples without an answer; they count as 0.
        ungraded: samples that could not be graded; they do not count.
        tokens: mean sampled tokens.
    """

    total: int
    problems: int
    samples: int
    avg: Estimate | None
    pass_at: dict[int, Estimate]
    maj_at: dict[int, Estimate]
    truncated: float
    no_answer: float
    ungraded: int
    tokens: float


def powers(samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    ks = [2**i for i in range(samples.bit_length()) if 2**i <= samples]
    return ks if ks[-1] == samples else [*ks, samples]


def scores(problems: Sequence[Problem]) -> EvalScores:
    """The numbers behind some problems; all have as many samples."""
    rewards = [p.reward for p in problems if p.reward is not None]
    samples = [s for p in problems for s in p.samples]
    k = len(problems[0].samples)
    # A grader that never names an answer leaves nothing to vote on.
    votes = any(s.verdict.answer is not None for s in samples)
    return EvalScores(
        total=len(problems),
        problems=len(rewards),
        samples=k,
        avg=bootstrap(rewards) if rewards else None,
        pass_at=_by_k(problems, k, _pass),
        maj_at=_by_k(problems, k, _majority) if votes else {},
        truncated=sum(s.truncated for s in samples) / len(samples),
        no_answer=sum(s.verdict.status == NO_ANSWER for s in samples) / len(samples),
        ungraded=sum(s.reward is None for s in samples),
        tokens=sum(s.tokens for s in samples) / len(samples),
    )


def sampled(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Callable[..., Any],
    request: Request,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Problem]:
    """The rows as problems with their samples; arguments as in :func:`sample_and_grade`.

    Raises:
        UserError: there is no row.
    """
    parts = sample_and_grade(model, tokenizer, rows, reward, request, None, tick)
    by_problem = [samples for part in parts for samples in part]
    return [Problem(number, {}, samples) for number, samples in enumerate(by_problem)]


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    reward: Callable[..., Any],
    request: Request,
    tick: Callable[[int], None] = lambda done: None,
) -> HeldOut:
    """avg@k of a model on held-out problems; arguments as in :func:`sample_and_grade`.

    Raises:
        UserError: there is no row, or none of the completions could be graded.
    """
    problems = sampled(model, tokenizer, rows, reward, request, tick)
    summary = scores(problems)
    if summary.avg is None:
        raise UserError(f"reward function '{name_of(reward)}' could grade none of the completions")
    return HeldOut(
        problems=summary.problems,
        samples=summary.samples,
        mean=summary.avg.mean,
        low=summary.avg.low,
        high=summary.avg.high,
        truncated=summary.truncated,
        no_answer=summary.no_answer,
        ungraded=summary.ungraded,
        per_problem=[p.reward for p in problems if p.reward is not None],
    )


def _by_k(
    problems: Sequence[Problem], samples: int, value: Callable[[list[Sample], int], float]
) -> dict[int, Estimate]:
    estimates = {}
    for k in powers(samples):
        values = [value(p.graded, k) for p in problems if len(p.graded) >= k]
        if values:
            estimates[k] = bootstrap(values)
    return estimates


def _pass(samples: list[Sample], k: int) -> float:
    return pass_at_k(sum(s.correct for s in samples), len(samples), k)


def _majority(samples: list[Sample], k: int) -> float:
    return maj_at_k([s.verdict.answer for s in samples], [s.correct for s in samples], k)


def split_by(problems: Sequence[Problem], column: str) -> dict[str, list[Problem]]:
    """The problems by the values of a column: each value, or quarters of a number's range.

    Raises:
        UserError: no problem has that column.
    """
    columns = dict.fromkeys(name for p in problems for name in p.columns)
    if column not in columns:
        raise UserError(
            f"the data has no column '{column}' to split by: {nearest(column, columns)}"
        )
    values = [p.columns.get(column) for p in problems]
    present = [v for v in values if v is not None]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)
    if len(set(present)) > FEW and numbers:
        labels = _quarters(values)
    else:
        labels = ["none" if v is None else str(v) for v in values]
    groups: dict[str, list[Problem]] = {}
    for label, problem in zip(labels, problems, strict=True):
        groups.setdefault(label, []).append(problem)
    order = {label: i for i, label in enumerate(_order(labels, values))}
    return dict(sorted(groups.items(), key=lambda item: order[item[0]]))


def _quarters(values: Sequence[Any]) -> list[str]:
    """A label for each value: the quarter of the sorted values that it falls into.

    Equal values share a label, so quarters can differ in size.
    """
    present = sorted(v for v in values if v is not None)
    cuts = [present[len(present) * i // 4] for i in range(1, 4)]
    quarter = [None if v is None else sum(v >= c for c in cuts) for v in values]
    bounds: dict[int, tuple[Any, Any]] = {}
    for v, q in zip(values, quarter, strict=True):
        if q is not None:
            low, high = bounds.get(q, (v, v))
            bounds[q] = (min(low, v), max(high, v))
    return ["none" if q is None else f"{bounds[q][0]:g} to {bounds[q][1]:g}" for q in quarter]


def _order(labels: Iterable[str], values: Iterable[Any]) -> list[str]:
    """The labels in the order of their values; texts and numbers do not mix in a column."""
    smallest: dict[str, Any] = {}
    for label, value in zip(labels, values, strict=True):
        if value is not None:
            smallest[label] = min(smallest.get(label, value), value)
    return [*sorted(smallest, key=lambda label: smallest[label]), "none"]


def difference(problems: Sequence[Problem], base: Sequence[Problem]) -> Estimate | None:
    """Mean reward less the base's on the problems graded in both, bootstrap interval over them.

    None where none was graded in both.

    Raises:
        UserError: they are different problems.
    """
    if [p.number for p in problems] != [p.number for p in base]:
        raise UserError("samples of different problems cannot be paired")
    pairs = [(p.reward, b.reward) for p, b in zip(problems, base, strict=True)]
    both = [p - b for p, b in pairs if p is not None and b is not None]
    return bootstrap(both) if both else None

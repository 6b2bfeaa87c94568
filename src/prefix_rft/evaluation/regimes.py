"""What was measured of when prefixes win: the table that advice quotes, and no more than it.

``regimes.json`` is written by ``benchmarks/regimes/tables.py`` from the records of its runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

from prefix_rft.evaluation.estimates import Estimate

BELOW, ABOVE = 0.5, 2.0
"""Between them the rule was not scored: RL may start or not."""


@dataclass(frozen=True)
class Rule:
    """The rule that RL after SFT starts by itself where lambda is above 1, and how it did.

    Attributes:
        right: runs that it foretold.
        scored: runs whose lambda lay outside of 0.5 to 2.
        unscored: the others.
        low: the smallest lambda of a run; 0 where nothing was solved.
        high: the largest one.
        where: the tasks and sizes that were run, in words.
        below: mean of RL after SFT, at the best of its rates, and of AdaBack after SFT, in runs
            whose lambda was below 0.5, as shares; None where there was no such run.
        above: the same of runs above 2.
    """

    right: int
    scored: int
    unscored: int
    low: float
    high: float
    where: str
    below: tuple[float, float] | None
    above: tuple[float, float] | None

    @property
    def score(self) -> str:
        """As everything that quotes it says it."""
        return f"{self.right} of {self.scored} runs"


def measured_rule() -> Rule:
    """The rule with its score, from the package's own table."""
    text = files("prefix_rft.evaluation").joinpath("regimes.json").read_text(encoding="utf-8")
    table = json.loads(text)
    for key in ("below", "above"):
        table[key] = table[key] and tuple(table[key])
    return Rule(**table)


def advice(solved: Estimate, demonstrations: int, rule: Rule) -> tuple[str, str]:
    """Two sentences: what the measured table supports, and where the table ends.

    Args:
        solved: lambda of the start model, with its interval.
        demonstrations: rows that have one.
        rule: the rule with its score.
    """
    if not demonstrations:
        first = (
            "no row has a demonstration, so there is nothing to imitate or to take prefixes from: "
            "plain RL (dr_grpo), or prefix-rft collect for right answers of its own"
        )
        if solved.high < BELOW:
            first += ", and either will hardly see a reward"
    elif solved.high < BELOW:
        first = (
            "lambda is below 0.5, where RL from the prompt starts late or not at all: SFT on the "
            "demonstrations, then prefixes as context (adaback, control)"
        )
        first += _means(rule.below)
    elif solved.low > ABOVE:
        first = (
            "lambda is above 2, where RL started by itself: SFT on the demonstrations, then "
            "dr_grpo, which prefixes as context did not beat"
            if rule.above is None or rule.above[0] >= rule.above[1]
            else "lambda is above 2, where RL started by itself: SFT on the demonstrations, then "
            "dr_grpo or prefixes as context (adaback, control)"
        )
        first += _means(rule.above)
    else:
        first = (
            "lambda, with its interval, reaches into 0.5 to 2, where RL may start or not: after "
            "SFT prefixes as context (adaback, control) are the safe choice"
        )
    second = (
        f"that lambda above or below 1 says whether RL after SFT starts was right in {rule.score} "
        f"of {rule.where}; "
    )
    inside = rule.low <= solved.mean <= rule.high
    second += "other tasks and models were not measured"
    if not inside:
        second += f", nor lambda outside of {rule.low:.2g} to {rule.high:.2g}"
    return first, second


def _means(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return ""
    rl, context = (f"{100 * share:.0f} %" for share in pair)
    return f" ({rl} with dr_grpo at the best rate tried, {context} with prefixes there)"

"""The runs of this folder, from their records, and how the rule about lambda did on them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefix_rft.compare.work import DONE, HELD_OUT, VALIDATION, expand
from prefix_rft.evaluation.estimates import Estimate
from prefix_rft.evaluation.regimes import ABOVE, BELOW, Rule

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SFT = "sft"
RL = (
    "sft+dr_grpo",
    "sft+dr_grpo_slow",
    "sft+dr_grpo_slower",
    "sft+dr_grpo_fresh_slow",
    "sft+dr_grpo_wide_slow",
    "sft+grpo",
    "sft+grpo_slow",
)
"""Those with the operations of the context arms, on the reward that is scored."""
CONTEXT = ("sft+adaback", "sft+control", "sft+control_jump")
LIFTED = 0.5
WINDOW = 20
READ = (("sampled", 2), ("prefilled", 2), ("forward", 2))
SIZES = {"chain": "0.1", "parity": "0.1", "countdown": "0.3"}
"""Millions of parameters."""
TASKS = {
    "chain": "chains of {} hidden steps",
    "parity": "chains of {} parities",
    "countdown": "Countdown with {} numbers",
}


class Cell(NamedTuple):
    """What the name of a cell says.

    Attributes:
        task: the kind of task.
        demonstrations: how many there are.
        length: steps of a chain, or numbers of a puzzle.
    """

    task: str
    demonstrations: int
    length: int

    @classmethod
    def of(cls, name: str) -> Cell:
        """From a name such as ``chain-N75-L24``."""
        task, n, length = name.split("-")
        return cls(task, int(n.removeprefix("N")), int(length.removeprefix("L")))


@dataclass(frozen=True)
class Run:
    """One seed of a cell.

    Attributes:
        seed: of the demonstrations.
        solved: lambda of the SFT model.
        records: by arm.
        curves: of each arm and step, plain rows, solved ones, and tokens by kind.
    """

    seed: int
    solved: Estimate
    records: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def half(self, arm: str) -> tuple[int, float] | None:
        """The step and the operations behind SFT at which an arm solves half of what it does last.

        Of rows that started at the prompt, over the last ``WINDOW`` steps; None where it has none
        that do, or never does.
        """
        steps = self.curves.get(arm, ())
        target = float(np.nanmean(self.rewards(arm))) / 2
        costs = self.records[arm]["costs"]
        # What a token of each kind costs: 2 to read or sample, 6 to train, for each weight.
        price = costs["flops"] / sum(k * costs[name] for name, k in (*READ, ("trained", 6)))
        spent = 0.0
        for i, (_, _, sampled, prefilled, forward, trained) in enumerate(steps, 1):
            spent += price * (2 * (sampled + prefilled + forward) + 6 * trained)
            window = steps[max(0, i - WINDOW) : i]
            plain, solved = (sum(s[j] for s in window) for j in (0, 1))
            if i >= WINDOW and plain and target and solved / plain >= target:
                return i, spent
        return None

    def flops(self, arm: str) -> float:
        """Operations of an arm, those of the SFT that it starts from included."""
        arms = [arm, SFT] if arm.startswith(f"{SFT}+") else [arm]
        return sum(self.records[name]["costs"]["flops"] for name in arms)

    def rewards(self, arm: str, name: str = HELD_OUT) -> NDArray[np.float64]:
        """Mean reward of each problem."""
        table = expand(self.records[arm]["sets"][name]["1"])
        return np.array([math.nan if r is None else r for r in table["reward"]])


def cells(folder: Path = RESULTS) -> dict[str, list[Run]]:
    """The runs of every cell that have an advice and every arm of their comparison."""
    found: dict[str, list[Run]] = {}
    for path in sorted(folder.glob("*/seed-*/advice.json")):
        solved = json.loads(path.read_text(encoding="utf-8"))["start"]["lambda"]
        records = {"base": _read(path.parent / "base" / DONE)}
        for done in sorted((path.parent / "arms").glob(f"*/seed-0/{DONE}")):
            records[done.parent.parent.name] = _read(done)
        seed = int(path.parent.name.removeprefix("seed-"))
        curves = _read(path.with_name("curves.json"))
        run = Run(seed, Estimate(**solved), records, curves)
        found.setdefault(path.parent.parent.name, []).append(run)
    names = sorted(found, key=lambda name: (list(TASKS).index(Cell.of(name).task), Cell.of(name)))
    return {name: sorted(found[name], key=lambda r: r.seed) for name in names}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def of_arm(runs: Sequence[Run], arm: str, name: str = HELD_OUT) -> NDArray[np.float64]:
    """Mean rewards, a row for each seed that has the arm."""
    return np.array([run.rewards(arm, name) for run in runs if arm in run.records])


def best(runs: Sequence[Run], arms: Sequence[str]) -> str:
    """Of some arms that every run has the best one on validation rows."""
    whole = [arm for arm in arms if all(arm in run.records for run in runs)]
    return max(whole, key=lambda arm: float(np.nanmean(of_arm(runs, arm, VALIDATION))))


def of_rl(run: Run) -> str:
    """The best SFT-then-RL arm of a run, on validation rows, among those that it has."""
    return best([run], RL)


def score(found: Mapping[str, Sequence[Run]]) -> Rule:
    """How often lambda above or below 1 foretold whether RL after SFT lifts off.

    RL has every chance that a run gave it: it has lifted off if its best arm has.
    """
    runs = [run for some in found.values() for run in some]
    scored = [r for r in runs if not BELOW <= r.solved.mean <= ABOVE]
    right = [r for r in scored if (r.solved.mean > 1) == lifted(r, of_rl(r))]
    return Rule(
        right=len(right),
        scored=len(scored),
        unscored=len(runs) - len(scored),
        low=min(r.solved.mean for r in runs),
        high=max(r.solved.mean for r in runs),
        where=where(found),
        below=means([r for r in runs if r.solved.mean < BELOW]),
        above=means([r for r in runs if r.solved.mean > ABOVE]),
    )


def where(found: Mapping[str, Sequence[Run]]) -> str:
    """The tasks that were run, in words."""
    lengths: dict[str, list[str]] = {}
    for name in found:
        cell = Cell.of(name)
        if str(cell.length) not in lengths.setdefault(cell.task, []):
            lengths[cell.task].append(str(cell.length))
    words = [TASKS[task].format(" and ".join(sorted(n, key=int))) for task, n in lengths.items()]
    sizes = " to ".join(sorted({SIZES[task] for task in lengths}))
    return f"runs on {', '.join(words)} (models of {sizes} million parameters)"


def lifted(run: Run, arm: str) -> bool:
    """Whether an arm ends at a half at least."""
    return float(np.nanmean(run.rewards(arm))) >= LIFTED


def means(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Means of the best RL arms after SFT, and of the best arms with prefixes after SFT.

    Of each run, on validation rows, as the plan says of both.
    """
    if not runs:
        return None
    rl, context = (
        float(np.mean([np.nanmean(run.rewards(best([run], arms))) for run in runs]))
        for arms in (RL, CONTEXT)
    )
    return round(rl, 4), round(context, 4)

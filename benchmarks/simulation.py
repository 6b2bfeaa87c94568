"""How well laws of core/laws.py hold a success rate of one half, on simulated students.

    python benchmarks/simulation.py     # a minute of one core; writes simulation.json

A student's success behind a share u of a demonstration is the three-parameter logistic curve of
SEELE (arXiv 2509.06923, eq. 12), b + (1 - b) / (1 + exp(-k (u - m))): k log-uniform in 5 to 50, m
uniform in 0.05 to 0.95, b uniform in 0 to 0.3 for three students of ten and 0 for the others. Eight
rows a visit, 20 visits. Of students that learn, m falls by 0.02 a visit. SEELE itself has four
rounds within a visit: of two rows each, and of eight, which costs four times as much. This speaks
of laws alone: real success need not follow such a curve, nor one example be independent of another.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefix_rft.core.control import Control, Law
from prefix_rft.core.laws import Bisection, Integral, Ladder, Logistic
from prefix_rft.core.planner import Group, Record, Start
from prefix_rft.runs.machine import describe_machine, git_state

STUDENTS, VISITS, ROWS, TOKENS, ROUNDS = 600, 20, 8, 10_000, 4


@dataclass(frozen=True)
class Uniform(Law):
    """A share drawn anew at each visit (R3)."""

    low: float = 0.0
    high: float = 1.0

    def start(self, group: Group, index: int, rng: random.Random) -> Start:
        """Anywhere."""
        return group.start(index, rng.uniform(self.low, self.high))


LAWS: dict[str, Control] = {
    "plain": Control(Uniform(0.0, 0.0)),
    "uniform (R3)": Control(Uniform()),
    "U[.4, .8], a quarter plain (PrefixRL)": Control(Uniform(0.4, 0.8), plain=0.25),
    "ladder (POPE's growth)": Control(Ladder(0.1, 0.1)),
    "bisection (AdaBack, an interval that closes opens again)": Control(Bisection()),
    "logistic, a visit a round": Control(Logistic(first=0.5)),
    "integral, gain .4": Control(Integral(gain=0.4, first=0.5)),
    "integral, gain .2": Control(Integral(gain=0.2, first=0.5)),
    "integral, gain .2, jump": Control(Integral(gain=0.2, first=0.5, jump=True)),
}


@dataclass(frozen=True)
class Student:
    """A success curve."""

    k: float
    m: float
    b: float

    def success(self, share: float, visit: int, drift: float) -> float:
        """The success rate behind a share at a visit."""
        x = self.k * (share - self.m + drift * visit)
        return self.b + (1 - self.b) / (1 + math.exp(-max(-60.0, min(60.0, x))))


def students() -> list[Student]:
    """The same ones for every law."""
    rng = random.Random("students")
    return [
        Student(
            math.exp(rng.uniform(math.log(5), math.log(50))),
            rng.uniform(0.05, 0.95),
            rng.uniform(0, 0.3) if rng.random() < 0.3 else 0.0,
        )
        for _ in range(STUDENTS)
    ]


def visits(law: Control, student: Student, number: int, drift: float) -> list[tuple[float, int]]:
    """The success rate that a student had at each visit, and how many rows it solved."""
    own: Record = {}
    found = []
    for visit in range(VISITS):
        group = group_of(number, visit, own)
        starts = law.starts(group)
        start = next((s for s in starts if s is not None), None)
        share = 0.0 if start is None else start.length / TOKENS
        p = student.success(share, visit, drift)
        rng = random.Random(f"{number}:{visit}:{drift}")
        rewards = [float(rng.random() < p) for _ in range(ROWS)]
        found.append((p, int(sum(rewards))))
        # Each student alone: what a law knows of all is not handed on.
        own, _ = law.learn(group, starts, rewards)
    return found


def group_of(number: int, visit: int, own: Record) -> Group:
    """A group of eight rows with one long demonstration."""
    lengths = (TOKENS,)
    return Group(number, ROWS, lengths, step=visit, total_steps=1000, own=own)


def measures(runs: Sequence[Sequence[tuple[float, int]]]) -> dict[str, float]:
    """Of all visits of all students.

    ``flat``: the share of groups whose rewards are all alike. ``signal``: p (1 - p), what the rows
    of one start can teach, over its maximum. ``off``: the mean of |p - 1/2| in the later half of
    the visits.
    """
    pairs = [pair for run in runs for pair in run]
    later = [p for run in runs for p, _ in run[VISITS // 2 :]]
    return {
        "flat": round(sum(c in (0, ROWS) for _, c in pairs) / len(pairs), 3),
        "signal": round(4 * sum(p * (1 - p) for p, _ in pairs) / len(pairs), 3),
        "off": round(sum(abs(p - 0.5) for p in later) / len(later), 3),
    }


def rounds(student: Student, number: int, rows: int, drift: float) -> list[float]:
    """The success rates of the four rounds of each visit, the curve fitted to those before.

    The share where it has a half starts the next round, and the first one of the next visit.
    """
    share, found = 0.5, []
    for visit in range(VISITS):
        pairs: list[tuple[float, float]] = []
        for number_in_visit in range(ROUNDS):
            p = student.success(share, visit, drift)
            rng = random.Random(f"{number}:{visit}:{number_in_visit}:{rows}:{drift}")
            pairs.append((share, sum(rng.random() < p for _ in range(rows)) / rows))
            found.append(p)
            share = min(max(Logistic.fit(pairs)[1], 0.0), 1.0)
    return found


def signal_of_rounds(rates: Sequence[float], rows: int) -> float:
    """What the rows of one start can teach, over the most that as many rows of a visit can.

    Of n rows with one start that is p (1 - p) (n - 1), the sum of squares about their own mean.
    """
    most = 0.25 * (ROUNDS * rows - 1) * len(rates) / ROUNDS
    return round(sum(p * (1 - p) * (rows - 1) for p in rates) / most, 3)


def simulate_rounds() -> dict[str, dict[str, float]]:
    """The signal of SEELE's rounds, by their rows, for students that stay and for others."""
    everyone = students()
    table: dict[str, dict[str, float]] = {}
    for rows in (ROWS // ROUNDS, ROWS):
        still, moving = (
            [p for i, s in enumerate(everyone) for p in rounds(s, i, rows, drift)]
            for drift in (0.0, 0.02)
        )
        table[f"SEELE, {ROUNDS} rounds of {rows} rows"] = {
            "signal": signal_of_rounds(still, rows),
            "signal of students that learn": signal_of_rounds(moving, rows),
        }
    return table


def simulate() -> dict[str, dict[str, Any]]:
    """The measures of every law, for students that stay as they are, and the signal of others."""
    everyone = students()
    table: dict[str, dict[str, Any]] = {}
    for name, law in LAWS.items():
        still, moving = (
            measures([visits(law, s, i, drift) for i, s in enumerate(everyone)])
            for drift in (0.0, 0.02)
        )
        table[name] = {**still, "signal of students that learn": moving["signal"]}
    return table


def main() -> None:
    """Write ``simulation.json``."""
    found = {
        "command": "python benchmarks/simulation.py",
        "machine": describe_machine(),
        "git": git_state(),
        "students": STUDENTS,
        "laws": simulate(),
        "rounds": simulate_rounds(),
    }
    text = json.dumps(found, indent=2) + "\n"
    (Path(__file__).parent / "simulation.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

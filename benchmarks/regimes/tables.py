"""The tables of README.md and docs/choosing.md, and the score that ``prefix-rft advise`` quotes.

    python benchmarks/regimes/tables.py            # seconds; prints them
    python benchmarks/regimes/tables.py --write    # and puts them where they stand

``tests/test_regimes.py`` makes all of it again from the records and compares.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from records import (  # beside this file
    CONTEXT,
    HERE,
    RL,
    SFT,
    TASKS,
    Cell,
    Run,
    best,
    cells,
    lifted,
    means,
    of_arm,
    of_rl,
    score,
)

from prefix_rft.compare.work import HELD_OUT, VALIDATION
from prefix_rft.evaluation import regimes
from prefix_rft.evaluation.estimates import over_seeds, paired
from prefix_rft.evaluation.regimes import Rule

PACKAGED = Path(regimes.__file__).with_name("regimes.json")
LABELS = {
    "base": "base",
    SFT: "SFT",
    "sft+dr_grpo": "SFT, then RL at 3e-4",
    "sft+dr_grpo_slow": "SFT, then RL at 1e-4",
    "sft+dr_grpo_slower": "SFT, then RL at 3e-5",
    "sft+dr_grpo_fresh_slow": "RL at 1e-4, 5,000 other prompts",
    "sft+dr_grpo_wide_slow": "RL at 1e-4, 2 prompts x 32 rows",
    "sft+grpo": "SFT, then GRPO at 3e-4",
    "sft+grpo_slow": "SFT, then GRPO at 1e-4",
    "sft+self_sft": "SFT, then SFT on own right answers",
    "sft+adaback": "SFT, then AdaBack",
    "sft+control": "SFT, then control",
    "sft+control_jump": "SFT, then control, jump",
    "sft+prefix_rft": "SFT, then Prefix-RFT at 3e-4",
    "sft+prefix_rft_fast": "SFT, then Prefix-RFT at 6e-4",
    "sft+prefix_rft_group": "Prefix-RFT at 3e-4, prefixes a group of their own",
    "sft+prefix_rft_low": "Prefix-RFT at 3e-4, 20 % of lowest entropy",
    "sft+dr_grpo_long": "RL at 1e-4, three times the steps",
    "sft+dr_grpo_graded": "RL at 1e-4, share of right steps as reward",
    "sft+adaback_graded": "AdaBack, share of right steps as reward",
    "adaback": "AdaBack from the base",
    "control": "control from the base",
    "prefix_rft": "Prefix-RFT from the base",
    "dr_grpo": "RL from the base",
}
HEAD = ["arm", "solved [95 %]", "less the best RL", "lifted off", "pass@4", "kept", "FLOPs"]
PAGES = (HERE / "README.md", HERE.parents[1] / "docs/choosing.md")
BEGIN, END = "<!-- made by tables.py -->", "<!-- end -->"
Row = list[str]


def arms_of(runs: Sequence[Run]) -> list[str]:
    """The arms of a cell in the order of its table."""
    return [arm for arm in LABELS if any(arm in run.records for run in runs)]


def table(runs: Sequence[Run]) -> list[Row]:
    """Each arm of a cell: mean, less the best SFT-then-RL arm, lift-offs, pass@4, forgetting."""
    rival = best(runs, RL)
    rows = []
    for arm in arms_of(runs):
        own = [run for run in runs if arm in run.records]
        values = of_arm(own, arm)
        less = "" if arm == rival else paired(values, of_arm(own, rival)).signed
        high = sum(lifted(run, arm) for run in own)
        solved = [np.mean(np.array(_held(run, arm)["correct"]) > 0) for run in own]
        kept = over_seeds(of_arm(own, arm, _forgetting(own[0], arm)))
        rows.append(
            [
                LABELS[arm],
                str(over_seeds(values)),
                less,
                f"{high} of {len(own)}",
                f"{100 * float(np.mean(solved)):.1f}",
                f"{100 * kept.mean:.1f}",
                f"{np.mean([run.flops(arm) for run in own]):.1e}",
            ]
        )
    return rows


def _forgetting(run: Run, arm: str) -> str:
    """The set that says what is left of what the base knew."""
    return next(name for name in run.records[arm]["sets"] if name not in (HELD_OUT, VALIDATION))


def _held(run: Run, arm: str) -> Mapping[str, Any]:
    return run.records[arm]["sets"][HELD_OUT]["1"]


def by_seed(runs: Sequence[Run]) -> list[Row]:
    """Each seed: lambda, and the mean of every arm in %."""
    rows = []
    for run in runs:
        s = run.solved
        means = [_percent(run, arm) for arm in arms_of(runs)]
        rows.append([str(run.seed), f"{s.mean:.2g} [{s.low:.2g}, {s.high:.2g}]", *means])
    return rows


def halves(found: Mapping[str, Sequence[Run]]) -> list[Row]:
    """When AdaBack and the controller have come half of their way, in every run that has both."""
    rows = []
    for name, runs in found.items():
        for run in runs:
            if not all(arm in run.records for arm in CONTEXT[:2]):
                continue
            cells, spent = [], []
            for arm in CONTEXT[:2]:
                half = run.half(arm)
                cells.append("never" if half is None else f"{half[0]} ({half[1]:.2g})")
                spent.append(math.nan if half is None else half[1])
            ratio = spent[1] / spent[0]
            rows.append([name, str(run.seed), *cells, "" if math.isnan(ratio) else f"{ratio:.2f}"])
    return rows


def packaged(rule: Rule) -> str:
    """The text of the package's file."""
    return json.dumps(asdict(rule), indent=2) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Row]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def of_page(found: Mapping[str, Sequence[Run]]) -> str:
    """What README.md has of every cell."""
    parts = []
    for name, runs in found.items():
        arms = [LABELS[arm] for arm in arms_of(runs)]
        parts += [f"### {name}\n", markdown(HEAD, table(runs))]
        parts += [markdown(["seed", "lambda", *arms], by_seed(runs))]
    head = ["cell", "seed", *(f"{LABELS[arm]}: step (FLOPs)" for arm in CONTEXT[:2]), "ratio"]
    parts += ["### Half of the way\n", markdown(head, halves(found))]
    words = "The rule, lambda above or below 1, was right in {} that it was scored on.\n"
    parts.append(words.format(score(found).score))
    return "\n".join(parts)


def of_guide(found: Mapping[str, Sequence[Run]]) -> str:
    """What docs/choosing.md has: every run, by lambda."""
    runs = [(name, run) for name, some in found.items() for run in some]
    rows = []
    for name, run in sorted(runs, key=lambda x: x[1].solved.mean):
        cell, rival = Cell.of(name), of_rl(run)
        others = [_percent(run, arm) for arm in RL if arm in run.records and arm != rival]
        tried = _percent(run, rival) + (f" ({', '.join(others)})" if others else "")
        task = TASKS[cell.task].format(cell.length)
        means = [_percent(run, SFT), tried, *(_percent(run, arm) for arm in CONTEXT[:2])]
        rows.append([f"{run.solved.mean:.2g}", task, str(cell.demonstrations), *means])
    rl = "SFT, then RL, the best (others tried)"
    head = ["lambda", "task", "demonstrations", LABELS[SFT], rl]
    return markdown([*head, *(LABELS[arm] for arm in CONTEXT[:2])], rows)


def _percent(run: Run, arm: str) -> str:
    """The mean of an arm in %."""
    return f"{100 * float(np.nanmean(run.rewards(arm))):.1f}" if arm in run.records else ""


class End(NamedTuple):
    """How a cell ended.

    Attributes:
        cell: which.
        solved: lambda of each of its runs.
        rl: the mean of RL's best arms in %.
        context: that of the best arms with prefixes as context.
    """

    cell: Cell
    solved: Sequence[float]
    rl: float
    context: float


def ends(found: Mapping[str, Sequence[Run]]) -> list[End]:
    """What the map shows, of each cell."""
    return [
        End(
            Cell.of(name),
            [run.solved.mean for run in runs],
            *(100 * share for share in means(runs) or (math.nan, math.nan)),
        )
        for name, runs in found.items()
    ]


def with_tables(page: str, text: str) -> str:
    """A page with a text between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> None:
    """Print the tables, and write them where they stand if asked."""
    found = cells()
    made = dict(zip(PAGES, (of_page(found), of_guide(found)), strict=True))
    rule = packaged(score(found))
    print(*made.values(), rule, sep="\n")
    if "--write" in sys.argv[1:]:
        from picture import FILE, MAP, draw, draw_map  # beside this file

        PACKAGED.write_text(rule, encoding="utf-8")
        FILE.write_text(draw(found), encoding="utf-8")
        MAP.write_text(draw_map(ends(found)), encoding="utf-8")
        for path, text in made.items():
            page = path.read_text(encoding="utf-8")
            path.write_text(with_tables(page, text), encoding="utf-8")


if __name__ == "__main__":
    main()

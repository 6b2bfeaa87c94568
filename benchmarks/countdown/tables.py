"""The tables of this folder's README.md, made again from the records.

    python benchmarks/countdown/tables.py    # seconds; prints them

``tests/test_benchmarks.py`` compares them with the page.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefix_rft.compare import tables
from prefix_rft.compare.command import read_board
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import ArmResult, arm_results
from prefix_rft.tasks.countdown import write

HERE = Path(__file__).parent
TASKS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "hard": {"operands": (4,), "n_train": 10_000},
}
COMPARISONS: dict[str, tuple[str, str, list[str], int | None]] = {
    "ordinary": ("ordinary", "methods", [], None),
    "hard": ("hard", "methods", [], None),
    "long": (
        "ordinary",
        "methods",
        ["max_steps=800", "prompts_per_step=32", "micro_batch_size=256"],
        3,
    ),
    "ablations": ("ordinary", "ablations", [], None),
}
"""What ``run.sh`` runs: the task, the recipe, what is overridden, and seeds if not the recipe's."""
AS_WRITTEN = "compare.further=false"
ARMS = {
    "base": "base",
    "sft": "SFT",
    "dr_grpo": "Dr. GRPO",
    "sft+dr_grpo": "SFT, then Dr. GRPO",
    "prefix_rft": "Prefix-RFT",
    "sft+prefix_rft": "SFT, then Prefix-RFT",
}
SWITCHES = {
    "prefix_rft": "Prefix-RFT (keep 20 %, highest entropy, cosine, 1 hybrid row of 8, one group)",
    "dr_grpo": "Dr. GRPO",
    "keep/5": "keep 5 %",
    "keep/50": "keep 50 %",
    "keep/80": "keep 80 %",
    "keep/100": "keep 100 % (update all)",
    "tokens/low": "20 % of lowest entropy",
    "tokens/random": "20 % at random",
    "prefix_loss/frozen": "prefix frozen (context only)",
    "prefix_loss/static": "prefix by maximum likelihood, constant weight",
    "schedule/constant": "constant schedule (prefixes of 95 % and more)",
    "schedule/uniform": "uniform schedule",
    "schedule/linear": "linear schedule",
    "demonstrations/10": "10 % of the demonstrations",
    "demonstrations/1": "1 % of the demonstrations",
    "demonstrations/worse": "half of the demonstrations miss the target",
    "hybrid_rows/2": "2 hybrid rows",
    "hybrid_rows/4": "4 hybrid rows",
    "advantage/policy_baseline": "baseline of the on-policy rows",
    "advantage/prefix_group": "prefixes a group of their own",
}
Row = list[str]


def board(name: str, data: Path, output: Path | None = None) -> Board:
    """The board of a comparison over its committed records.

    Args:
        name: of the comparison.
        data: holds the tasks' folders.
        output: folder of the records; by default the committed one.
    """
    task, recipe, overrides, seeds = COMPARISONS[name]
    path = data / task / "compare" / f"{recipe}.yaml"
    folder = output or HERE / "results" / name
    return read_board(str(path), [*overrides, AS_WRITTEN], None, seeds, None, str(folder))


def columns(block: tables.Section, *names: str) -> dict[str, Row]:
    """Some columns of a table, by arm."""
    at = [list(block.head).index(name) for name in names]
    return {row[0]: [row[i] for i in at] for row in block.rows}


def results(own: Board, arms: Sequence[ArmResult], more: Sequence[str] = ()) -> list[Row]:
    """Rewards of the arms on held-out problems, and some of their costs behind them."""
    block = tables.results(own, arms)
    rewards, rest = columns(block, *block.head[1:]), columns(tables.costs(own, arms), *more)
    return [[ARMS[x.name], *rewards[x.name], *rest[x.name]] for x in arms]


def ablations(own: Board, arms: Sequence[ArmResult]) -> list[Row]:
    """Rewards of the switches at T = 1, less Prefix-RFT's, and pass@16."""
    rewards = columns(tables.results(own, arms), "T = 1", "less prefix_rft, T = 1")
    passed = columns(tables.costs(own, arms), "pass@16")
    return [[label, *rewards[name], *passed[name]] for name, label in SWITCHES.items()]


def forgetting(arms: dict[str, Sequence[ArmResult]]) -> list[Row]:
    """Arithmetic in both regimes at T = 1, and what it is less than the base's."""

    def cell(line: ArmResult) -> str:
        here = line.cells["arithmetic"][1.0]
        less = "" if here.less_base is None else f" ({100 * here.less_base.mean:+.1f})"
        return f"{100 * here.avg.mean:.1f}{less}"

    by_arm = {name: {line.name: cell(line) for line in some} for name, some in arms.items()}
    return [
        [label, *(by_arm[regime][arm] for regime in ("ordinary", "hard"))]
        for arm, label in ARMS.items()
    ]


def shares() -> list[Row]:
    """First and last quarter of the runs of shares.py."""
    measured = json.loads((HERE / "shares.json").read_text(encoding="utf-8"))["results"]
    rows = []
    for regime, by_keep in measured.items():
        for keep, parts in by_keep.items():
            ends = parts[0], parts[-1]
            rows.append(
                [
                    f"{regime}, {keep.replace('%', ' %')}",
                    ", ".join(f"{100 * p['prefix_tokens_share']:.0f} %" for p in ends),
                    ", ".join(f"{100 * p['gradient_prefix_share']:.0f} %" for p in ends),
                    ", ".join(f"{p['norm_with_over_without_prefix']:.2f}" for p in ends),
                ]
            )
    return rows


def all_tables(boards: dict[str, Board]) -> dict[str, list[Row]]:
    """The tables of the page, in its order; an empty text stands for an empty cell."""
    arms = {name: arm_results(own) for name, own in boards.items()}
    long = results(boards["long"], arms["long"], ["pass@32"])
    long[1][0] += f" ({columns(tables.costs(boards['long'], arms['long']), 'FLOPs')['sft'][0]})"
    return {
        "ordinary": results(boards["ordinary"], arms["ordinary"], ["FLOPs"]),
        "hard": results(boards["hard"], arms["hard"], ["pass@32"]),
        "forgetting": forgetting({x: arms[x] for x in ("ordinary", "hard")}),
        "ablations": ablations(boards["ablations"], arms["ablations"]),
        "shares": shares(),
        "long": long,
    }


def main() -> None:
    """Print the tables; rows that a record says other things about are refused."""
    with tempfile.TemporaryDirectory() as folder:
        for task, settings in TASKS.items():
            write(Path(folder) / task, **settings)
        write(Path(folder) / "ordinary" / "worse", solver_accuracy=0.5)
        boards = {name: board(name, Path(folder)) for name in COMPARISONS}
        for own in boards.values():
            own.check()
        for name, rows in all_tables(boards).items():
            print(f"\n{name}:\n")
            for row in rows:
                print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()

"""The table of this folder's README.md, made again from the records.

    python benchmarks/real/tables.py    # seconds, after `make lab`; prints it

``tests/test_benchmarks.py`` compares it with the page.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefix_rft.compare import tables
from prefix_rft.compare.command import read_board
from prefix_rft.compare.jobs import Board
from prefix_rft.compare.results import arm_results
from prefix_rft.tasks.arithmetic import write

RECORDS = Path(__file__).parent / "results/arithmetic"
ARMS = {
    "base": "base",
    "sft": "SFT",
    "dr_grpo": "Dr. GRPO",
    "sft_start": "the start of the next",
    "sft+dr_grpo": "SFT, then Dr. GRPO",
    "prefix_rft": "Prefix-RFT",
}


def board(data: Path) -> Board:
    """The board over the committed records.

    Args:
        data: the task's folder.
    """
    overrides = ["compare.further=false"]
    return read_board(str(data / "compare.yaml"), overrides, None, None, None, str(RECORDS))


def rows(own: Board) -> list[list[str]]:
    """Solved sums of the arms in %, less Prefix-RFT's, and what they cost."""
    arms = arm_results(own)
    by_arm = {row[0]: list(row) for row in tables.results(own, arms).rows}
    block = tables.costs(own, arms)
    at = [list(block.head).index(name) for name in ("steps", "FLOPs", "pass@4", "cut")]
    costs = {row[0]: [row[i] for i in at] for row in block.rows}
    return [[label, *by_arm[name][1:], *costs[name]] for name, label in ARMS.items()]


def main() -> None:
    """Print the table; rows that a record says other things about are refused."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        own = board(Path(folder))
        own.check()
        for row in rows(own):
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()

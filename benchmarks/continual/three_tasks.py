"""Three tasks of the tiny Countdown base, told apart by the operations that a puzzle needs.

    python benchmarks/continual/three_tasks.py data/continual     # seconds; rows, base, suite

All have three numbers and one grader. ``sums`` can be solved with + and - alone, and is
demonstrated so; ``products`` cannot, but with * as well; ``quotients`` needs /.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from prefix_rft.tasks.countdown import write
from prefix_rft.tasks.countdown.puzzle import Chain, Puzzle, Rules, generate, solutions, write_chain

OPERATIONS = {"sums": "+-", "products": "+-*", "quotients": "+-*/"}
"""By task, the operations of its demonstrations; those of the tasks before could not do."""
COUNTS = {"train": 500, "test": 150}
"""Rows of a task at most; of quotients there are fewer."""
POOL = {"train": 2300, "test": 610}
"""About all puzzles of three numbers that there are."""
SEED = 0


def shortest_set(puzzle: Puzzle, limit: int) -> tuple[str, list[Chain]]:
    """The first task whose operations solve a puzzle, and the chains that do."""
    found = solutions(puzzle, limit)
    for name, allowed in OPERATIONS.items():
        own = [chain for chain in found if all(step.op in allowed for step in chain)]
        if own:
            return name, own
    raise ValueError(f"no chain solves {puzzle}")


def rows_of(split: str, pool: int) -> dict[str, list[dict[str, object]]]:
    """The rows of each task, of one split."""
    rules = Rules(operands=(3,))
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in OPERATIONS}
    for puzzle in generate(split, pool, SEED, rules):  # pyright: ignore[reportArgumentType]
        name, chains = shortest_set(puzzle, rules.limit)
        chain = random.Random(f"continual:{puzzle.key}").choice(chains)
        rows[name].append(
            {
                "prompt": puzzle.prompt,
                "demonstration": write_chain(chain),
                "numbers": list(puzzle.numbers),
                "target": puzzle.target,
            }
        )
    return rows


def write_tasks(folder: Path) -> None:
    """Write rows, base and suite."""
    write(
        folder, 1, 400, SEED, 1
    )  # for the base and its suite, of puzzles of two and three numbers
    for split, count in COUNTS.items():
        for name, rows in rows_of(split, POOL[split]).items():
            lines = "".join(json.dumps(row) + "\n" for row in rows[:count])
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    """Write everything into the folder that is named."""
    write_tasks(Path(sys.argv[1]))


if __name__ == "__main__":
    main()

"""Write the task to a folder: rows, base model, recipe; from then on it is like anyone's data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefix_rft.tasks.countdown.puzzle import (
    Puzzle,
    Rules,
    demonstration,
    difficulty,
    generate,
    write_chain,
)

PACKAGE = "prefix_rft.tasks.countdown"


def row(puzzle: Puzzle, limit: int, seed: int) -> dict[str, Any]:
    """One line of a data file; the demonstration carries no end-of-sequence text."""
    return {
        "prompt": puzzle.prompt,
        "demonstration": write_chain(demonstration(puzzle, limit, seed)),
        "numbers": list(puzzle.numbers),
        "target": puzzle.target,
        "difficulty": difficulty(puzzle, limit),
    }


def write_rows(path: Path, puzzles: Sequence[Puzzle], limit: int, seed: int) -> None:
    """Write one JSON row per puzzle."""
    with path.open("w", encoding="utf-8") as file:
        for puzzle in puzzles:
            file.write(json.dumps(row(puzzle, limit, seed)) + "\n")


def write(folder: Path, n_train: int = 3000, n_test: int = 400, seed: int = 0) -> None:
    """Write ``train.jsonl``, ``test.jsonl``, ``base/``, ``recipe.yaml`` and ``recipes/`` (one for
    each method) into ``folder``.

    Raises:
        ValueError: there are fewer different puzzles than asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rules = Rules()
    write_rows(folder / "train.jsonl", generate("train", n_train, seed, rules), rules.limit, seed)
    write_rows(folder / "test.jsonl", generate("test", n_test, seed, rules), rules.limit, seed)
    with as_file(files(PACKAGE)) as package:
        shutil.copytree(package / "base", folder / "base", dirs_exist_ok=True)
        shutil.copy(package / "recipe.yaml", folder / "recipe.yaml")
        shutil.copytree(package / "recipes", folder / "recipes", dirs_exist_ok=True)

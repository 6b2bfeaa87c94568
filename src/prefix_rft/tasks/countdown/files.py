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
    difficulty,
    generate,
    worse_demonstration,
    write_chain,
)

PACKAGE = "prefix_rft.tasks.countdown"
BASES = {"base": 3, "base_four": 4}
"""Folders of base models, and the most numbers that each has read chains over."""
VALIDATION = 1_000_003
"""Added to the seed of the rows to validate on."""


def row(puzzle: Puzzle, limit: int, seed: int, accuracy: float = 1.0) -> dict[str, Any]:
    """One line of a data file; the demonstration carries no end-of-sequence text."""
    return {
        "prompt": puzzle.prompt,
        "demonstration": write_chain(worse_demonstration(puzzle, limit, accuracy, seed)),
        "numbers": list(puzzle.numbers),
        "target": puzzle.target,
        "difficulty": difficulty(puzzle, limit),
    }


def write_rows(
    path: Path, puzzles: Sequence[Puzzle], limit: int, seed: int, accuracy: float = 1.0
) -> None:
    """Write one JSON row per puzzle."""
    with path.open("w", encoding="utf-8") as file:
        for puzzle in puzzles:
            file.write(json.dumps(row(puzzle, limit, seed, accuracy)) + "\n")


def write(
    folder: Path,
    n_train: int = 3000,
    n_test: int = 400,
    seed: int = 0,
    n_valid: int = 200,
    operands: Sequence[int] | None = None,
    solver_accuracy: float = 1.0,
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``, ``base/``, ``recipe.yaml``,
    ``forgetting.yaml``, ``recipes/`` (one for each method) and ``compare/`` into ``folder``.

    Validation rows are of the training split; no puzzle is in both files. The easiest quarter of
    the training rows is in ``forget.jsonl``, the rest in ``retain.jsonl``.

    Args:
        folder: the folder to write into.
        n_train: rows to train on.
        n_test: held-out rows.
        seed: the seed of the puzzles and demonstrations.
        n_valid: rows for choices such as a learning rate.
        operands: how many numbers a puzzle may have; by default 2 and 3.
        solver_accuracy: the accuracy of the demonstrations to train on; the others are correct
            chains that lead elsewhere.

    Raises:
        ValueError: there are fewer different puzzles than asked for, or no base for so many
            numbers.
    """
    most = max(operands or Rules().operands)
    base = next((name for name, known in BASES.items() if most <= known), None)
    if base is None:
        raise ValueError(
            f"no base has read chains over {most} numbers; make one with "
            f"python -m {PACKAGE}.base_model OUT --operands ..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    rules = Rules() if operands is None else Rules(operands=tuple(operands))
    train = generate("train", n_train, seed, rules)
    valid = generate("train", n_valid, seed + VALIDATION, rules, avoid=train)
    write_rows(folder / "train.jsonl", train, rules.limit, seed, solver_accuracy)
    write_rows(folder / "valid.jsonl", valid, rules.limit, seed)
    easy = {
        p.prompt for p in sorted(train, key=lambda p: difficulty(p, rules.limit))[: n_train // 4]
    }
    for name, wanted in (("forget", True), ("retain", False)):
        own = [p for p in train if (p.prompt in easy) == wanted]
        write_rows(folder / f"{name}.jsonl", own, rules.limit, seed)
    write_rows(folder / "test.jsonl", generate("test", n_test, seed, rules), rules.limit, seed)
    with as_file(files(PACKAGE)) as package:
        shutil.copytree(package / base, folder / "base", dirs_exist_ok=True)
        for name in ("recipe.yaml", "forgetting.yaml"):
            _copy_recipe(package / name, folder / name, most)
        for part in ("recipes", "compare"):
            (folder / part).mkdir(exist_ok=True)
            for path in sorted((package / part).glob("*.yaml")):
                _copy_recipe(path, folder / part / path.name, most)


def _copy_recipe(source: Path, target: Path, operands: int) -> None:
    """A recipe with the budget that a chain over so many numbers needs, its EOS included."""
    text = source.read_text(encoding="utf-8")
    text = text.replace("max_completion_length: 12", f"max_completion_length: {6 * operands - 6}")
    target.write_text(text, encoding="utf-8")

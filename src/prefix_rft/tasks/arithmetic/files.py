"""Write the task to a folder: rows, base model, recipes; from then on it is like anyone's data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import Any

from prefix_rft.data.puzzles import NAME, Puzzles
from prefix_rft.support.errors import UserError
from prefix_rft.tasks.arithmetic.smollm2 import find_gguf, write_model

PACKAGE = "prefix_rft.tasks.arithmetic"
SUMS = {NAME: "chain_sum", "min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 2}
TRIES = 4
"""Puzzles drawn for each that is wanted: some come twice."""


def write(
    folder: Path, n_train: int = 3000, n_test: int = 400, seed: int = 0, n_valid: int = 200
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``, ``model/``, ``recipe.yaml``,
    ``recipes/`` and ``compare.yaml`` into ``folder``.

    No sum is in two of the files, or twice in one. Those held out are the same however many are
    trained on.

    Args:
        folder: the folder to write into.
        n_train: rows to train on.
        n_test: held-out rows.
        seed: the seed of the sums.
        n_valid: rows for choices such as a learning rate.

    Raises:
        UserError: a package of the extra ``lab`` is not installed.
        ValueError: there are fewer different sums than asked for.
    """
    find_gguf()  # before anything is written
    rows = distinct(TRIES * (n_train + n_test + n_valid), seed)
    parts = {"test": n_test, "valid": n_valid, "train": n_train}
    texts = {}
    for name, count in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in islice(rows, count)]
        if len(lines) < count:
            raise ValueError("there are fewer different sums: ask for fewer rows")
        texts[name] = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with as_file(files(PACKAGE)) as package:
        for name in ("recipe.yaml", "compare.yaml"):
            shutil.copyfile(package / name, folder / name)
        shutil.copytree(package / "recipes", folder / "recipes", dirs_exist_ok=True)
    try:
        write_model(folder / "model")
    except OSError as error:
        raise UserError(f"the model cannot be written to '{folder / 'model'}': {error}") from error


def distinct(size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of sums, none of which asks for what one before it asks for.

    Args:
        size: how many are drawn, those that come twice included.
        seed: the seed of the sums; those of two seeds are drawn apart.
    """
    seen: set[str] = set()
    for row in Puzzles.of({**SUMS, "size": size, "seed": seed * 10_000_000}).rows():
        asked = json.loads(row["puzzle"])["puzzle"]["metadata"]["expression"]
        if asked not in seen:
            seen.add(asked)
            yield row

"""Write the task to a folder: rows, pictures, base model, recipes; then it is as anyone's data."""

from __future__ import annotations

import json
import random
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from prefix_rft.support.errors import UserError
from prefix_rft.support.imports import need
from prefix_rft.tasks.jigsaw.picture import Cut
from prefix_rft.tasks.jigsaw.puzzle import answer_row, jigsaw, other_row, row

PACKAGE = "prefix_rft.tasks.jigsaw"
LONGEST = "max_completion_length: 13"
"""In the recipes, for four pieces: tags, each number twice, EOS."""
BESIDE = {"train": {"answers": answer_row}, "test": {"discs": other_row}}
"""Other rows of the same pictures."""


def write(
    folder: Path,
    n_train: int = 1000,
    n_test: int = 400,
    seed: int = 0,
    n_valid: int = 200,
    rows: int = 2,
    columns: int = 2,
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``, ``answers.jsonl``, ``discs.jsonl``,
    ``pictures/``, ``base/``, ``recipe.yaml``, ``recipes/`` and ``forgetting.yaml`` into ``folder``.

    Every picture is of one row. ``answers.jsonl`` has the rows to train on with demonstrations that
    do not reason; ``discs.jsonl`` asks something else of the pictures to test on, which the base
    can answer. Of jigsaws the base has read those of 2 x 2 pieces alone.

    Args:
        folder: the folder to write into.
        n_train: rows to train on.
        n_test: held-out rows.
        seed: the seed of the pictures and of how they are shuffled.
        n_valid: rows for choices such as a learning rate.
        rows: pieces of a picture from top to bottom.
        columns: pieces from left to right.

    Raises:
        ValueError: there are fewer than two pieces, or more than the base has words for.
        UserError: Pillow is not installed, or the folder holds pictures of other puzzles.
    """
    cut = Cut(rows, columns)
    cut.refuse()
    image = need("PIL.Image", "the jigsaw task needs Pillow: pip install 'prefix-rft[images]'")
    if (folder / "pictures").exists():
        raise UserError(f"'{folder / 'pictures'}' exists already: name another folder")
    (folder / "pictures").mkdir(parents=True)
    for name, count in (("train", n_train), ("valid", n_valid), ("test", n_test)):
        rng = random.Random(f"jigsaw:{name}:{seed}")
        puzzles = {f"pictures/{name}-{i:05}.png": jigsaw(cut, rng) for i in range(count)}
        for file, puzzle in puzzles.items():
            image.fromarray(puzzle.pixels).save(folder / file)
        for data, line_of in {name: row, **BESIDE.get(name, {})}.items():
            lines = [json.dumps(line_of(puzzle, file)) + "\n" for file, puzzle in puzzles.items()]
            (folder / f"{data}.jsonl").write_text("".join(lines), encoding="utf-8")
    with as_file(files(PACKAGE)) as package:
        shutil.copytree(package / "base", folder / "base", dirs_exist_ok=True)
        for source in (*package.glob("*.yaml"), *package.glob("recipes/*.yaml")):
            target = folder / source.relative_to(package)
            target.parent.mkdir(exist_ok=True)
            written = source.read_text(encoding="utf-8")
            length = f"max_completion_length: {5 + 2 * cut.pieces}"
            target.write_text(written.replace(LONGEST, length), encoding="utf-8")

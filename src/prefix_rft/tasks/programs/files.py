"""Write the task to a folder: rows, base model, recipe; from then on it is like anyone's data."""

from __future__ import annotations

import json
import random
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from prefix_rft.tasks.programs.problem import Chain, generate, row

PACKAGE = "prefix_rft.tasks.programs"


def write(
    folder: Path, n_train: int = 1500, n_test: int = 200, seed: int = 0, n_valid: int = 200
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``, ``base/`` and ``recipe.yaml`` into
    ``folder``.

    The functions of ``test.jsonl`` are in neither of the other files, under no description; those
    of ``valid.jsonl`` may be trained on under another one.

    Args:
        folder: the folder to write into.
        n_train: rows to train on.
        n_test: held-out rows.
        seed: the seed of the problems.
        n_valid: rows for choices such as a learning rate.

    Raises:
        ValueError: there are fewer different problems than asked for.
    """
    seen: set[Chain] = set()
    texts = {}
    for name, count in {"test": n_test, "valid": n_valid, "train": n_train}.items():
        rng = random.Random(f"programs:{name}:{seed}")
        chains = generate("test" if name == "test" else "train", count, rng, seen)
        texts[name] = "".join(json.dumps(row(chain)) + "\n" for chain in chains)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with as_file(files(PACKAGE)) as package:
        shutil.copytree(package / "base", folder / "base", dirs_exist_ok=True)
        shutil.copyfile(package / "recipe.yaml", folder / "recipe.yaml")

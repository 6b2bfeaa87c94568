"""Write the task to a folder: rows, base model, recipes; from then on it is like anyone's data."""

from __future__ import annotations

import json
import random
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from prefix_rft.tasks.chain.base_model import LONGEST
from prefix_rft.tasks.chain.rule import (
    PARITY,
    demonstrate,
    draw_symbols,
    prompt_of,
    symbols_of,
    table_of,
    write_chain,
)

PACKAGE = "prefix_rft.tasks.chain"
RULES = ("new", PARITY)
COPIED = ("recipe.yaml", "compare.yaml", "forgetting.yaml")


def row(symbols: str, rng: random.Random, name: str) -> dict[str, Any]:
    """One line of a data file, with a demonstration of its own choices."""
    return {
        "prompt": prompt_of(name, symbols),
        "demonstration": write_chain(demonstrate(symbols, table_of(name), rng)),
        "symbols": symbols,
        "rule": name,
    }


def write(
    folder: Path,
    n_train: int = 75,
    n_test: int = 400,
    seed: int = 0,
    n_valid: int = 200,
    steps: int = 24,
    rule: str = "new",
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl``, ``old.jsonl``, ``base/``,
    ``recipe.yaml``, ``compare.yaml`` and ``forgetting.yaml`` into ``folder``.

    The rows to validate and test on are the same for every seed and number of rows to train on.
    ``old.jsonl`` has chains of the rule that the base knows.

    Args:
        folder: the folder to write into.
        n_train: rows to train on, each with a demonstration.
        n_test: held-out rows.
        seed: the seed of the rows to train on.
        n_valid: rows for choices such as a learning rate.
        steps: steps of a chain.
        rule: ``new``, a random table, or ``parity``.

    Raises:
        ValueError: another rule, chains that are longer than those that the base has read, or fewer
            than asked for.
    """
    if rule not in RULES:
        raise ValueError(f"there is no rule '{rule}': give {' or '.join(RULES)}")
    if not 1 <= steps <= LONGEST:
        raise ValueError(f"the base has read chains of 1 to {LONGEST} steps, got {steps}")
    counts = {"test": n_test, "valid": n_valid, "old": n_test, "train": n_train}
    if sum(counts.values()) > len(symbols_of(rule)) ** steps // 2:
        raise ValueError(f"there are too few different chains of {steps} steps: ask for fewer rows")
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for name, count in counts.items():
        own = "" if rule == "new" else f"{rule}:"
        rng = random.Random(f"chain:{own}{name}:{seed if name == 'train' else 'all'}")
        followed = "old" if name == "old" else rule
        lines = []
        while len(lines) < count:
            symbols = draw_symbols(steps, rng, followed)
            if symbols not in seen:
                seen.add(symbols)
                lines.append(row(symbols, rng, followed))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    with as_file(files(PACKAGE)) as package:
        shutil.copytree(package / "base", folder / "base", dirs_exist_ok=True)
        for name in COPIED:
            text = (package / name).read_text(encoding="utf-8")
            # The longest answer, its EOS included.
            text = text.replace(
                "max_completion_length: 97", f"max_completion_length: {4 * steps + 1}"
            )
            (folder / name).write_text(text, encoding="utf-8")

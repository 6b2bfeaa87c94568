"""The table of docs/jigsaw.md, from results.json: ``python benchmarks/jigsaw/tables.py``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
WORDS = {
    "base": "base",
    "grpo": "RFT: `recipes/grpo.yaml`",
    "prefix_rft": "Prefix-RFT: `recipe.yaml`",
    "sft": "SFT, reasoned: `recipes/sft.yaml`",
    "sft_answers": "SFT, answers: `recipes/sft_answers.yaml`",
    "sft_rollouts": "SFT, RFT's rollouts: `recipes/sft_rollouts.yaml`",
}
SHARES = ("test", "test_swapped", "form", "discs")
HEAD = (
    "| model | steps | solved, % | with swapped pictures, % | in form, % | discs found, % "
    "| mean reward |\n|---|---|---|---|---|---|---|\n"
)


def spread(values: list[float], digits: int) -> str:
    """The mean, and the least and most where they differ."""
    low, high = (f"{x:.{digits}f}" for x in (min(values), max(values)))
    return f"{mean(values):.{digits}f}" + (f" ({low} to {high})" if low != high else "")


def table(results: dict[str, Any]) -> str:
    """A line for the base and for each arm."""
    arms: dict[str, list[Any]] = {"base": [{**results["base"], "steps": 0}]}
    for name in WORDS:
        if found := [r for r in results["records"] if r["arm"] == name]:
            arms[name] = found
    lines = []
    for name, found in arms.items():
        cells = [WORDS[name], spread([r["steps"] for r in found], 0)]
        cells += [spread([100 * r[share] for r in found], 1) for share in SHARES]
        cells.append(spread([r["reward"] for r in found], 2))
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    print(table(json.loads((HERE / "results.json").read_text())), end="")


if __name__ == "__main__":
    main()

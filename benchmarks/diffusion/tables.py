"""The table of README.md, from results.json: ``python benchmarks/diffusion/tables.py``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).parent
HEAD = (
    "| arm | vertical, % | less SFT, paired | less SSPO, paired | neither, % | places "
    "| error on winners |\n|---|---|---|---|---|---|---|\n"
)


def interval(values: list[float]) -> str:
    """Mean and 95 % interval by Student's t; the mean alone where nothing varies."""
    from scipy.stats import t

    if len(values) < 2:
        return f"{mean(values):.1f}"
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.1f} [{mean(values) - half:.1f}, {mean(values) + half:.1f}]"


def table(results: dict[str, Any]) -> str:
    """A line for the base and for each arm, in the order in which they were run."""
    arms: dict[str, dict[int, Any]] = {}
    for record in results["records"]:
        arms.setdefault(record["arm"], {})[record["seed"]] = record
    base = results["base"]
    lines = [f"| base | {100 * base['vertical']:.1f} |  |  | {100 * base['neither']:.1f} | "
             f"{base['places']:.1f} |  |"]  # fmt: skip
    for arm, by_seed in arms.items():
        share = {seed: 100 * r["vertical"] for seed, r in by_seed.items()}
        less = [
            ""
            if other == arm
            else interval([x - 100 * arms[other][seed]["vertical"] for seed, x in share.items()])
            for other in ("sft", "sspo")
        ]
        cells = [
            arm,
            interval(list(share.values())),
            *less,
            interval([100 * r["neither"] for r in by_seed.values()]),
            f"{mean(r['places'] for r in by_seed.values()):.1f}",
            ", ".join(f"{r['winner_error']:.2f}" for r in by_seed.values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    print(table(json.loads((HERE / "results.json").read_text())), end="")


if __name__ == "__main__":
    main()

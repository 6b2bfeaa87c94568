"""What of a run's metrics says when it rose: of each step, plain rows, solved ones, and tokens.

python benchmarks/regimes/curves.py RESULTS...    # folders of seeds; writes curves.json in each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROWS = 64
TOKENS = ("sampled", "prefilled", "forward", "trained")


def curve(metrics: Path) -> list[list[float]]:
    """Of each step: rows that started at the prompt, solved ones among them, and four tokens."""
    found = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        if "reward" not in step:
            continue
        plain = round(ROWS * (1 - step.get("prefix/row_share", 0.0)))
        solved = round(plain * (step.get("policy/reward") or 0.0))
        found.append([plain, solved, *(step[f"tokens/{name}"] for name in TOKENS)])
    return found


def main(folders: list[Path]) -> None:
    """Write the curves of every arm that samples."""
    for folder in folders:
        arms = {
            path.parents[1].name: curve(path)
            for path in sorted(folder.glob("arms/sft+*/seed-0/metrics.jsonl"))
        }
        text = json.dumps(arms, separators=(",", ":")) + "\n"
        (folder / "curves.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])

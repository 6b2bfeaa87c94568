"""Prompts of the chain task without demonstrations, for RL that is not tied to those that have one.

python benchmarks/regimes/fresh.py FOLDER     # beside train.jsonl; writes fresh.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from prefix_rft.tasks.chain.files import row
from prefix_rft.tasks.chain.rule import draw_symbols

ROWS = 5000


def main(folder: Path) -> None:
    """Write the rows; none of them is in another file of the folder."""
    seen = {
        json.loads(line)["symbols"]
        for name in ("train", "valid", "test")
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    }
    first = next(iter(seen))
    rng = random.Random(f"fresh:{sorted(seen)[0]}")
    lines: list[str] = []
    while len(lines) < ROWS:
        symbols = draw_symbols(len(first), rng)
        if symbols not in seen:
            seen.add(symbols)
            own = row(symbols, rng, "new")
            del own["demonstration"]
            lines.append(json.dumps(own) + "\n")
    (folder / "fresh.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

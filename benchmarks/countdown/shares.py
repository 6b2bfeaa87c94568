"""How many of a batch's tokens are prefixes, and how much of its gradient comes from them.

    python benchmarks/countdown/shares.py    # 20 minutes on one core; writes shares.json

The paper says that prefix tokens are 5 to 10 % of a batch and double the norm of the gradient
(arXiv 2507.01679 v3, Table 4). Prefix-RFT with the settings of ``compare/methods.yaml``, with the
entropy selection (20 %) and without it (100 %), three seeds, every tenth step measured.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from statistics import mean

from rich.console import Console

from prefix_rft.runs.folder import describe_machine, git_state, write_json
from prefix_rft.runs.reader import RunFolder
from prefix_rft.training.train import train

SEEDS, EVERY, STEPS, PARTS = 3, 10, 400, 4
RATES = {"ordinary": 3e-4, "hard": 1e-4}
"""What the comparisons chose for Prefix-RFT."""


def part_of(lines: list[dict]) -> dict[str, float]:
    """Means over the measured steps of some runs."""
    told = [x for x in lines if x.get("gradient/prefix_norm") is not None]
    ratios = [math.log(x["grad_norm"] / x["gradient/without_prefix_norm"]) for x in told]
    return {
        "steps_measured": len(told),
        "prefix_tokens_share": mean(x["prefix/token_share"] for x in lines),
        "trained_prefix_tokens_share": mean(
            x["prefix/token_share"] * x.get("prefix/kept", 0.0) for x in lines
        ),
        "gradient_prefix_share": mean(x["gradient/prefix_share"] for x in told),
        "norm_with_over_without_prefix": math.exp(mean(ratios)),
    }


def main() -> None:
    """Train, measure, write."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for regime, rate in RATES.items():
            recipe = f"data/{regime}/compare/methods.yaml"
            for keep in (0.2, 1.0):
                lines: list[dict] = []
                for seed in range(SEEDS):
                    overrides = [
                        f"method={{name: prefix_rft, entropy_keep: {keep}}}",
                        *(f"seed={seed}", f"learning_rate={rate}", f"max_steps={STEPS}"),
                        *(f"gradient_shares_every={EVERY}", f"runs={runs}"),
                        *(f"name={regime}-{keep}-{seed}", "eval_data=null"),
                    ]
                    folder = train(recipe, overrides, Console(quiet=True))
                    lines += [x for x in RunFolder(folder).metrics() if "policy/reward" in x]
                width = STEPS // PARTS
                found.setdefault(regime, {})[f"keep {keep:.0%}"] = [
                    {"to_step": (i + 1) * width}
                    | part_of([x for x in lines if i * width < x["step"] <= (i + 1) * width])
                    for i in range(PARTS)
                ]
                print(regime, keep, json.dumps(found[regime][f"keep {keep:.0%}"][-1]))
    command = "python benchmarks/countdown/shares.py"
    head = {"command": command, **describe_machine(), "git": git_state()}
    write_json(Path(__file__).parent / "shares.json", {**head, "results": found})


if __name__ == "__main__":
    sys.exit(main())

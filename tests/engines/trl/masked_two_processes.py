"""Run by a test in two gloo processes: runs whose mask looks at demonstrations.

Usage: masked_two_processes.py FOLDER CASE...
"""

import sys
from pathlib import Path
from typing import Any

import torch
from masked_runs import run

CASES: dict[str, dict[str, Any]] = {
    "gradient": {"kind": "speft", "fraction": 0.1, "update_every": 2},
    "fisher": {"kind": "speft", "fraction": 0.1, "score": "fisher", "examples": 5},
    "few": {"kind": "speft", "fraction": 0.1, "examples": 1},  # one process has none to look at
}
BATCH, STEPS = 8, 3


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    rank = 0
    for name in names:
        trainer, steps, _ = run(
            folder / name,
            "sft",
            CASES[name],
            max_steps=STEPS,
            per_device_train_batch_size=BATCH // 2,
            ddp_find_unused_parameters=False,
        )
        trainer.train()
        found[name] = {"masks": steps.masks, "before": steps.before, "after": steps.after}
        rank = trainer.accelerator.process_index
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

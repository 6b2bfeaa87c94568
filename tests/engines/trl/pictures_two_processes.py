"""Run by a test in two gloo processes: steps on rows of which one process's have no pictures.

Usage: pictures_two_processes.py FOLDER COUNTS...   (numbers of pictures of the rows, like 0,2)
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from picture_runs import Steps, rl

from tiny_vision import picture_rows


def main(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    rank = 0
    for case in cases:
        rows = picture_rows(folder, [int(n) for n in case.split(",")], save=False)
        sizes = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2}
        trainer = rl(folder / case, rows, **sizes)
        steps = Steps(trainer)
        trainer.train()
        rank = trainer.accelerator.process_index
        found[case] = [(w, g, loss, [asdict(r) for r in rs]) for w, g, loss, rs in steps.steps]
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

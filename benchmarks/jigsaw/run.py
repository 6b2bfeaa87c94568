"""Train the recipes of the jigsaw task and measure what each model solves and still knows.

    python benchmarks/jigsaw/run.py WORK [--arms grpo,sft] [--seeds 3] [key=value ...]

A record for each arm and seed; those that are there are not made again. Everything is trained by
the same code as ``prefix-rft train``; WORK keeps the task and the run folders. ``sft_rollouts``
imitates what the run of ``grpo`` with the same seed has solved, which is trained first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from prefix_rft.data import load_rows
from prefix_rft.engines.models import load_model
from prefix_rft.evaluation.own_rollouts import write_solved
from prefix_rft.evaluation.samples import Request
from prefix_rft.evaluation.scores import sampled
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.writing import write_json
from prefix_rft.tasks.jigsaw import accuracy, form, hits, write
from prefix_rft.training.train import train

HERE = Path(__file__).parent
ARMS = {
    "grpo": "recipes/grpo.yaml",
    "prefix_rft": "recipe.yaml",
    "sft": "recipes/sft.yaml",
    "sft_answers": "recipes/sft_answers.yaml",
    "sft_rollouts": "recipes/sft_rollouts.yaml",
}
ROLLOUTS = "grpo"
"""The arm whose rollouts another one imitates."""


def swapped(rows: Path) -> Path:
    """The same questions and answers, each with the picture of the row behind it."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    shown = [line["image"] for line in lines]
    moved = zip(lines, [*shown[1:], shown[0]], strict=True)
    path = rows.with_name(f"{rows.stem}_swapped.jsonl")
    path.write_text("".join(json.dumps({**line, "image": image}) + "\n" for line, image in moved))
    return path


def measured(model: Path, task: Path) -> dict[str, float]:
    """Shares of one sample each at temperature 1, and the mean of the three rewards' sum."""
    network, processor = load_model(str(model))
    found = {}
    for name in ("test", "test_swapped", "discs"):
        rows = load_rows(str(task / f"{name}.jsonl"))
        request = Request(1, 1.0, max_completion_length=13)
        problems = sampled(network, processor, rows, accuracy, request)
        texts = [problem.samples[0].text for problem in problems]
        golds: list[Any] = list(rows["answer"])
        parts = [accuracy(texts, golds), hits(texts, golds), form(texts)]
        found[name] = mean(v.status == "correct" for v in parts[0])
        if name == "test":
            found["reward"] = sum(mean(v.reward or 0.0 for v in part) for part in parts)
            found["form"] = mean(v.reward or 0.0 for v in parts[2])
    return found


def run_of(task: Path, arm: str, seed: int) -> Path:
    """The run folder of an arm and a seed."""
    return task / "runs" / f"{arm}-{seed}"


def record(task: Path, arm: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train an arm with a seed and measure it."""
    recipe, began = str(task / ARMS[arm]), time.monotonic()
    keys = [f"name={arm}-{seed}", f"runs={task / 'runs'}", f"seed={seed}", "~eval_data", *overrides]
    if arm == "sft_rollouts":
        own = task / f"own-{seed}.jsonl"
        found = write_solved(run_of(task, ROLLOUTS, seed), str(task / ARMS[ROLLOUTS]), own, 4, 0)
        keys.append(f"train_data={own}")
        extra = {"rows": found.rows, "answers": found.answers, "right": found.right}
    else:
        extra = {}
    folder = run_of(task, arm, seed)
    if not (folder / "model").exists():
        train(recipe, keys, Console())
    seconds = round(time.monotonic() - began, 1)
    steps = max(line["step"] for line in RunFolder(folder).metrics())
    scored = measured(folder / "model", task)
    return {"arm": arm, "seed": seed, **scored, "steps": steps, **extra, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    args = parser.parse_intermixed_args()
    task = (args.work / "jigsaw").absolute()
    if not (task / "recipe.yaml").exists():
        write(task)
    swapped(task / "test.jsonl")
    there: dict[str, Any] = {"records": []}
    if args.output.exists():
        there = json.loads(args.output.read_text())
    there["machine"] = {**describe_machine(), "git": git_state()}
    if "base" not in there:
        there["base"] = measured(task / "base", task)
    print("base", there["base"], flush=True)
    known = {(r["arm"], r["seed"]) for r in there["records"]}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm in args.arms.split(","):
            if (arm, seed) not in known:
                there["records"].append(record(task, arm, seed, args.overrides))
                print(there["records"][-1], flush=True)
                write_json(args.output, there)


if __name__ == "__main__":
    main()

"""Train every arm from one base and measure what it draws: a JSON record for each arm and seed.

    python benchmarks/diffusion/run.py WORK [--arms "sspo;sft"] [--seeds 3] [key=value ...]

Records that are there are not made again. Everything is trained by the same code as
``prefix-rft diffusion``; WORK keeps pictures, base and run folders.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bars import drawn, measured, write_rows
from rich.console import Console

from prefix_rft.diffusion.models import load, predict_of
from prefix_rft.diffusion.recipe import read
from prefix_rft.diffusion.train import train
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.runs.reader import RunFolder
from prefix_rft.support.writing import write_json

HERE = Path(__file__).parent
ARMS: dict[str, list[str]] = {
    "sft": ["method=sft"],
    "dpo": ["method=dpo", "beta=200"],
    "sspo": ["beta=200"],
    "sspo, indicator": ["beta=200", "flip=indicator"],
    "sspo, no flip": ["beta=200", "flip=none"],
    "sspo, first reference": ["beta=200", "reference=first"],
    "sspo, latest reference": ["beta=200", "reference=latest"],
    "dpo, beta 20": ["method=dpo", "beta=20"],
    "sspo, beta 20": ["beta=20"],
    "sspo, no flip, beta 20": ["beta=20", "flip=none"],
}
SAMPLES, SAMPLE_STEPS = 512, 50


def data(work: Path) -> None:
    """Pictures of both modes for the base; winners that are vertical, losers that are not."""
    if not (work / "both/rows.jsonl").exists():
        write_rows(work / "both", {"image": drawn(512, [0, 1], seed=1)})
        columns = {"image": drawn(64, [0], seed=2), "loser": drawn(64, [1], seed=3)}
        write_rows(work / "pairs", columns)


def base(work: Path) -> Path:
    """A UNet of some 40,000 weights that draws both modes, by SFT on pictures of both."""
    model = work / "runs/base/model"
    if not model.exists():
        from diffusers import DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16),
            layers_per_block=1, norm_num_groups=4, add_attention=False,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        network.save_pretrained(work / "new/unet")
        DDPMScheduler(prediction_type="epsilon").save_pretrained(work / "new/scheduler")
        train(str(recipe(work, "base.yaml")), [f"runs={work / 'runs'}"], Console())
    return model


def recipe(work: Path, name: str) -> Path:
    """A recipe beside the pictures, as paths in it are seen from there."""
    path = work / name
    path.write_text((HERE / name).read_text())
    return path


def samples(folder: Path, seed: int) -> torch.Tensor:
    """What a model draws, from noise that no training has."""
    model = load(folder)
    noise = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(10_000 + seed))
    predict = predict_of(model.network, None, folder, labels=False)
    return model.process.sample(predict, noise, None, SAMPLE_STEPS)


def last_error(folder: Path) -> float:
    """The error on winners, a mean over the last stage."""
    lines = RunFolder(folder).metrics()[-30:]
    return mean(line["diffusion/winner_error"] for line in lines)


def record(work: Path, arm: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train an arm with a seed and measure it."""
    path = recipe(work, "arms.yaml")
    named = "".join(c if c.isalnum() else "-" for c in arm) + f"-{seed}"
    keys = [f"runs={work / 'runs'}", f"name={named}", f"seed={seed}", *ARMS[arm], *overrides]
    began = time.monotonic()
    folder = train(str(path), keys, Console())
    seconds = time.monotonic() - began
    told = read(path, keys).resolved()
    for key in ("runs", "name"):
        del told[key]
    found = measured(samples(folder / "model", seed))
    found["winner_error"] = last_error(folder)
    return {"arm": arm, "seed": seed, **found, "seconds": round(seconds, 1), "recipe": told}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--arms", help="; ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    args = parser.parse_intermixed_args()
    data(args.work)
    start = base(args.work)
    there: dict[str, Any] = {"records": []}
    if args.output.exists():
        there = json.loads(args.output.read_text())
    there["machine"] = {**describe_machine(), "git": git_state()}
    there["base"] = measured(samples(start, 0))
    print("base", there["base"], flush=True)
    known = {(r["arm"], r["seed"]) for r in there["records"]}
    arms = args.arms.split(";") if args.arms else list(ARMS)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for arm in arms:
            if (arm, seed) not in known:
                there["records"].append(record(args.work, arm, seed, args.overrides))
                line = {k: v for k, v in there["records"][-1].items() if k != "recipe"}
                print(line, flush=True)
                write_json(args.output, there)


if __name__ == "__main__":
    main()

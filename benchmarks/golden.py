"""Short runs whose every bit is written down, so that two checkouts can be held against each other.

    make golden BASE=HEAD~5                     # the work tree against a commit

What a commit gives is kept in .golden/, for the next comparison with it on this machine. Both
checkouts do the same commands in folders of the same name. What differs between two runs of one
checkout is left out: clocks, dates, versions, the state of git, lines that come by the clock. All
else is compared: weights, metrics, rollouts, resolved recipes, evaluations, the files a run leaves,
and what a person reads on the terminal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLOCKS = re.compile(r"time|_per_second|seconds|runtime|/s$|date|memory", re.IGNORECASE)
SPOKEN = re.compile(r"\b\d+:\d\d(:\d\d)?\b|\b[\d.]+ ?(s|min|h)\b|\d{4}-\d\d-\d\d[T \d:+.]*")
TIMED = ("environment.json", ".lock", "manifest.json", "README.md")
TIMED += ("comparison.csv", "comparison.md")
"""Files with dates, versions and durations in them, of which it is enough that they are there."""
SHORT = ["max_steps=4", "prompts_per_step=4", "micro_batch_size=16", "num_generations=4"]
SHORT += ["logging_steps=1", "eval_problems=12", "save_steps=2", "save_strategy=steps"]
METHODS = ("luffy", "adaback", "relift", "dapo", "discriminative", "hpt", "bread")
DEMONSTRATIONS = ["max_steps=4", "prompts_per_step=8", "micro_batch_size=4", "logging_steps=1"]

STAGES = ["stages.1.max_steps=2", "stages.2.max_steps=2"]

LORA = """
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import PrinterCallback
from prefix_rft import PrefixRFTConfig, PrefixRFTTrainer
from prefix_rft.tasks.countdown import reward

torch.manual_seed(0)
args = PrefixRFTConfig(
    "runs/lora", max_steps=3, per_device_train_batch_size=16, num_generations=4, logging_steps=1,
    max_completion_length=12, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
    learning_rate=1e-3, beta=0.01, disable_tqdm=True,
)
trainer = PrefixRFTTrainer(
    "data/base", reward, args, peft_config=LoraConfig(r=4, target_modules="all-linear"),
    train_dataset=load_dataset("json", data_files="data/train.jsonl", split="train"),
)
trainer.remove_callback(PrinterCallback)
trainer.train()
trainer.save_model("runs/lora/model")
for line in trainer.state.log_history:
    print({k: v for k, v in line.items() if "time" not in k and "_per_second" not in k})
"""
"""Adapters through Python, as older checkouts have them too."""

COMPARE = """
name: golden
model: ../base
train_data: ../train.jsonl
eval_data: ../test.jsonl
reward: prefix_rft.tasks.countdown:reward
num_generations: 4
prompts_per_step: 4
micro_batch_size: 16
max_steps: 2
max_completion_length: 12
compare:
  seeds: 2
  samples: 2
  arms: {dr_grpo: {method: dr_grpo}, prefix_rft: {method: prefix_rft}}
"""


def recipe(method: str) -> str:
    """The path of a recipe of the task."""
    return f"data/recipes/{method}.yaml"


def commands() -> list[tuple[str, list[str]]]:
    """Name and arguments of every command, in the order in which they run."""
    return [
        ("prefix_rft", ["train", recipe("prefix_rft"), "name=prefix_rft", *SHORT]),
        (
            "two_updates",
            ["train", recipe("prefix_rft"), "name=two_updates", "num_iterations=2", *SHORT],
        ),
        *((m, ["train", recipe(m), f"name={m}", *SHORT]) for m in METHODS),
        ("sft", ["train", recipe("sft"), "name=sft", "eval_problems=12", *DEMONSTRATIONS]),
        ("stages", ["train", recipe("sft_then_rl"), "eval_problems=12", *STAGES]),
        (
            "goes_on",
            [
                "train",
                recipe("prefix_rft"),
                "name=prefix_rft",
                *SHORT,
                "resume_from_checkpoint=runs/prefix_rft/checkpoint-2",
            ],
        ),
        (
            "eval",
            ["eval", "runs/prefix_rft/model", "--recipe", recipe("prefix_rft"), "--samples", "2"],
        ),
        ("compare", ["compare", "data/compare/golden.yaml"]),
        ("check", ["check", recipe("prefix_rft")]),
        ("check_sft", ["check", recipe("sft")]),
        ("inspect", ["inspect", recipe("prefix_rft"), "--row", "3", "--model", "data/base"]),
        ("show", ["show", "runs/prefix_rft"]),
        ("report", ["report", "runs/prefix_rft"]),
        ("methods", ["methods", "prefix_rft"]),
    ]


def plain(value: Any) -> Any:
    """JSON data without what a clock says."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not CLOCKS.search(str(k))}
    if not isinstance(value, list):
        return value
    # PEFT writes a set of modules in the order of the day.
    return [plain(v) for v in (sorted(value) if all(isinstance(v, str) for v in value) else value)]


def content(path: Path, folder: Path) -> str:
    """A digest of what a file holds that must not change; ``folder`` is where all was run."""
    if path.name in TIMED or path.suffix in (".html", ".pt", ".pth", ".bin", ".log"):
        return "there"
    if path.suffix == ".json":
        text = json.dumps(plain(json.loads(path.read_text())))
    elif path.suffix == ".jsonl":
        text = json.dumps([plain(json.loads(x)) for x in path.read_text().splitlines()])
    elif path.suffix == ".yaml":
        text = path.read_text()
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return hashlib.sha256(text.replace(str(folder), "FOLDER").encode()).hexdigest()[:16]


def kill(args: list[str], sign: Path, folder: Path, env: dict[str, str]) -> None:
    """Start a run and kill it as soon as a file is there."""
    run = subprocess.Popen([sys.executable, *args], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    while not sign.exists() and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    if run.wait() >= 0:
        sys.exit(f"the run that was to be killed ended before: {' '.join(args)}")


def golden(source: Path, folder: Path) -> dict[str, Any]:
    """Run every command with the package in ``source`` and digest what is left in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = {**os.environ, "PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "HF_DATASETS_CACHE": str(folder / ".hf")}

    def call(args: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *args],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        said = SPOKEN.sub("TIME", done.stdout).replace(str(folder), "FOLDER")
        said = "\n".join(x for x in said.splitlines() if not x.startswith("TIME spent"))
        error = f"\n{done.stderr[-2000:]}" if done.returncode else ""
        return f"exit {done.returncode}\n{said}{error}"

    told = {"task": call(["-m", "prefix_rft", "task", "countdown", "data"])}
    (folder / "data" / "compare" / "golden.yaml").write_text(COMPARE)
    for name, args in commands():
        print(f"{source.name}: {name}", flush=True)
        told[name] = call(["-m", "prefix_rft", *args])
    told["lora"] = call(["-c", LORA])
    killed = ["-m", "prefix_rft", "train", recipe("prefix_rft"), "name=killed", *SHORT]
    kill(killed, folder / "runs/killed/checkpoint-2/manifest.json", folder, env)
    told["killed"] = call([*killed, "--resume"])
    files = {
        str(p.relative_to(folder)): content(p, folder)
        for root in ("runs", "comparisons", "evals")
        for p in sorted((folder / root).rglob("*"))
        if p.is_file()
    }
    return {"said": told, "files": files}


def of_commit(commit: str, scratch: Path) -> dict[str, Any]:
    """What a commit gives: kept from the last time, or run in a work tree of its own."""
    named = ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]
    sha = subprocess.run(named, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    kept = ROOT / ".golden" / f"{sha}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    tree = scratch / "before"
    subprocess.run(["git", "worktree", "add", "--detach", tree, sha], cwd=ROOT, check=True)
    try:
        result = golden(tree, scratch / "golden")
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    failed = [said for said in result["said"].values() if not said.startswith("exit 0")]
    if failed:
        sys.exit("\n".join(["a command fails before the change:", *failed]))
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(result, indent=1))
    return result


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A sentence for everything that is not the same."""
    found = []
    for kind in ("said", "files"):
        old, new = before[kind], after[kind]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(f"{kind} {name}:\n--- {old.get(name)}\n+++ {new.get(name)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Hold this work tree against a commit, bit for bit."
    )
    parser.add_argument("commit", help="what to compare with, such as HEAD~3")
    commit = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as scratch:
        before = of_commit(commit, Path(scratch))
        after = golden(ROOT, Path(scratch) / "golden")
    found = differences(before, after)
    print("\n".join(found))
    print(f"{len(before['said'])} commands, {len(before['files'])} files: {len(found)} differences")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

"""Runs in processes of their own that are killed at a chosen moment."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from prefix_rft import PrefixRFTTrainer
from prefix_rft.train import train
from tiny import make_model, make_rows, make_tokenizer

PHASES = ("generation", "grading", "update", "checkpoint", "record")
CLOCKS = ("time", "_per_second")
REWARD = '''
def shaped(completions, answer, **kwargs):
    """Some spread for a random model."""
    return [
        float(c.split("#")[-1].strip() == a) + 0.01 * sum(x.isdigit() for x in c[:20])
        for c, a in zip(completions, answer)
    ]
'''
RECIPE = """
model: base
train_data: train.jsonl
reward: spread:shaped
max_completion_length: 24
learning_rate: 1e-2
lr_scheduler_type: linear
num_generations: 4
micro_batch_size: 4
prompts_per_step: 2
save_strategy: steps
save_steps: 2
logging_steps: 2
"""
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def write_task(folder: Path, rows: int = 8) -> Path:
    """A recipe with its model, rows and reward; returns the recipe."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    with (folder / "train.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in make_rows(rows))
    (folder / "spread.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


class Moments:
    """Counts what happens in each phase; at a chosen count of one the process is killed.

    ``marks`` holds the counts at each checkpoint.
    """

    def __init__(self, phase: str = "", number: int = 0) -> None:
        self.phase, self.number = phase, number
        self.counts = dict.fromkeys(PHASES, 0)
        self.marks = {0: dict(self.counts)}

    def happens(self, phase: str) -> None:
        """Count; kill."""
        if phase == self.phase and self.counts[phase] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.counts[phase] += 1

    def watch(self) -> None:
        """Count from now on, in this process, for good."""
        register_module_forward_pre_hook(self._forward)
        register_optimizer_step_pre_hook(lambda *args: self.happens("update"))
        register_optimizer_step_post_hook(lambda *args: self.happens("update"))
        rewards = PrefixRFTTrainer._calculate_rewards

        def graded(*args: Any, **kwargs: Any) -> Any:
            self.happens("grading")
            found = rewards(*args, **kwargs)
            self.happens("grading")
            return found

        PrefixRFTTrainer._calculate_rewards = graded
        sys.addaudithook(self._file)

    def _forward(self, module: torch.nn.Module, args: Any) -> None:
        if hasattr(module, "lm_head"):
            self.happens("update" if module.training else "generation")

    def _file(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(args[0], (str, os.PathLike)):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            return
        if event == "os.rename" and Path(args[1]).name.startswith("checkpoint-"):
            self.marks[int(Path(args[1]).name[11:])] = dict(self.counts)
        path = str(args[0])
        if ".writing" in path or "checkpoint-" in path:
            self.happens("checkpoint")
        elif "metrics.jsonl" in path or "rollouts" in path:
            self.happens("record")


def in_a_process(work: Callable[[], None], errors: Path) -> int:
    """The wait status of a fork of this process that does some work."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001  (a fork must never go on with the tests)
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def run(recipe: Path, runs: Path, overrides: Sequence[str], moments: Moments) -> int:
    """Begin or go on with a run; the wait status of its process."""
    counts = runs.with_suffix(".counts.json")

    def work() -> None:
        moments.watch()
        train(str(recipe), [*overrides, f"runs={runs}"], Console(quiet=True), resume=True)
        counts.write_text(json.dumps([moments.counts, moments.marks]))

    return in_a_process(work, runs.with_suffix(".error.txt"))


def evidence(folder: Path) -> dict[str, Any]:
    """What a finished run has left, less what a clock says."""
    metrics = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = max(folder.glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return {
        "metrics": [_timeless(line) for line in metrics],
        "history": [_timeless(line) for line in state["log_history"]],
        "memory": (newest / "method_state.json").read_text(),
        "files": {
            str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob("*"))
            if p.is_file() and (p.parent.name == "rollouts" or p.suffix in (".safetensors", ".pt"))
        },
        "names": sorted(p.name for p in folder.iterdir() if p.name != ".lock"),
    }


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if not any(c in k for c in CLOCKS)}

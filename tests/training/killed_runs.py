"""Runs in processes of their own that are killed at a chosen moment."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers.modeling_utils
from rich.console import Console
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from transformers import PreTrainedTokenizerFast

import prefix_rft.engines.tensors
from prefix_rft import PrefixRFTTrainer
from prefix_rft.training.train import train
from tiny import make_model, make_rows, make_tokenizer

PHASES = ("generation", "grading", "update", "checkpoint", "record")
BEST = "best"
"""While the best weights are written, renamed or deleted; in a run that keeps them."""
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
NATIVE = (
    (torch, "save"),
    (transformers.modeling_utils, "safe_save_file"),
    (prefix_rft.engines.tensors, "save_file"),
    (PreTrainedTokenizerFast, "_save_pretrained"),
)
FEW_BYTES = 20
WAIT_SECONDS = 100
QUIET = Console(quiet=True)
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
        self.counts = dict.fromkeys((*PHASES, BEST), 0)
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
        if "/best" in path:
            self.happens(BEST)
        if ".writing" in path or "checkpoint-" in path:
            self.happens("checkpoint")
        elif "metrics.jsonl" in path or "rollouts" in path:
            self.happens("record")


class Tells:
    """The process sends itself signals, one after the other, in an optimizer step."""

    def __init__(self, step: int, signals: Sequence[int]) -> None:
        self.step, self.signals = step, signals

    def watch(self) -> None:
        """From now on, in this process, for good."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # whatever the tests were started with
        register_optimizer_step_pre_hook(self._step)

    def _step(self, *args: Any) -> None:
        if self.step == 0:
            for number in self.signals:
                os.kill(os.getpid(), number)
        self.step -= 1


class Writes:
    """Counts the files that a run begins to write; at a chosen count the disk refuses.

    Kinds of refusal: ``ENOSPC`` and ``EIO`` when the file is opened, ``short`` when it has a few
    bytes (the file size that the system allows the process is reached). The writers of safetensors,
    tokenizers and torch open their files by themselves, so they count when they are called, and are
    refused in the middle of their file.

    Attributes:
        log: step of the newest checkpoint, and name, of each file.
    """

    def __init__(self, kind: str = "", number: int = -1) -> None:
        self.kind, self.number = kind, number
        self.log: list[tuple[int, str]] = []
        self.saved = 0

    def watch(self, runs: Path) -> None:
        """Count from now on, in this process, for good."""
        self.runs = str(runs)
        for module, name in NATIVE:
            setattr(module, name, self._native(getattr(module, name)))
        sys.addaudithook(self._file)

    def _begins(self, path: str, native: bool) -> None:
        here = len(self.log) == self.number
        self.log.append((self.saved, os.path.basename(path)))
        if here and self.kind == "short":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, resource.RLIM_INFINITY))
        elif here and native:
            limit = FEW_BYTES  # what these writers say is their own affair
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        elif here:
            number = getattr(errno, self.kind)
            raise OSError(number, os.strerror(number), path)

    def _native(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            path = kwargs["save_directory"] if "save_directory" in kwargs else args[1]
            if isinstance(path, (str, os.PathLike)):
                inner = "/tokenizer.json" if os.path.isdir(path) else ""
                self._begins(f"{path}{inner}", native=True)
            return write(*args, **kwargs)

        return counted

    def _file(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(args[1]).name.startswith("checkpoint-"):
            self.saved = int(Path(args[1]).name[11:])
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            path = str(args[0])
            if path.startswith(self.runs) and not path.endswith((".pt", ".pth", ".bin")):
                self._begins(path, native=False)


def run(
    recipe: Path,
    runs: Path,
    overrides: Sequence[str],
    watch: Moments | Tells | Writes | None = None,
) -> int:
    """Begin or go on with a run in a process of its own.

    Returns its exit code, or the negative number of the signal that ended it.
    """
    # Forks of a server that has imported everything: a fork of the tests' own process would inherit
    # the locks of threads that it does not have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_runs"])
    process = context.Process(target=_work, args=(recipe, runs, overrides, watch))
    with pytest.MonkeyPatch.context() as patch:
        # The server does not look where this process does (gh-126631 in CPython).
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        process.start()
    process.join(WAIT_SECONDS)
    code = process.exitcode
    if code is None:
        process.kill()
        raise AssertionError(f"no end after {WAIT_SECONDS} s")
    return code


def _work(
    recipe: Path,
    runs: Path,
    overrides: Sequence[str],
    watch: Moments | Tells | Writes | None,
) -> None:
    counts = runs.with_suffix(".counts.json")
    datasets.config.HF_DATASETS_CACHE = recipe.parent / "hf"
    torch.set_num_threads(1)
    try:
        if isinstance(watch, Writes):
            watch.watch(runs)
        elif watch is not None:
            watch.watch()
        train(str(recipe), [*overrides, f"runs={runs}"], QUIET, resume=True)
    except BaseException:  # noqa: BLE001  (it is written down, and the process ends)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        runs.with_suffix(".error.txt").write_text(traceback.format_exc())
        os._exit(1)
    if isinstance(watch, Moments):
        counts.write_text(json.dumps([watch.counts, watch.marks]))
    elif isinstance(watch, Writes):
        counts.write_text(json.dumps(watch.log))


TWO = ("max_steps=8", "num_iterations=2")


def free_port() -> int:
    """One where nobody listens now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_one_of_two(
    rank: int,
    port: int,
    recipe: Path,
    runs: Path,
    phase: str = "",
    number: int = 0,
    overrides: Sequence[str] = TWO,
) -> subprocess.Popen[str]:
    """Begin or go on with a run of two processes: one of them, perhaps to be killed."""
    code = (
        "import sys, killed_runs as k; from pathlib import Path\n"
        "from prefix_rft.cli import main\n"
        "recipe, runs, phase, number, *more = sys.argv[1:]\n"
        "k.Moments(phase, int(number)).watch()\n"
        "sys.exit(main(['train', recipe, f'runs={runs}', '--resume', *more]))"
    )
    here = Path(__file__).parent
    more = [*overrides, "ddp_timeout=60"]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(recipe), str(runs), phase, str(number), *more],
        env={
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
        },
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


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

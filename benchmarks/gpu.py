"""What ``gpu.sh`` does: parts in processes of their own, each with a limit, and one JSON file.

- ``tests``: the tests marked ``gpu``, on the device.
- ``step``: ``step.py`` in bf16 against stock TRL, of SmolLM2 where it is installed, else of a toy.
- ``memory``: the peak of that step beside the estimate that ``prefix-rft check`` makes.
- ``fsdp2``: steps with sharded weights, one process.
- ``smollm2``: SmolLM2 on the arithmetic task before and after as many steps as fit.

A part that fails or takes too long leaves the others alone; the command then ends with status 1.
What is not installed is left out with its reason. On a CPU ``--short`` takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from step_work import GROUP, Work, load
from transformers import AutoConfig

from prefix_rft.checks.device_memory import count_parameters, estimate, has_head_norms
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import write_json
from prefix_rft.tasks.arithmetic.smollm2 import find_gguf

ROOT = Path(__file__).parents[1]
ALL = 480.0
"""Seconds for everything."""
LIMITS = {"tests": 120.0, "step": 200.0, "fsdp2": 60.0, "smollm2": 150.0}
"""Seconds of each part that runs a process."""
SLOWER = 5.0
"""How much longer a part may take on a CPU, short as it is: others may need the machine, too."""
TRAINING = 60.0
"""Seconds that the steps on the arithmetic task may take, of its part."""
STEPS = 50
"""The steps of the task's own recipe, and the most that are run."""

SIZES = {"prompts": 8, "prompt_tokens": 70, "completion_tokens": 72, "micro_batch": 16}
SHORT = {"prompts": 2, "prompt_tokens": 12, "completion_tokens": 8, "micro_batch": 8}


class LeftOutError(Exception):
    """A part cannot be run here; its text says why."""


class FailedError(Exception):
    """A part went wrong; its text says how."""


@dataclass
class Session:
    """One run of this script.

    Attributes:
        device: cuda or cpu.
        short: everything in small.
        folder: where the parts write.
        end: the moment of ``time.monotonic`` at which everything ends.
        results: what the parts before have found.
    """

    device: str
    short: bool
    folder: Path
    end: float
    results: dict[str, Any] = field(default_factory=dict)

    def run(self, part: str, *command: str, **environment: str) -> None:
        """Run Python in a process group of its own, and end all of it at the limit.

        Raises:
            FailedError: it failed, or was ended.
        """
        limit = min(LIMITS[part] * (SLOWER if self.device == "cpu" else 1), self.left)
        if limit <= 0:
            raise FailedError("no time was left for it")
        log = self.folder / f"{part}.log"
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = f"no end after {limit:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if status:
            raise FailedError(f"{status}: {log.read_text(errors='replace')[-2000:]}")

    @property
    def left(self) -> float:
        """Seconds that are left for everything."""
        return self.end - time.monotonic()

    @property
    def model(self) -> Path | None:
        """The folder of SmolLM2; None where it is not there."""
        folder = self.folder / "arithmetic/model"
        return folder if (folder / "model.safetensors").is_file() else None


# ---- the parts ----------------------------------------------------------------------------------


def tests(session: Session) -> dict[str, Any]:
    """The tests marked ``gpu``."""
    report = session.folder / "tests.xml"
    arguments = ("-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider")
    failure = None
    try:
        where = {"PREFIX_RFT_DEVICE": session.device}
        session.run("tests", *arguments, f"--junitxml={report}", **where)
    except FailedError as error:
        failure = error
    if not report.is_file():
        raise failure or FailedError("pytest wrote no report")
    suite = next(ElementTree.parse(report).iter("testsuite"))  # noqa: S314  (written just now)
    counts = {k: int(suite.attrib[k]) for k in ("tests", "failures", "errors", "skipped")}
    if failure is not None or counts["skipped"]:
        raise FailedError(f"{counts}; {failure or 'skipped tests say nothing'}")
    return counts


def step(session: Session) -> dict[str, Any]:
    """A step of ours, with all savings and none, against stock TRL's."""
    output = session.folder / "step.json"
    sizes = SHORT if session.short else SIZES
    variants = ["trl", "dr_grpo", "prefix_rft"]
    if not session.short:
        variants.append("dr_grpo, savings none")
    command = ["benchmarks/step.py", "--device", session.device, "--output", str(output)]
    command += ["--rounds", "1", "--steps", "1" if session.short else "2", "--bf16"]
    for name, value in sizes.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if session.model is not None and not session.short:
        command += ["--model", str(session.model)]
    session.run("step", *command, "--variants", *variants)
    found = json.loads(output.read_text())
    found.pop("command")  # it names folders of this machine
    found["work"]["model"] = "SmolLM2-135M-Instruct" if found["work"]["model"] else None
    return found


def memory(session: Session) -> dict[str, Any]:
    """Peak of our step beside the estimate for the same sizes."""
    found = session.results["step"]
    if not found["ok"]:
        raise LeftOutError("the step was not measured")
    work = found["work"]
    if session.model is None or work["model"] is None:
        config = load(Work(vocabulary=work["vocabulary"]))[0].config
    else:
        config = AutoConfig.from_pretrained(session.model)
    parameters, norms = count_parameters(config), has_head_norms(config)
    estimated = {
        variant: estimate(
            config,
            parameters=parameters,
            micro_batch_size=work["micro_batch"],
            generation_rows=work["prompts"] * GROUP,
            prompt_length=work["prompt_tokens"],
            completion_length=work["completion_tokens"],
            compute_bytes=2,
            triton=session.device == "cuda",
            packed=GROUP if variant in ("dr_grpo", "prefix_rft") else None,
            head_norms=norms,
            accumulates=work["prompts"] * GROUP > work["micro_batch"],
        ).peak
        / 1e9
        for variant in found["peak_GB"]
    }
    gpu = session.device == "cuda"
    return {
        "measured": "the most that torch had allocated" if gpu else "the process, with imports",
        "peak_GB": found["peak_GB"],
        "estimated_GB": {variant: round(gb, 2) for variant, gb in estimated.items()},
        "estimate / measured": {
            variant: round(estimated[variant] / gb, 3) for variant, gb in found["peak_GB"].items()
        },
    }


def fsdp2(session: Session) -> dict[str, Any]:
    """Three steps with sharded weights in one process, which accelerate launches, and three with a
    teacher."""
    output = session.folder / "fsdp2.json"
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--dynamo_backend", "no", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
    launch += ["--mixed_precision", "no" if session.device == "cpu" else "bf16"]
    script = ["benchmarks/gpu_fsdp.py", "--device", session.device, "--output", str(output)]
    session.run("fsdp2", *launch, *script)
    found = json.loads(output.read_text())
    norms = [one["grad_norm"] for one in found["steps"] + found["taught"]]
    if not found["sharded"] or found["device"] != session.device or not all(x > 0 for x in norms):
        raise FailedError(f"not as asked for: {found}")
    return found


def smollm2(session: Session) -> dict[str, Any]:
    """The task's own recipe, with as many steps as fit, and its evaluations before and after."""
    if session.model is None:
        raise LeftOutError(session.results["task"]["left_out"])
    steps = 1 if session.short else steps_that_fit(session)
    changes = [f"max_steps={steps}", "logging_steps=1", "save_strategy=no", "report_to=none"]
    if session.short:
        changes += ["prompts_per_step=1", "micro_batch_size=8", "eval_problems=4"]
        changes.append("eval_samples=2")
    output = session.folder / "runs/smollm2"
    recipe = str(session.folder / "arithmetic/recipe.yaml")
    where = (f"runs={output.parent}", f"name={output.name}")
    session.run("smollm2", "-m", "prefix_rft.cli", "train", recipe, *where, *changes)
    evaluation = json.loads((output / "eval.json").read_text())
    keys = ("problems", "samples", "mean", "low", "high")
    table = {name: {k: evaluation[name][k] for k in keys} for name in ("base", "trained")}
    resolved = yaml.safe_load((output / "recipe.yaml").read_text())
    return {"steps": steps, "method": resolved["method"]["name"], "eval": table}


def steps_that_fit(session: Session) -> int:
    """Steps for which the seconds suffice, at the price of the step that was measured.

    The recipe's own have half the rows and half their length, so that they end earlier.
    """
    found = session.results["step"]
    if not found["ok"]:
        return 5
    seconds = found["flat_groups"]["0.0"]["variants"]["prefix_rft"]["seconds"]
    return max(2, min(STEPS, int(min(TRAINING, session.left / 2) / seconds)))


def task(session: Session) -> dict[str, Any]:
    """Write the arithmetic task with its model."""
    from prefix_rft.tasks.arithmetic import write

    try:
        find_gguf()
    except UserError as error:
        raise LeftOutError(str(error)) from error
    write(session.folder / "arithmetic", 400, 200, n_valid=20)
    return {"model": "SmolLM2-135M-Instruct"}


PARTS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "task": task,
    "tests": tests,
    "step": step,
    "memory": memory,
    "fsdp2": fsdp2,
    "smollm2": smollm2,
}


# ---- all of them --------------------------------------------------------------------------------


def attempt(session: Session, name: str) -> dict[str, Any]:
    """What a part found, or why not."""
    start = time.monotonic()
    try:
        found: dict[str, Any] = {"ok": True, **PARTS[name](session)}
    except LeftOutError as error:
        found = {"ok": False, "left_out": str(error)}
    except FailedError as error:
        found = {"ok": False, "failed": str(error)}
    return {"seconds": round(time.monotonic() - start, 1), **found}


def show(results: dict[str, Any]) -> None:
    """What a person wants to see first."""
    for name, found in results.items():
        reason = found.get("failed") or found.get("left_out") or ""
        state = "ok" if found["ok"] else "FAILED" if "failed" in found else "left out"
        print(f"{name}: {state}, {found['seconds']} s {reason}")
    if results["step"]["ok"]:
        for share, part in results["step"]["flat_groups"].items():
            for name, ratio in part["ratios"].items():
                print(f"  {name}, {share} of the groups flat: {ratio['seconds']['median']}")
    if results["memory"]["ok"]:
        print(f"  estimate / measured: {results['memory']['estimate / measured']}")
    if results["smollm2"]["ok"]:
        print(f"  {results['smollm2']['steps']} steps | mean | 95 % interval")
        for name, row in results["smollm2"]["eval"].items():
            print(f"  {name} | {row['mean']:.1%} | {row['low']:.1%} to {row['high']:.1%}")


def main(given: Sequence[str] | None = None) -> int:
    """Run all parts and write what they found; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="everything in small")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/gpu.json")
    args = parser.parse_args(given)
    # torch.cuda.is_available() does not start the device here.
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU: --device cpu --short tries everything in small")
    git, start = git_state(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        limit = ALL * (SLOWER if args.device == "cpu" else 1)
        session = Session(args.device, args.short, Path(folder), start + limit)
        for name in PARTS:
            session.results[name] = attempt(session, name)
    result = {
        "device": args.device,
        "short": args.short,
        "seconds": round(time.monotonic() - start, 1),
        "git": git,
        "machine": describe_machine(),
        "parts": session.results,
    }
    write_json(args.output, result)
    show(session.results)
    return int(any("failed" in found for found in session.results.values()))


if __name__ == "__main__":
    sys.exit(main())

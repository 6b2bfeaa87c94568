"""Peak memory of training and of sampling on a CPU, beside the estimate of ``prefix_rft.checks.device_memory``.

Each case is a fresh process with a random float32 model, AdamW and TRL's fused head: an optimizer
step of two micro-batches (so that moments and gradients exist), then two more micro-batches, whose
peak counts; after ``zero_grad``, rows are sampled to full length. One row of each micro-batch is
padded by one token, as in a real batch.

``measured`` adds up every tensor that torch's CPU allocator makes and frees, as the profiler
reports them: exact, and free of noise. ``rss`` is the largest resident memory of the process,
less that after imports: it includes what the allocator keeps and the work space of BLAS, and what
the profiler itself keeps would be in it, so it comes from a second process without profiler.

    python benchmarks/memory.py [--output benchmarks/memory.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from prefix_rft.checks.device_memory import count_parameters, estimate
from prefix_rft.engines.sampling import SamplingSettings, sample
from prefix_rft.runs.folder import describe_machine, git_state, write_json

SMALL = {"hidden_size": 384, "layers": 6, "heads": 6, "kv_heads": 3, "vocab_size": 8000}
DEEP = {"hidden_size": 512, "layers": 12, "heads": 8, "kv_heads": 2, "vocab_size": 32000}
WIDE = {"hidden_size": 768, "layers": 10, "heads": 12, "kv_heads": 4, "vocab_size": 50000}
SHORT = {"micro_batch_size": 4, "generation_rows": 16, "prompt_length": 64}
CASES: dict[str, dict[str, Any]] = {
    "qwen3 small": {**SMALL, **SHORT, "micro_batch_size": 8, "completion_length": 192},
    "qwen3 deep": {**DEEP, **SHORT, "completion_length": 192},
    "qwen3 wide": {**WIDE, **SHORT, "completion_length": 64},
    "qwen3 deep, checkpointing": {
        **DEEP, **SHORT, "completion_length": 448, "activation_checkpointing": True,
    },
    "llama deep, untied": {**DEEP, **SHORT, "completion_length": 192, "kind": "llama"},
}  # fmt: skip
ARGUMENTS = ("micro_batch_size", "generation_rows", "prompt_length", "completion_length")


def make_config(case: dict[str, Any]) -> Any:
    llama = case.get("kind") == "llama"
    return (LlamaConfig if llama else Qwen3Config)(
        vocab_size=case["vocab_size"],
        hidden_size=case["hidden_size"],
        intermediate_size=3 * case["hidden_size"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        num_key_value_heads=case["kv_heads"],
        head_dim=64,
        tie_word_embeddings=not llama,
    )


def resident(peak: bool) -> int:
    """Bytes of this process in memory, now or at most so far (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def measure(name: str, profiled: bool) -> dict[str, int]:
    """Bytes at the peak of both phases, by tensor if ``profiled``, else resident."""
    case = CASES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    phases: dict[str, tuple[int, int]] = {}
    if not profiled:
        start = resident(peak=False)
        run(case, lambda phase: phases.setdefault(phase, (resident(peak=True) - start, 0)))
        return {"whole run": phases["sampling end"][0]}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(case, lambda phase: torch.zeros(MARKS[phase], dtype=torch.uint8))
    return peaks(profiler)


MARKS = {"training": 1_000_003, "training end": 1_000_033, "sampling": 1_000_037}
MARKS["sampling end"] = 1_000_039
"""Sizes of tensors that mark a moment among the events of the profiler."""


def peaks(profiler: Any) -> dict[str, int]:
    """The most bytes alive between the marks."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    names = {size: phase for phase, size in MARKS.items()}
    alive, phase, found = 0, "", {}
    for event in events:
        alive += event.nbytes()
        if event.nbytes() in names:
            phase = names[event.nbytes()]
        found[phase] = max(found.get(phase, 0), alive)
    return {p: found[p] for p in ("training", "sampling")}


def run(case: dict[str, Any], mark: Callable[[str], object]) -> None:
    model = AutoModelForCausalLM.from_config(make_config(case))
    if case.get("activation_checkpointing"):
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    backward(model, case)
    backward(model, case)
    optimizer.step()
    optimizer.zero_grad()
    mark("training")
    backward(model, case)
    backward(model, case)
    optimizer.step()
    optimizer.zero_grad()
    mark("training end")
    model.eval()
    prompts = [[3] * (case["prompt_length"] - r % 2) for r in range(case["generation_rows"])]
    budgets = [case["completion_length"]] * len(prompts)
    mark("sampling")
    sample(model, prompts, budgets, SamplingSettings(eos_token_ids=(-1,), pad_token_id=0))
    mark("sampling end")


def backward(model: Any, case: dict[str, Any]) -> None:
    """What ``GRPOTrainer._get_per_token_logps_and_entropies`` and a policy loss do."""
    length = case["prompt_length"] + case["completion_length"]
    ids = torch.randint(0, case["vocab_size"], (case["micro_batch_size"], length))
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    labels = ids.clone()
    labels[:, : case["prompt_length"]] = -100
    out = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    ratio = torch.exp(out.log_probs - out.log_probs.detach())
    (-(ratio * torch.randn_like(ratio)).mean()).backward()


def compare(name: str) -> dict[str, Any]:
    case = CASES[name]
    config = make_config(case)
    parameters = count_parameters(config)
    guess = estimate(
        config,
        parameters=parameters,
        **{k: case[k] for k in ARGUMENTS},
        activation_checkpointing=case.get("activation_checkpointing", False),
        triton=False,
    )
    results = []
    for flag in ("--profiled", "--resident"):
        done = subprocess.run(
            [sys.executable, __file__, "--case", name, flag],
            capture_output=True,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    measured, rss = results
    estimated = {"training": guess.training, "sampling": guess.sampling}
    return {
        "case": case,
        "parameters": parameters,
        "estimate_parts": guess.parts,
        "estimate": estimated,
        "measured": measured,
        "ratio": {p: round(estimated[p] / measured[p], 3) for p in measured},
        "rss": rss["whole run"],
        "ratio_rss": round(guess.peak / rss["whole run"], 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Peak memory beside its estimate.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("memory.json"))
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if args.case:
        print(json.dumps(measure(args.case, args.profiled)))
        return
    results = {}
    for name in CASES:
        results[name] = compare(name)
        print(name, {k: results[name][k] for k in ("ratio", "ratio_rss")}, flush=True)
    write_json(
        args.output,
        {
            "command": "python benchmarks/memory.py",
            "machine": {**describe_machine(), "threads": 1},
            "git": git_state(),
            "cases": results,
        },
    )


if __name__ == "__main__":
    main()

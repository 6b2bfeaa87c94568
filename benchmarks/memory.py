"""Peak memory of training and sampling on a CPU, beside the estimate of ``checks.device_memory``.

Each case is a fresh process. Those of random float32 models use AdamW and TRL's fused head on whole
rows: an optimizer step of two micro-batches (so that moments and gradients exist), then two more
micro-batches, whose peak counts; after ``zero_grad``, rows are sampled to full length. One row of
each micro-batch is padded by one token, as in a real batch. Those of ``--model``, SmolLM2, are two
steps of ``PrefixRFTTrainer`` on packed rows, the work of ``step.py``.

``measured`` adds up every tensor that torch's CPU allocator makes and frees, as the profiler
reports them: exact, and free of noise. ``rss`` is the largest resident memory of the process,
less that after imports: it includes what the allocator keeps and the work space of BLAS, and what
the profiler itself keeps would be in it, so it comes from a second process without profiler.

    python benchmarks/memory.py [--model data/arithmetic/model] [--output benchmarks/memory.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import torch
import transformers
from step_work import GROUP, Clock, Work, make_trainer
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen3Config
from trl.trainer.utils import add_fused_lm_head

from prefix_rft.checks.device_memory import count_parameters, estimate, has_head_norms
from prefix_rft.engines.sampling import SamplingSettings, sample
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.writing import write_json

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
TRAINED: dict[str, dict[str, Any]] = {
    "smollm2, bf16": {
        "bf16": True, "prompts": 2, "micro_batch": 8,
        "prompt_tokens": 70, "completion_tokens": 72,
    },
    "smollm2, float32, one micro-batch": {
        "bf16": False, "prompts": 2, "micro_batch": 16,
        "prompt_tokens": 150, "completion_tokens": 40,
    },
}  # fmt: skip
"""Cases of ``--model``, as ``step_work.Work`` has them."""


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


def measure(name: str, model: str | None, profiled: bool) -> dict[str, int]:
    """Bytes at the peak of both phases, by tensor if ``profiled``, else resident."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def work(mark: Callable[[str], object]) -> None:
        if name in CASES:
            run(CASES[name], mark)
        else:
            assert model is not None
            train(Work(model=model, steps=1, settings=(0.0,), **TRAINED[name]), mark)

    if not profiled:
        start, end = resident(peak=False), [0]
        work(lambda phase: end.append(resident(peak=True)))
        return {"whole run": max(end) - start}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work(lambda phase: torch.zeros(MARKS[phase], dtype=torch.uint8))
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


def train(work: Work, mark: Callable[[str], object]) -> None:
    """Two steps of our trainer; the first has no moments yet, so the peaks are the second's."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer("prefix_rft", work, folder, Clock("cpu"))
        draw = trainer._generate_single_turn

        def drawn(*args: Any, **kwargs: Any) -> Any:
            mark("sampling")
            found = draw(*args, **kwargs)
            mark("training")
            return found

        trainer._generate_single_turn = drawn
        trainer.train()
        mark("training end")


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


def estimated(name: str, model: str | None) -> tuple[int, Any]:
    """Parameters and estimate of a case."""
    if name in CASES:
        case = CASES[name]
        config = make_config(case)
        sizes = {k: case[k] for k in ARGUMENTS}
        sizes["activation_checkpointing"] = case.get("activation_checkpointing", False)
    else:
        case = TRAINED[name]
        assert model is not None
        config = AutoConfig.from_pretrained(model)
        sizes = {k: case[f"{k.partition('_')[0]}_tokens"] for k in ARGUMENTS[2:]}
        sizes |= {"micro_batch_size": case["micro_batch"], "packed": GROUP}
        sizes |= {"generation_rows": GROUP * case["prompts"]}
        sizes["accumulates"] = sizes["generation_rows"] > case["micro_batch"]
        sizes["compute_bytes"] = 2 if case["bf16"] else 4
    parameters = count_parameters(config)
    norms = has_head_norms(config)
    return parameters, estimate(
        config, parameters=parameters, triton=False, head_norms=norms, **sizes
    )


def compare(name: str, model: str | None) -> dict[str, Any]:
    """Both measurements of a case beside its estimate."""
    parameters, guess = estimated(name, model)
    results = []
    for flag in ("--profiled", "--resident"):
        command = [sys.executable, __file__, "--case", name, flag]
        done = subprocess.run(
            [*command, *(["--model", model] if model else [])],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    measured, rss = results
    phases = {"training": guess.training, "sampling": guess.sampling}
    return {
        "case": CASES.get(name) or TRAINED[name],
        "parameters": parameters,
        "estimate_parts": guess.parts,
        "estimate": phases,
        "measured": measured,
        "ratio": {p: round(phases[p] / measured[p], 3) for p in measured},
        "rss": rss["whole run"],
        "ratio_rss": round(guess.peak / rss["whole run"], 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Peak memory beside its estimate.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("memory.json"))
    parser.add_argument("--model", help="the folder of SmolLM2; its cases are left out without")
    parser.add_argument("--case", choices=[*CASES, *TRAINED], help=argparse.SUPPRESS)
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    if args.case:
        print(json.dumps(measure(args.case, args.model, args.profiled)))
        return
    results = {}
    for name in [*CASES, *(TRAINED if args.model else ())]:
        results[name] = compare(name, args.model)
        print(name, {k: results[name][k] for k in ("ratio", "ratio_rss")}, flush=True)
    write_json(
        args.output,
        {
            "command": "python benchmarks/memory.py --model data/arithmetic/model",
            "machine": {**describe_machine(), "threads": 1},
            "git": git_state(),
            "cases": results,
        },
    )


if __name__ == "__main__":
    main()

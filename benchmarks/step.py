r"""Time of a training step: stock TRL, our Dr. GRPO with each saving and without, our Prefix-RFT.

The same for all: model, prompts, rewards, micro-batches, optimizer, and the length of every
completion. Each variant really samples; rows end at their budget, because what ends a row is an id
that no logit stands for. A hybrid row of Prefix-RFT is as long as the others, prefix included.
Rewards are given by step and place, so that either no group is flat (all its rewards the same), or
exactly half of the groups are.

Not the same: which tokens are drawn (samplers draw in different order); and stock TRL samples with
``model.generate``. With all rows of one length stock TRL pays nothing for padding, and no row waits
for the longest one: of all distributions of lengths this is the kindest to it.

Stock TRL is GRPOTrainer with ``loss_type="dr_grpo"``, ``scale_rewards="none"`` and activation
checkpointing off; all else is its default. Sampling is the time in ``_generate_single_turn``, the
update all the rest of the step: rewards, losses, gradients, optimizer, metrics.

In each round all variants take turns, another one first in each, and ratios are of one round. Every
measurement is a fresh process. Seconds are CPU time of the process on a CPU, and of the clock on a
GPU. FLOPs of the update are 6 for each token and weight of the layers and for each scored token and
weight of the vocabulary head; attention and what is computed again are left out. They stand beside
the rate of a square product of matrices in the same precision, measured in the same process.

    python benchmarks/step.py [--rounds 5] [--steps 3] [--sweep]
    python benchmarks/step.py --model data/arithmetic/model --bf16 --prompts 8 --micro-batch 8 \
        --prompt-tokens 70 --completion-tokens 72 --steps 1 --warmup 0 --rounds 3 \
        --partial-rounds 1 --output benchmarks/step_smollm2.json
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from step_work import GROUP, VARIANTS, Work, in_a_fresh_process

from prefix_rft.checks.precision import multiplies_bf16
from prefix_rft.runs.machine import describe_machine, git_state
from prefix_rft.support.writing import write_json

HERE = Path(__file__).parent
BASE = "dr_grpo"
"""What ratios are to."""
WHOLE = ("trl", BASE, "prefix_rft")
"""The variants in which no saving is switched off."""
PHASES = ("seconds", "sampling_seconds", "update_seconds")
SWEEP: dict[str, tuple[int, ...]] = {
    "completion_tokens": (32, 64, 128, 256),
    "prompts": (2, 4, 8),
    "vocabulary": (256, 4096, 32768),
}
MIDDLE = {"completion_tokens": 64, "prompts": 4, "vocabulary": 256, "micro_batch": 8}
"""From which the sweep goes one way at a time."""

BOUNDS = (
    ("stock TRL, no group flat: at least 2.00", "0.0", "trl", 2.0, True),
    ("stock TRL, half of the groups flat: at least 3.00", "0.5", "trl", 3.0, True),
    ("Prefix-RFT, no group flat: at most 1.00", "0.0", "prefix_rft", 1.0, False),
    ("Prefix-RFT, half of the groups flat: at most 1.00", "0.5", "prefix_rft", 1.0, False),
)
"""Of a step beside ours: words, share of flat groups, variant, bound, and whether it is a least."""

Round = Mapping[str, Mapping[str, Any]]
"""What was measured of each variant."""


def take_turns(work: Work, variants: Sequence[str], rounds: int, partial: int) -> Iterator[Round]:
    """All rounds; of variants with a saving off the last ``partial`` alone."""
    for number in range(rounds):
        now = [v for v in variants if v in WHOLE or number >= rounds - partial]
        first = number % len(now)
        found = {}
        for variant in [*now[first:], *now[:first]]:
            found[variant] = in_a_fresh_process(variant, work)
            settings = found[variant]["settings"].items()
            shown = ", ".join(f"{x['seconds']:.4g} s with {share} flat" for share, x in settings)
            print(f"round {number + 1}, {variant}: {shown}", flush=True)
        yield {v: found[v] for v in now}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest, and of how many rounds."""
    named = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**{name: round(value, 3) for name, value in named.items()}, "rounds": len(values)}


def summary(work: Work, rounds: Sequence[Round]) -> dict[str, Any]:
    """For each share of flat groups: ratios to ours in one round, and medians of the rest."""
    result = {}
    for share in map(str, work.settings):
        ratios, variants = {}, {}
        for variant in (v for v in VARIANTS if any(v in r for r in rounds)):
            there = [r for r in rounds if variant in r]
            own, base = ([r[v]["settings"][share] for r in there] for v in (variant, BASE))
            if variant != BASE:
                ratios[f"{variant} / {BASE}"] = {
                    phase: spread([a[phase] / b[phase] for a, b in zip(own, base, strict=True)])
                    for phase in PHASES
                }
            variants[variant] = of_variant(work, own, [r[variant] for r in there])
        result[share] = {"ratios": ratios, "variants": variants}
    return result


def of_variant(
    work: Work, steps: Sequence[Mapping[str, float]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Medians over the rounds."""

    def median(values: Any) -> float:
        return float(f"{statistics.median(values):.4g}")

    drawn = work.rows * work.completion_tokens
    rates = [s["update_flop"] / s["update_seconds"] for s in steps]
    return {
        **{name: median(s[name] for s in steps) for name in steps[0]},
        "completion_tokens_per_second": median(drawn / s["seconds"] for s in steps),
        "update_flop_per_second": median(rates),
        "of_matrix_rate": median(r / x["matrix_rate"] for r, x in zip(rates, runs, strict=True)),
    }


def as_result(work: Work, rounds: Sequence[Round], git: Any) -> dict[str, Any]:
    """What is written of the rounds so far."""
    measured = [(v, x) for r in rounds for v, x in r.items()]
    peaks = {v: [x["peak_bytes"] for name, x in measured if name == v] for v, _ in measured}
    return {
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "git": git,
        "rounds": len(rounds),
        "work": asdict(work),
        "parameters": measured[0][1]["parameters"],
        "clock": "CPU time of the process" if work.device == "cpu" else "wall, synchronised",
        "matrix_flop_per_second": statistics.median(x["matrix_rate"] for _, x in measured),
        "peak_GB": {v: round(statistics.median(p) / 1e9, 2) for v, p in peaks.items()},
        "flat_groups": summary(work, rounds),
    }


def sweep(base: Work) -> dict[str, Any]:
    """Seconds of stock TRL and of ours, one size at a time."""
    result: dict[str, Any] = {}
    variants = ("trl", BASE)
    known: dict[Work, dict[str, Any]] = {}
    for name, sizes in SWEEP.items():
        for size in sizes:
            sized: dict[str, Any] = {**MIDDLE, name: size}
            work = replace(base, settings=(0.0,), steps=2, **sized)
            if work not in known:
                found = {v: in_a_fresh_process(v, work)["settings"]["0.0"] for v in variants}
                known[work] = {v: {p: round(x[p], 4) for p in PHASES} for v, x in found.items()}
                trl, ours = (known[work][v]["seconds"] for v in variants)
                known[work]["trl / dr_grpo"] = round(trl / ours, 2)
                print(f"{name} {size}: trl {trl:.3g}, {BASE} {ours:.3g}", flush=True)
            result.setdefault(name, {})[str(size)] = known[work]
    return {"middle": MIDDLE, "steps": 2, "sizes": result}


def as_table(result: Mapping[str, Any]) -> str:
    """Rows of a page: ratios of a step to ours at each share of flat groups, and its parts.

    Seconds, tokens and the rate are those without a flat group.
    """
    none, half = (result["flat_groups"][share] for share in ("0.0", "0.5"))
    rows = []
    for variant, own in none["variants"].items():
        cells = [variant]
        for part in (none, half):
            ratio = part["ratios"].get(f"{variant} / {BASE}", {}).get("seconds")
            if ratio is None:
                cells.append("1")
                continue
            between = f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
            cells.append(f"{ratio['median']:.2f}" + between * (ratio["rounds"] > 1))
        cells += [f"{own[f'{phase}_seconds']:.3g}" for phase in ("sampling", "update")]
        cells += [f"{own['completion_tokens_per_second']:,.0f}", f"{own['of_matrix_rate']:.0%}"]
        cells.append(f"{result['peak_GB'][variant]:.1f}")
        rows.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def as_bounds_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a page: each bound, and the medians of these results with whether they keep it."""
    rows = []
    for words, share, variant, bound, least in BOUNDS:
        cells = [words]
        for result in results:
            ratios = result["flat_groups"][share]["ratios"]
            median = ratios[f"{variant} / {BASE}"]["seconds"]["median"]
            kept = median >= bound if least else median <= bound
            cells.append(f"{median:.3f}, {'kept' if kept else 'missed'}")
        rows.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def as_sweep_table(result: Mapping[str, Any]) -> str:
    """Rows of a page: seconds of both, and their ratio, for each size."""
    rows = []
    for name, sizes in result["sweep"]["sizes"].items():
        for size, found in sizes.items():
            seconds = [f"{found[variant]['seconds']:.3g}" for variant in ("trl", BASE)]
            ratio = f"{found[f'trl / {BASE}']:.2f}"
            rows.append([f"{name.replace('_', ' ')} {int(size):,}", *seconds, ratio])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def read_arguments() -> argparse.Namespace:
    """The command line; sizes are those of :class:`Work` unless they are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--partial-rounds", type=int, help="rounds in which savings are switched off"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--sweep", action="store_true", help="also other sizes of the toy")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--model", help="a Hugging Face folder; by default a toy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=HERE / "step.json")
    for name in ("prompts", "prompt_tokens", "completion_tokens", "micro_batch"):
        default = getattr(Work, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=Work.steps, help="timed, at each setting")
    parser.add_argument("--warmup", type=int, default=Work.warmup)
    args = parser.parse_args()
    if BASE not in args.variants:
        parser.error(f"--variants needs {BASE}, to which the ratios are")
    if args.rounds < 1 or (args.partial_rounds is not None and args.partial_rounds < 1):
        parser.error("--rounds and --partial-rounds are at least 1")
    if args.prompts * GROUP % args.micro_batch:
        parser.error("--micro-batch must divide the rows of a step, 8 for each prompt")
    if args.prompts % 2:
        parser.error("--prompts must be even, since half of the groups are to be flat")
    if args.sweep and args.model:
        parser.error("--sweep changes the toy's vocabulary: leave --model out")
    return args


def main() -> None:
    """Measure, print and write."""
    args = read_arguments()
    if args.device == "cpu":
        torch.set_num_threads(1)
    names = ("prompts", "prompt_tokens", "completion_tokens", "micro_batch", "steps", "warmup")
    sizes = {name: getattr(args, name) for name in names}
    work = Work(model=args.model, bf16=args.bf16, device=args.device, **sizes)
    git = git_state()  # of the code that runs, and not of what is committed meanwhile
    partial = args.rounds if args.partial_rounds is None else args.partial_rounds
    rounds: list[Round] = []
    result: dict[str, Any] = {}
    for found in take_turns(work, args.variants, args.rounds, partial):
        rounds.append(found)
        result = as_result(work, rounds, git)
        write_json(args.output, result)  # what there is, should the rest not come
    if args.sweep:
        result["sweep"] = sweep(work)
    # Asking for a device's name starts it, which a process that forks must not.
    result["machine"] = {**describe_machine(), "multiplies_bf16": multiplies_bf16()}
    write_json(args.output, result)
    for share, part in result["flat_groups"].items():
        for name, phases in part["ratios"].items():
            step = phases["seconds"]
            print(f"{share} flat, {name}: {step['median']} ({step['min']} to {step['max']})")


if __name__ == "__main__":
    main()

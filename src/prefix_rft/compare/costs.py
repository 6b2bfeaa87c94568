"""What a run has cost: tokens, floating-point operations, time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open

METRICS = {
    "sampled": "tokens/sampled",
    "prefilled": "tokens/prefilled",
    "forward": "tokens/forward",
    "trained": "tokens/trained",
}


@dataclass(frozen=True)
class Costs:
    """Of one run, or of several added up.

    Attributes:
        sampled: tokens that the policy drew.
        prefilled: prompt and prefix tokens read before drawing.
        forward: tokens through forwards without a gradient.
        trained: tokens through forward and backward.
        flops: ``2 N`` for each of the first three kinds and ``6 N`` for the last (Kaplan et al.,
            arXiv 2001.08361, section 2.1), where N counts all parameters but the input embedding;
            attention to the context and grading are left out.
        seconds: the seconds of training on the clock; of an interrupted run, since it last went on.
    """

    sampled: float = 0.0
    prefilled: float = 0.0
    forward: float = 0.0
    trained: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        names = [f.name for f in fields(self)]
        return Costs(*(getattr(self, n) + getattr(other, n) for n in names))


def costs_of(metrics: Iterable[Mapping[str, Any]], parameters: int, seconds: float) -> Costs:
    """The costs behind the lines of ``metrics.jsonl``, whose counts are means over the optimizer
    steps since the line before. Of a step that an interrupted run has done twice, the last counts.
    """
    by_step = {x["step"]: x for x in metrics if any(key in x for key in METRICS.values())}
    sums = dict.fromkeys(METRICS, 0.0)
    last = 0
    for step, line in sorted(by_step.items()):
        for name, key in METRICS.items():
            sums[name] += (step - last) * (line.get(key) or 0.0)
        last = step
    read = sums["sampled"] + sums["prefilled"] + sums["forward"]
    flops = 2.0 * parameters * read + 6.0 * parameters * sums["trained"]
    return Costs(**sums, flops=flops, seconds=seconds)


def computing_parameters(model: Path) -> int:
    """Parameters of a saved model without its input embedding, unless that is its head too."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tied = bool(config.get("tie_word_embeddings"))
    total = 0
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if "embed_tokens" in name and not tied:
                    continue
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                total += size
    return total

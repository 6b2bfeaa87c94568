"""What a run has cost: tokens, floating-point operations, time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.models import load_configs, without_weights

INPUT = "embed_tokens"
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
        collected: tokens drawn for own answers before training, which are none of ``sampled``; the
            prompts that were read for them are among ``prefilled``.
        flops: ``6 N`` for each trained token and ``2 N`` for each of another kind (Kaplan et al.,
            arXiv 2001.08361, section 2.1), where N counts all parameters but the input embedding;
            ``4 N + 2 T`` for a trained one with an adapter, of whose T weights alone gradients are
            computed; attention to the context and grading are left out.
        seconds: the seconds of training on the clock; of an interrupted run, since it last went on.
    """

    sampled: float = 0.0
    prefilled: float = 0.0
    forward: float = 0.0
    trained: float = 0.0
    collected: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        names = [f.name for f in fields(self)]
        return Costs(*(getattr(self, n) + getattr(other, n) for n in names))


class Parameters(NamedTuple):
    """How many weights compute, the input embedding left out, and how many of them are trained."""

    computing: int
    trained: int


def costs_of(metrics: Iterable[Mapping[str, Any]], parameters: Parameters, seconds: float) -> Costs:
    """The costs behind the lines of ``metrics.jsonl``, whose counts are means over the optimizer
    steps since the line before. Of a step that an interrupted run has done twice, the last counts.

    Args:
        metrics: the lines of a run.
        parameters: the weights of its model.
        seconds: how long it has trained.
    """
    by_step = {x["step"]: x for x in metrics if any(key in x for key in METRICS.values())}
    sums = dict.fromkeys(METRICS, 0.0)
    last = 0
    for step, line in sorted(by_step.items()):
        for name, key in METRICS.items():
            sums[name] += (step - last) * (line.get(key) or 0.0)
        last = step
    read = sums["sampled"] + sums["prefilled"] + sums["forward"]
    computing, trained = parameters
    flops = 2.0 * computing * read + (4.0 * computing + 2.0 * trained) * sums["trained"]
    return Costs(**sums, flops=flops, seconds=seconds)


def collecting_costs(sampled: int, prefilled: int, weights: int, seconds: float) -> Costs:
    """The costs of a collection of own answers, right and wrong ones.

    Args:
        sampled: tokens that were drawn.
        prefilled: prompt tokens that were read.
        weights: the weights of the model that compute.
        seconds: how long it took.
    """
    return Costs(
        collected=sampled,
        prefilled=prefilled,
        flops=2.0 * weights * (sampled + prefilled),
        seconds=seconds,
    )


def computing_weights(source: str) -> int:
    """How many weights of a model compute, the input embedding left out.

    Args:
        source: a folder or a Hub name, of a model or of an adapter.

    Raises:
        UserError: there is no such model, or of a kind that cannot be counted.
    """
    adapter = find_adapter(source)
    folder = Path(source) if adapter is None else adapter.folder
    if folder.is_dir():
        return parameters_of(folder).computing
    return _of_config(load_configs(source)[0])


def parameters_of(model: Path) -> Parameters:
    """The weights of a saved model, or of a saved adapter and its base.

    Args:
        model: the folder of a model or an adapter.

    Raises:
        UserError: the base of an adapter is not there, or of a kind that cannot be counted.
    """
    if find_adapter(str(model)) is None:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        stored = stored_weights(model, without=None if config.get("tie_word_embeddings") else INPUT)
        return Parameters(stored, stored)
    trained = stored_weights(model)
    return Parameters(_of_config(load_configs(str(model))[0]) + trained, trained)


def _of_config(config: Any) -> int:
    """The weights that compute of a model of this config."""
    model = without_weights(config)
    tied = model.config.tie_word_embeddings
    aside = 0 if tied else model.get_input_embeddings().weight.numel()
    return sum(weight.numel() for weight in model.parameters()) - aside


def stored_weights(folder: Path, without: str | None = None) -> int:
    """How many weights the safetensors files of a folder hold.

    Args:
        folder: the folder of a model or an adapter.
        without: weights with this in their names are not counted.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                if without is not None and without in name:
                    continue
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                total += size
    return total

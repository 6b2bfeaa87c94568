"""Runs of PrefixRFTTrainer with a vLLM engine, and all that passed between the two."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prefix_rft import PrefixRFTTrainer
from prefix_rft.engines.plan import RowPlan
from tiny import make_config, make_rows, make_tokenizer, shaped_reward

BUDGET = 24


@dataclass
class Watched:
    """A trainer, and its generations in order.

    Attributes:
        trainer: the trainer.
        asked: arguments of each call into the engine, and what it answered.
        plans: what was to be sampled, attempt by attempt.
        made: the examples of each generation, and the rows that were made of them.
    """

    trainer: Any
    asked: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    plans: list[list[RowPlan]] = field(default_factory=list)
    made: list[tuple[list[dict[str, Any]], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        engine, trainer = self.trainer.vllm_generation, self.trainer
        generate, score = engine.generate, trainer._generate_and_score_completions
        sampled = trainer._sampled

        def hear(**kwargs: Any) -> Any:
            answer = generate(**kwargs)
            self.asked.append((kwargs | {"max_tokens": engine.max_completion_length}, answer))
            return answer

        def see(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            rows = score(inputs)
            if trainer.model.training:
                self.made.append((inputs, rows))
            return rows

        engine.generate, trainer._generate_and_score_completions = hear, see
        trainer._sampled = lambda inputs, plans: (
            self.plans.append(plans),
            sampled(inputs, plans),
        )[1]


def colocated(
    folder: Path,
    model: str,
    length: int | None = 128,
    *,
    reward: Any = shaped_reward,
    tokenizer: Any = None,
    **settings: Any,
) -> Watched:
    """A trainer of two groups of eight, in float32, beside an engine of one context length."""
    defaults = {"max_steps": 3, "max_completion_length": BUDGET, "vllm_max_model_length": length}
    defaults |= {"use_vllm": True, "vllm_mode": "colocate", "per_device_eval_batch_size": 16}
    trainer = PrefixRFTTrainer(
        model,
        reward,
        make_config(folder, **defaults | settings),
        train_dataset=make_rows(),
        eval_dataset=make_rows(4, seed=5),
        processing_class=tokenizer or make_tokenizer(),
    )
    return Watched(trainer)


def distance(rows: dict[str, Any]) -> float:
    """The largest distance, in nats, of the sampler's log-prob of a token from the trainer's."""
    known = rows["prefix_mask"] | rows["demo_mask"]
    assert rows["sampling_per_token_logps"][known & rows["completion_mask"].bool()].isnan().all()
    drawn = rows["completion_mask"].bool() & ~known & ~rows["row_imitation"][:, None]
    gap = (rows["old_per_token_logps"] - rows["sampling_per_token_logps"])[drawn].abs()
    assert not gap.isnan().any()
    return gap.max().item() if len(gap) else 0.0


def even_wrong(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """A reward that fails whole groups, and others not."""
    return [(int(a) % 2) * len(c) / BUDGET for c, a in zip(completions, answer, strict=True)]


def launch(folder: Path, model: str, method: str, *server: str) -> list[dict[str, Any]]:
    """The records of two gloo processes that run ``vllm_process.py``.

    Args:
        folder: where they write.
        model: the folder of the model.
        method: the method.
        server: the address of the server that both ask; by default each has an engine.
    """
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*run, str(here / "vllm_process.py"), str(folder), model, method, *server],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

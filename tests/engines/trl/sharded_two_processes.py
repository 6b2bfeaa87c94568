"""Run by a test in two gloo processes: short runs with weights that FSDP2 shards, as accelerate
launches them, each also from its checkpoint.

Usage: sharded_two_processes.py FOLDER CASE...
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from second.step import trl_run
from sharded import launched, shard_on_a_cpu
from tiny import make_imitation_config, make_tokenizer

TEMPLATE = "a:{context};{prompt}"
STEPS, SAVED = 3, 2
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": STEPS,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": SAVED,
}


def full(x: Any) -> Any:
    """A tensor of all processes' parts."""
    return getattr(x, "full_tensor", lambda: x)().detach().clone()


class Gathering(trl_run.Recorder):
    """Keeps weights and gradients of all processes."""

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().on_pre_optimizer_step(*args, **kwargs)
        record = self.records[-1]
        record.weights = {n: full(w) for n, w in record.weights.items()}
        record.gradient = [full(g) for g in record.gradient]


def rows() -> Any:
    return trl_run.make_rewards(("mixed",) * 8, missing=(1, 3))


def start(case: str, folder: Path) -> tuple[Any, Gathering]:
    recorder = Gathering()
    if case == "iw_sft":
        trainer: Any = DemonstrationTrainer(
            trl_run.sharp_model(),
            make_imitation_config(
                folder, method=case, max_grad_norm=0.0, lr_scheduler_type="constant", **COMMON
            ),
            train_dataset=rows(),
            processing_class=make_tokenizer(),
            callbacks=[recorder],
        )
        recorder.watch(trainer, "compute_loss")
        return trainer, recorder
    teacher = {"weights": case, "context": "demonstration", "template": TEMPLATE}
    teacher |= {"snapshot": {"every": 2}, "ema": {"rate": 0.25}}.get(case, {})
    options = {"teacher": teacher}
    trainer, _ = trl_run.start(
        PrefixRFTTrainer, folder, "opd", rows(), options=options, callbacks=[recorder], **COMMON
    )
    recorder.watch(trainer)
    return trainer, recorder


def run(case: str, folder: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    trainer, recorder = start(case, folder)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    kept = trainer.own_state.teachers.get("teacher") or trainer.reference
    return {
        "rank": trainer.accelerator.process_index,
        "records": [r.plain() for r in recorder.records],
        "weights": {n: full(p) for n, p in trainer.policy.named_parameters()},
        "kept": {n: w.clone() for n, w in kept.weights.items()},
        "kinds": sorted({type(p).__name__ for p in trainer.policy.parameters()}),
    }


def main(folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(launched())
    shard_on_a_cpu()
    found: dict[str, Any] = {}
    for case in cases:
        found[case] = run(case, folder / case)
        checkpoint = folder / case / f"checkpoint-{SAVED}"
        found[f"{case}-again"] = run(case, folder / f"{case}-again", checkpoint)
    torch.save(found, folder / f"rank{found[cases[0]]['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""The trainer of reward models: TRL's, with the losses of ``core.pairs``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from prefix_rft.core.pairs import held, pair_loss, told_apart
from prefix_rft.recipe.recipe import recompute_key
from prefix_rft.recipe.reward_options import RewardLearning

CHOSEN, REJECTED = "chosen_ids", "rejected_ids"
"""Columns of pairs, as TRL calls them: prompt and completion as ids."""
POINTS = 50
"""Lines that a stage's training leaves in its record, at most about."""


class PairTrainer(RewardTrainer):
    """TRL's trainer of reward models, with the losses of ``core.pairs``.

    Args:
        options: the recipe's ``reward_learning``.
        arguments: those of ``RewardTrainer``.
    """

    def __init__(self, options: RewardLearning, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.options = options
        self.seen: list[tuple[float, float]] = []
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch of pairs, demonstrations first."""
        ids_NT, mask_NT = inputs["input_ids"], inputs["attention_mask"]
        outputs = model(input_ids=ids_NT, attention_mask=mask_NT)
        value_NT = held(outputs.logits.squeeze(-1).float(), mask_NT)
        chosen_BT, rejected_BT = value_NT.chunk(2)
        (chosen_ids, rejected_ids), (chosen, rejected) = ids_NT.chunk(2), mask_NT.chunk(2)
        last_B = chosen_BT[:, -1], rejected_BT[:, -1]
        counted_BT = told_apart(chosen_ids, chosen, rejected_ids, rejected)
        if self.options.level == "last":
            chosen_BT, rejected_BT = (x[:, None] for x in last_B)
            counted_BT = torch.ones_like(chosen_BT, dtype=torch.bool)
        rest = self.options.loss, self.options.regulariser
        loss = pair_loss(chosen_BT, rejected_BT, counted_BT, *rest)
        margin_B: Any = self.accelerator.gather_for_metrics((last_B[0] - last_B[1]).detach())
        self.seen += [((margin_B > 0).float().mean().item(), margin_B.mean().item())]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the share of pairs in the right order and their margin, under TRL's names."""
        if self.seen:
            accuracy, margin = (sum(xs) / len(xs) for xs in zip(*self.seen, strict=True))
            logs |= {"accuracy": accuracy, "margin": margin}
        self.seen = []
        super().log(logs, start_time)


def train_reward_model(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[list[int], list[int]]],
    options: RewardLearning,
    args: Any,
    folder: Path,
    micro_batch: int,
) -> list[dict[str, float]]:
    """Train a reward model on pairs and save it; every process of the run is to call this.

    Args:
        model: the reward model.
        tokenizer: its tokenizer.
        pairs: ids of a demonstration and of a sample, each behind its prompt.
        options: the recipe's ``reward_learning``.
        args: the configuration of the policy's trainer, whose seed and precision this one has.
        folder: where the model is put, once it is whole.
        micro_batch: pairs in one forward on one process, at most.

    Returns:
        Lines of the log: step, loss, learning rate, share in the right order, margin.
    """
    making = folder.with_name(folder.name + ".making")
    processes = int(args.world_size)
    own = -(-options.batch_size // processes)
    size = next(s for s in range(min(own, micro_batch), 0, -1) if own % s == 0)
    columns = {CHOSEN: [a for a, _ in pairs], REJECTED: [b for _, b in pairs]}
    recompute = recompute_key(type(args).__dataclass_fields__)
    steps = options.steps or -(-len(pairs) // (own * processes))
    config = RewardConfig(
        output_dir=str(making),
        max_steps=steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=own // size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        logging_steps=max(1, steps // POINTS),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        seed=args.seed,
        bf16=args.bf16,
        fp16=args.fp16,
        use_cpu=args.use_cpu,
        remove_unused_columns=False,
        **{recompute: getattr(args, recompute)},
    )
    trainer = PairTrainer(
        options,
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(making)
        tokenizer.save_pretrained(making)
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)
    trainer.accelerator.wait_for_everyone()
    return [line for line in trainer.state.log_history if "loss" in line]

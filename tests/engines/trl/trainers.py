"""Small trainers of rollouts and of demonstrations, whose settings a test may replace."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefix_rft import DemonstrationTrainer, PrefixRFTTrainer
from tiny import (
    make_config,
    make_imitation_config,
    make_model,
    make_rows,
    make_tokenizer,
    shaped_reward,
)


def rollout_trainer(
    folder: Path,
    rows: int = 32,
    *,
    eval_rows: int = 0,
    reward: Any = shaped_reward,
    callbacks: Sequence[Any] = (),
    **settings: Any,
) -> PrefixRFTTrainer:
    """Four rows in a micro-batch."""
    return PrefixRFTTrainer(
        make_model(make_tokenizer()),
        reward,
        make_config(folder, **{"per_device_train_batch_size": 4, **settings}),
        train_dataset=make_rows(rows),
        eval_dataset=make_rows(eval_rows, seed=9) if eval_rows else None,
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )


def imitation_trainer(
    folder: Path,
    *,
    eval_rows: int = 0,
    callbacks: Sequence[Any] = (),
    optimizers: Any = (None, None),
    **settings: Any,
) -> DemonstrationTrainer:
    """Two micro-batches of 3 a step, 14 rows."""
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    return DemonstrationTrainer(
        make_model(make_tokenizer()),
        make_imitation_config(folder, **{**sizes, **settings}),
        train_dataset=make_rows(14),
        eval_dataset=make_rows(eval_rows, seed=9) if eval_rows else None,
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
        optimizers=optimizers,
    )

"""The dataset of a trainer of rollouts, with its demonstrations as token ids."""

from __future__ import annotations

from typing import Any

from prefix_rft.data import DataError, tokenize_demonstrations
from prefix_rft.data.render import Renderer
from prefix_rft.engines.trl.clock import template_kwargs


def set_renderer(trainer: Any) -> None:
    """Set the trainer's ``renderer``, and the chat template that TRL renders prompts with."""
    kwargs = template_kwargs(trainer.args, trainer._tokenizer)
    trainer.renderer = Renderer(trainer._tokenizer, tuple(trainer.eos_token_ids), kwargs)
    trainer.chat_template = kwargs.get("chat_template", trainer.chat_template)


def tokenize_dataset(trainer: Any) -> None:
    """Set the trainer's ``renderer``, ``demonstrations`` and ``train_dataset``.

    Raises:
        DataError: the dataset is smaller than a generation, or lacks what the method needs.
    """
    args, method = trainer.args, trainer.method
    set_renderer(trainer)
    with trainer.accelerator.main_process_first():
        trainer.train_dataset, trainer.demonstrations = tokenize_demonstrations(
            trainer.train_dataset,
            trainer.processing_class,
            trainer.max_completion_length,
            args.demonstration_column,
            trainer.renderer,
        )
    report = trainer.demonstrations
    prompts = args.generation_batch_size // trainer.num_generations
    if report is not None and report.rows < prompts:
        raise DataError(
            f"the dataset has {report.rows} rows, but one generation takes {prompts} prompts: "
            "nothing would be trained; lower the batch"
        )
    if report is not None and method.needs_demonstrations and not report.demonstrations:
        column = args.demonstration_column
        dropped = f" ({report.drops})" if report.dropped else ""
        raise DataError(
            f"method '{method.name}' needs demonstrations, but no row has one in column "
            f"'{column}'{dropped}; name the column with demonstration_column, or use dr_grpo"
        )

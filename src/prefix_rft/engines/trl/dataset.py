"""The dataset of a trainer of rollouts, with its demonstrations as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from prefix_rft.data import DataError, tokenize_demonstrations
from prefix_rft.data.render import Renderer
from prefix_rft.engines.positions import refuse_too_long


def tokenize_dataset(trainer: Any) -> None:
    """Set the trainer's ``renderer``, ``demonstrations`` and ``train_dataset``.

    Raises:
        DataError: the dataset is smaller than a generation, or lacks what the method needs.
        UserError: a prompt and its completion are too long for the model.
    """
    args, method = trainer.args, trainer.method
    eos = tuple(trainer.eos_token_ids)
    trainer.renderer = Renderer(trainer._tokenizer, eos, trainer.chat_template_kwargs)
    with trainer.accelerator.main_process_first():
        trainer.train_dataset, trainer.demonstrations = tokenize_demonstrations(
            trainer.train_dataset,
            trainer.processing_class,
            trainer.max_completion_length,
            args.demonstration_column,
            trainer.renderer,
        )
    if isinstance(trainer.train_dataset, Dataset):
        rows: Any = trainer.train_dataset.select_columns(["prompt"])
        fit(trainer, (len(trainer.renderer.prompt(row["prompt"])) for row in rows))
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


def fit(trainer: Any, lengths: Iterable[int]) -> None:
    """Raise UserError where prompts of these lengths and a completion exceed the model."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    refuse_too_long(model, lengths, trainer.max_completion_length)

"""The datasets of a trainer: as plain Python values, and with demonstrations as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from prefix_rft.data import DataError, tokenize_demonstrations
from prefix_rft.data.render import Renderer
from prefix_rft.engines.positions import refuse_too_long
from prefix_rft.engines.trl.clock import template_kwargs


def set_renderer(trainer: Any) -> None:
    """Set the trainer's ``renderer``, and the chat template that TRL renders prompts with."""
    kwargs = template_kwargs(trainer.args, trainer._tokenizer)
    trainer.renderer = Renderer(trainer._tokenizer, tuple(trainer.eos_token_ids), kwargs)
    trainer.chat_template = kwargs.get("chat_template", trainer.chat_template)


def plain_rows(data: Any, name: str) -> Any:
    """The dataset, or each of a mapping of datasets, with Python's own values in its cells.

    A format (``with_format("numpy")``, "torch", "pandas", "arrow", ...) is taken off; columns that
    it hides stay hidden. What is no dataset of Hugging Face's is returned as it is.

    Args:
        data: what the trainer was given.
        name: of the argument, for messages.

    Raises:
        DataError: rows go through a function each time they are read, so that no row is known.
    """
    if isinstance(data, Mapping):
        return {key: plain_rows(part, f"{name}['{key}']") for key, part in data.items()}
    if isinstance(data, IterableDataset):
        return data.with_format(None)
    if not isinstance(data, Dataset):
        return data
    form = data.format
    if form["type"] == "custom":
        raise DataError(
            f"{name} has a transform (set_transform or with_transform), which makes its rows anew "
            f"each time they are read: give what it makes, by {name}.map(...) without the transform"
        )
    hidden = not form["output_all_columns"] and set(form["columns"]) != set(data.column_names)
    plain = data if form["type"] is None and not hidden else data.with_format(None)
    return plain.select_columns(form["columns"]) if hidden else plain


class EvaluatesPlainRows:
    """Mixin for trainers: a dataset to evaluate on may have a format too."""

    def get_eval_dataloader(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's, on plain rows."""
        data = plain_rows(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(data, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def tokenize_dataset(trainer: Any) -> None:
    """Set the trainer's ``renderer``, ``demonstrations`` and ``train_dataset``.

    Raises:
        DataError: the dataset is smaller than a generation, or lacks what the method needs.
        UserError: a prompt and its completion are too long for the model.
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
    if isinstance(trainer.train_dataset, Dataset):
        asked: Any = trainer.train_dataset.select_columns(["prompt"])
        fit(trainer, (len(trainer.renderer.prompt(row["prompt"])) for row in asked))
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

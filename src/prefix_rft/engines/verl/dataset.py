"""verl's dataset on our loaders: the rows, ids and demonstrations of the TRL engine.

An item never holds a demonstration. They stay with the dataset, and the trainer takes from them the
prefixes of its training batches; so validation, graders and samplers cannot see one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Table
from datasets import concatenate_datasets
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset
from verl.utils.fs import copy_to_local

from prefix_rft.data import DataError, Renderer, load_rows, tokenize_demonstrations
from prefix_rft.data.files import PLACE
from prefix_rft.data.moment import pinned
from prefix_rft.data.pictures import IMAGE, IMAGES
from prefix_rft.data.render import end_of_text_ids
from prefix_rft.engines.models import give_template, load_configs
from prefix_rft.engines.verl.method_config import KEY, MethodConfig
from prefix_rft.engines.verl.settings import MODEL
from prefix_rft.rewards.completions import visible

logger = logging.getLogger("prefix_rft")

COLUMNS = "prefix_rft_columns"
"""What graders are given beside the completion, as JSON."""
PROMPT_IDS = "prefix_rft_prompt_ids"


class Prompts(Dataset):
    """Rows of any shape that :func:`prefix_rft.data.load_rows` reads, with verl's signature.

    Args:
        data_files: a file, folder or dataset name, or a list of them.
        tokenizer: the model's.
        config: verl's ``data``, with our block.
        processor: must be None.
        max_samples: the first N rows only; -1 is all.

    Attributes:
        rows: the rows with ``prefix_rft_demonstration_ids`` and the other columns.
        report: what became of the demonstrations.

    Raises:
        DataError: rows that cannot be used.
    """

    def __init__(
        self,
        data_files: Any,
        tokenizer: Any,
        config: DictConfig,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        if processor is not None and getattr(processor, "image_processor", None) is not None:
            raise DataError("engine verl takes no model that reads pictures: use engine trl")
        block = MethodConfig.read(OmegaConf.to_container(config[KEY], resolve=True))  # pyright: ignore[reportArgumentType]
        several = [data_files] if isinstance(data_files, str) else list(data_files)
        limit = max_samples if max_samples > 0 else None
        tables = [
            load_rows(str(one), folder=Path(block.folder), reading=block.reading, limit=limit)
            for one in several
        ]
        rows = concatenate_datasets(tables)
        if held := [name for name in (IMAGE, IMAGES) if name in rows.column_names]:
            raise DataError(f"engine verl takes no pictures (column '{held[0]}'): use engine trl")
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        if give_template(tokenizer, rows[0]["prompt"]):
            logger.warning(
                "the tokenizer has no chat template: prompts are plain text with blank lines "
                "between messages"
            )
        self.renderer = renderer_of(tokenizer, config, block.chat_template_date)
        rows = self._within(rows, int(config.max_prompt_length))
        rows, self.report = tokenize_demonstrations(
            rows, tokenizer, int(config.max_response_length), renderer=self.renderer
        )
        self.rows: Table = rows  # pyright: ignore[reportAttributeAccessIssue]
        hidden = ("prompt", "demonstration", PLACE)
        self.visible = [n for n in visible(self.rows.column_names) if n not in hidden]

    def _within(self, rows: Table, budget: int) -> Table:
        """The rows whose prompts fit, with their ids; how many do not is said."""
        ids: Any = rows.map(
            lambda batch: {PROMPT_IDS: self.renderer.prompts(batch["prompt"])},
            batched=True,
            batch_size=64,
        )
        kept = [i for i, x in enumerate(ids[PROMPT_IDS]) if len(x) <= budget]
        if not kept:
            raise DataError(f"no prompt is within data.max_prompt_length = {budget} tokens")
        if len(kept) < len(ids):
            lost = len(ids) - len(kept)
            logger.warning(
                "%d of %d prompts dropped: longer than %d tokens", lost, len(ids), budget
            )
        return ids.select(kept)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What verl and the graders need of a row; no demonstration."""
        row: Mapping[str, Any] = self.rows[index]
        prompt = row["prompt"]
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        columns = {name: row[name] for name in self.visible}
        return {
            "dummy_tensor": torch.tensor([0], dtype=torch.uint8),  # verl wants one
            "raw_prompt": messages,
            "index": index,
            "data_source": str(row.get("data_source") or "data"),
            "reward_model": row.get("reward_model")
            or {"style": "rule", "ground_truth": columns.get("answer")},
            "extra_info": {**(row.get("extra_info") or {}), "index": index},
            PROMPT_IDS: row[PROMPT_IDS],
            COLUMNS: json.dumps({"prompt": prompt, **columns}, default=str),
        }


def renderer_of(tokenizer: Any, config: DictConfig, date: str | None = None) -> Renderer:
    """What makes ids of rows, and texts of completions.

    Args:
        tokenizer: the model's.
        config: verl's ``data``.
        date: the moment that the chat template tells, if it tells one.
    """
    kwargs: Any = config.get("apply_chat_template_kwargs")
    template = pinned(tokenizer, kwargs, date)
    return Renderer(tokenizer, end_ids(tokenizer, config), template)


def end_ids(tokenizer: Any, config: DictConfig) -> tuple[int, ...]:
    """The tokens that end a completion, those of the model's generation config among them."""
    model = config.get(MODEL)
    return end_of_text_ids(tokenizer, load_configs(copy_to_local(model))[1] if model else None)

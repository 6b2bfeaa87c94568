"""Pictures on their way through TRL: opened for it, kept with their rows, handed to forwards.

TRL's tensors of a batch have all its pictures one behind the other, with ``num_images`` to tell
whose they are. Rows are taken apart, moved and left out here, so that they have lists instead, with
what is each row's own; TRL's own functions turn one into the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from prefix_rft.data import DataError
from prefix_rft.data.demonstrations import EXAMPLE
from prefix_rft.data.files import PLACE
from prefix_rft.data.pictures import IMAGE, IMAGES, cells, filled, opened
from prefix_rft.engines.pictures import PER_TOKEN
from prefix_rft.support.errors import UserError

CELLS = "prefix_rft_pictures"
"""The columns of a row's pictures as the dataset has them, in what TRL is given of the row."""

COUNT = "num_images"
PIXELS = "pixel_values"
FIELDS = (
    *(PIXELS, "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "image_position_ids", *PER_TOKEN),
)
"""What a forward of TRL's may be given of pictures, beside their number."""


def opened_in(inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Examples with their pictures opened, in a column ``images`` that all of them have.

    Examples without such columns are returned as they are.

    Raises:
        DataError: a picture cannot be opened, or a prompt has places for another number.
    """
    if not any(IMAGE in row or IMAGES in row for row in inputs):
        return [dict(row) for row in inputs]
    rows = []
    files: dict[str, Any] = {}  # rows of a group have the same
    for row in inputs:
        try:
            pictures = [_opened(cell, name, files) for name, cell in cells(row)]
            if pictures:
                filled(row["prompt"], pictures)
        except DataError as error:
            raise DataError(f"{place_of(row)}: {error}") from error
        kept = {name: row[name] for name in (IMAGE, IMAGES) if name in row}
        rest = {name: value for name, value in row.items() if name != IMAGE}
        rows.append({**rest, IMAGES: pictures, CELLS: kept})
    return rows


def _opened(cell: Any, name: str, files: dict[str, Any]) -> Any:
    if not isinstance(cell, str):
        return opened(cell, name)
    if cell not in files:
        files[cell] = opened(cell, name)
    return files[cell]


def place_of(row: Mapping[str, Any]) -> str:
    """Where a row stands in the data, in words."""
    return row.get(PLACE) or f"the dataset, row {row[EXAMPLE] + 1}" if EXAMPLE in row else "a row"


def without_pictures(
    inputs: Sequence[Mapping[str, Any]], prompts: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The examples and prompts of rows as graders see them: with what the dataset holds.

    Args:
        inputs: the examples as :func:`opened_in` made them.
        prompts: the prompts as TRL has them, with pictures in them.
    """
    rows, shown = [], []
    for row, prompt in zip(inputs, prompts, strict=True):
        if CELLS in row:
            rest = {name: value for name, value in row.items() if name not in (IMAGES, CELLS)}
            rows.append({**rest, **row[CELLS]})
            shown.append(row["prompt"])
        else:
            rows.append(dict(row))
            shown.append(prompt)
    return rows, shown


def apart(rows: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's tensors of a batch, with what belongs to pictures as lists of each row's own."""
    return split_pixel_values_by_grid(dict(rows))


def whole(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of :func:`apart`."""
    return unsplit_pixel_values_by_grid(dict(rows))


def forward_inputs(rows: Mapping[str, Any], left: int, width: int) -> dict[str, Any]:
    """What a forward is given of these rows' pictures; nothing where they have none.

    Args:
        rows: rows taken apart.
        left: columns of the prompts that the forward has, the last ones.
        width: columns of the completions that it has, the first ones.
    """
    if not sum(rows.get(COUNT) or ()):
        return {}
    joined = whole({name: rows[name] for name in (COUNT, *FIELDS) if rows.get(name) is not None})
    start = rows["prompt_ids"].size(1) - left
    for name in PER_TOKEN:
        if name in joined:
            joined[name] = joined[name][:, start : start + left + width]
    return joined


def chosen(
    images: Sequence[Any] | None,
    fields: Mapping[str, Any],
    rows: Sequence[int],
    prefixes: Sequence[int],
) -> tuple[list[Any] | None, dict[str, Any]]:
    """The pictures of some rows, as TRL samples from them, with more tokens behind the prompts.

    Args:
        images: each row's pictures, or None where it has none; None where no row has any.
        fields: what TRL's processor made of all rows beside ids and mask.
        rows: the places of the rows, in order.
        prefixes: tokens behind the prompt of each of these.
    """
    taken: dict[str, Any] = {
        name: [[*fields[name][i], *[0] * n] for i, n in zip(rows, prefixes, strict=True)]
        for name in PER_TOKEN
        if name in fields
    }
    if images is None:
        return None, taken
    tensors = {k: _tensor(v) for k, v in fields.items() if k not in PER_TOKEN}
    split = apart({**tensors, COUNT: [len(x or ()) for x in images]})
    some = {k: [v[i] for i in rows] for k, v in split.items() if isinstance(v, list)}
    some |= {k: v[list(rows)] for k, v in split.items() if torch.is_tensor(v)}
    if sum(some[COUNT]):
        joined = whole(some)
        taken |= {name: value for name, value in joined.items() if name != COUNT}
    return [images[i] for i in rows], taken


def _tensor(value: Any) -> Tensor:
    return value if torch.is_tensor(value) else torch.tensor(np.array(value))


def refuse_pictures(reads: bool, rows: Any, args: Any, sharded: bool) -> None:
    """Refuse what has not been built for pictures.

    Args:
        reads: the model reads pictures, and has its processor.
        rows: the dataset.
        args: the trainer's configuration.
        sharded: the model's weights are spread over processes.

    Raises:
        UserError: a model that reads pictures is to be sharded, or sampled by vLLM.
        DataError: rows have pictures, and the model reads none.
    """
    held = [name for name in (IMAGE, IMAGES) if name in (getattr(rows, "column_names", ()) or ())]
    if held and not reads:
        raise DataError(
            f"the rows have a column '{held[0]}', but the model reads no pictures: take one that "
            "does, with its processor, or drop the column"
        )
    if reads and sharded:
        raise UserError(
            "a model that reads pictures cannot be sharded: a process whose rows have none would "
            "wait for the others; train it without FSDP and DeepSpeed"
        )
    if reads and getattr(args, "use_vllm", False):
        raise UserError(
            "use_vllm is not supported for a model that reads pictures: leave it out, and "
            "transformers samples"
        )


def logs_pictures(reads: bool, args: Any, several: bool) -> bool:
    """Whether TRL is to keep pictures for its table of completions.

    It does so by default, also where it makes no such table; and it waits for pictures of every
    process in each step in which one has some.

    Args:
        reads: the model reads pictures.
        args: the trainer's configuration.
        several: there are several processes.

    Raises:
        UserError: the table is wanted with pictures, of several processes.
    """
    wanted = args.log_multimodal and args.log_completions
    if reads and wanted and several:
        raise UserError(
            "log_completions with pictures would wait for a process whose rows have none: set "
            "log_multimodal=False"
        )
    return wanted

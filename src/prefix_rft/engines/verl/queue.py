"""Columns of a batch in verl's queue."""

from __future__ import annotations

from typing import Any

import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor


def get(batch: Any, *fields: str) -> Any:
    """Columns of a batch."""
    return tq.kv_batch_get(
        keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields)
    )


def put(batch: Any, **columns: Tensor) -> Any:
    """The batch with more columns, or other ones."""
    table = TensorDict(columns, batch_size=len(batch))  # pyright: ignore[reportArgumentType]
    return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=table)

"""Models that end at a number of positions: longer rows are refused before they are an IndexError.

Rotary positions go on beyond what a model was trained for. Learned ones, and tables of sines, end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from prefix_rft.engines.cached_model import base_of
from prefix_rft.engines.pictures import reads_pictures
from prefix_rft.support.errors import UserError

LEARNED = re.compile(r"^wpe$|pos(ition)?s?_?(emb|enc)|embed_positions")
TABLES = ("embed_positions", "pos_encoding")


def position_limit(model: Any) -> int | None:
    """Positions that a model has for text; None where there is no end."""
    if reads_pictures(model.config):  # a picture has positions of its own
        model = base_of(model).get_decoder()
    limits = [
        module.num_embeddings - _first(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and LEARNED.search(name.rpartition(".")[2])
    ]
    limits += [
        buffer.size(0)
        for name, buffer in model.named_buffers()
        if buffer.ndim == 2 and name.rpartition(".")[2] in TABLES
    ]
    if getattr(model.config, "model_type", None) == "mpt":  # its biases are worked out beforehand
        limits.append(model.config.max_seq_len)
    return min(limits, default=None)


def _first(module: nn.Embedding) -> int:
    """The row of the first position: some models begin behind the padding token's."""
    padding = module.padding_idx
    offset: Any = getattr(module, "offset", 0 if padding is None else padding + 1)
    return int(offset)


def refuse_too_long(model: Any, lengths: Iterable[int], budget: int = 0) -> None:
    """Look whether rows fit into a model.

    Args:
        model: causal language model.
        lengths: tokens of prompts, or of whole rows; looked at only if the model ends somewhere.
        budget: tokens of a completion behind each.

    Raises:
        UserError: one does not fit.
    """
    limit = position_limit(model)
    if limit is None:
        return
    longest = max(lengths, default=0)
    if longest + budget > limit:
        behind = f" and max_completion_length={budget} behind it" if budget else ""
        raise UserError(
            f"the model has {limit} positions and no more, but the longest row has {longest} "
            f"tokens{behind}: lower max_completion_length, or drop the longer rows"
        )

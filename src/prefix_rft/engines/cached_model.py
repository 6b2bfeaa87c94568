"""A causal model with the keys and values of its past, one token at a time.

transformers grows a cache by copying all of it for each token, and copies all of it again when a
row leaves. Here a layer has room to spare, which doubles when it is full, and the rows at the end
move into the places of those that leave.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prefix_rft.engines.pictures import reads_pictures


def base_of(model: PreTrainedModel) -> Any:
    """The model that an adapter is on; the model itself where there is none."""
    peft: Any = model
    return peft.get_base_model() if hasattr(model, "peft_config") else model


def supported(model: PreTrainedModel) -> bool:
    """Whether the model keeps its past in key/value caches whose rows can be selected.

    Recurrent and linear-attention layers do not, and pictures are not passed on: for these models
    use ``model.generate``.
    """
    config = base_of(model).config
    if reads_pictures(config):
        return False
    if config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        return False
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False  # its virtual tokens stand in front of what ``generate`` is given
    return all(hasattr(x, "batch_select_indices") for x in DynamicCache(config=config).layers)


class CachedModel:
    """The model with its cache: logits of the last position.

    Args:
        model: causal language model, see :func:`supported`; may be a PEFT model.
        longest: the most positions of a row.
    """

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        base = base_of(model)
        names = inspect.signature(base.forward).parameters
        self.model = model
        self.takes_position = "position_ids" in names
        self.takes_logits_to_keep = "logits_to_keep" in names
        self.cache = DynamicCache(config=base.config)
        # Layers of other kinds, such as those of a sliding window, stay transformers' own.
        self.cache.layers = [
            RoomyLayer(longest) if type(x) is DynamicLayer else x for x in self.cache.layers
        ]
        # A mixture of experts would compute its balancing loss, and on the wrong mask.
        self.extra = {"output_router_logits": False} if "output_router_logits" in names else {}

    def __call__(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """Logits behind the last of these tokens, shape (B, V)."""
        extra: dict[str, Any] = dict(self.extra)
        if self.takes_position:
            extra["position_ids"] = position
        if self.takes_logits_to_keep:
            extra["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **extra
        )
        return output.logits[:, -1]

    def repeat(self, source_B: Tensor) -> None:
        """Have the cache hold these of its rows, some of them several times."""
        self.cache.batch_select_indices(source_B)

    def keep(self, alive_B: Tensor) -> Tensor:
        """Drop the other rows of the cache; the places that the rows of it had, shape (B',).

        Rows from the end move into the holes, so that few are copied.

        Args:
            alive_B: bool, the rows that stay.
        """
        places = alive_B.nonzero()[:, 0]
        count = len(places)
        holes = (~alive_B[:count]).nonzero()[:, 0]
        fillers = places[count - len(holes) :]
        kept = torch.arange(count, device=places.device)
        kept[holes] = fillers
        layer: Any
        for layer in self.cache.layers:
            if isinstance(layer, RoomyLayer):
                layer.fill(holes, fillers, count)
            else:
                layer.batch_select_indices(kept)
        return kept


class RoomyLayer(DynamicLayer):
    """A layer of full attention whose keys and values lie in tensors with room for more positions.

    Under autocast they are kept in its type, to which every product casts them.

    Args:
        longest: the most positions there will be.
    """

    def __init__(self, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.room: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the states of some positions; all keys and values, shape (B, heads, L, width)."""
        before = self.get_seq_length()
        length = before + key_states.size(2)
        states = [_as_multiplied(x) for x in (key_states, value_states)]
        if not self.room:
            self.room = [self._with_room(x, length) for x in states]
        elif length > self.room[0].size(2):
            self.room = [self._with_room(x[:, :, :before], length) for x in self.room]
        for room, x in zip(self.room, states, strict=True):
            room[: len(x), :, before:length] = x
        return self._show(len(key_states), length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Hold these of the rows, some perhaps several times."""
        if self.room:
            length = self.get_seq_length()
            self.room = [self._with_room(x[indices, :, :length], length) for x in self.room]
            self._show(len(indices), length)

    def fill(self, holes: Tensor, fillers: Tensor, count: int) -> None:
        """Move the rows ``fillers`` to the places ``holes`` and drop what is behind ``count``."""
        if self.room:
            length = self.get_seq_length()
            for x in self.room:
                x[holes, :, :length] = x[fillers, :, :length]
            self._show(count, length)

    def _with_room(self, x: Tensor, length: int) -> Tensor:
        """A longer tensor that begins with ``x``, for at least so many positions."""
        room = max(length, min(2 * length, self.longest))
        new = x.new_empty(*x.shape[:2], room, x.size(3))
        new[:, :, : x.size(2)] = x
        return new

    def _show(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        self.is_initialized = True
        self.keys, self.values = (x[:rows, :, :length] for x in self.room)
        return self.keys, self.values


def _as_multiplied(x: Tensor) -> Tensor:
    """In the type of autocast, where it casts what products are made of."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x

"""Models that read pictures, and what their forward is given of several rows' pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from prefix_rft.data.render import Renderer

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Inputs that have a number for each token; all others have rows for each picture or patch."""


def reads_pictures(config: Any) -> bool:
    """Whether transformers knows models of this config as ones from pictures and text to text."""
    return hasattr(config, "vision_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def together(
    rows: Sequence[Mapping[str, Tensor]], behind: Sequence[int], left: bool = True
) -> dict[str, Tensor]:
    """The pictures of several rows, as one forward of all of them is given them.

    Args:
        rows: for each row what its processor made beside ids and mask, see :func:`prompt_inputs`.
        behind: tokens of each row behind its prompt, none of which is a picture's.
        left: rows are padded on the left, else on the right.

    Returns:
        Tensors by name; per token ones have as many columns as the longest row.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    out = {}
    for name in names:
        if name not in PER_TOKEN:
            out[name] = torch.cat([row[name] for row in rows if name in row])
            continue
        kinds = [pad(row[name][0], (0, n)) for row, n in zip(rows, behind, strict=True)]
        width = max(map(len, kinds))
        lack = [width - len(kind) for kind in kinds]
        sides = [(n, 0) if left else (0, n) for n in lack]
        out[name] = torch.stack([pad(k, side) for k, side in zip(kinds, sides, strict=True)])
    return out


def prompt_inputs(render: Renderer, prompt: Any) -> tuple[list[int], dict[str, Tensor]]:
    """Token ids of a prompt, and what a model is given of its pictures beside them.

    Args:
        render: how prompts become ids.
        prompt: a text or messages, with their pictures in them.
    """
    if render.processor is None or isinstance(prompt, str):
        return render.prompt(prompt), {}
    made = render.inputs(prompt)
    pictures = {k: v for k, v in made.items() if k not in ("input_ids", "attention_mask")}
    return made["input_ids"][0].tolist(), pictures


def inputs_of(
    render: Renderer, prompt: Any, behind: Sequence[int], device: Any
) -> tuple[dict[str, Tensor], int]:
    """What a model is given of one prompt and the tokens behind it, and the prompt's length.

    Args:
        render: how prompts become ids.
        prompt: a text or messages, with their pictures in them.
        behind: token ids behind the prompt.
        device: the model's device.
    """
    ids, pictures = prompt_inputs(render, prompt)
    return model_inputs(ids, pictures, behind, device), len(ids)


def model_inputs(
    ids: Sequence[int], pictures: Mapping[str, Tensor], behind: Sequence[int], device: Any
) -> dict[str, Tensor]:
    """The same from ids and pictures of the prompt, see :func:`prompt_inputs`."""
    shown = together([pictures], [len(behind)]) if pictures else {}
    inputs = {"input_ids": torch.tensor([[*ids, *behind]]), **shown}
    return {name: value.to(device) for name, value in inputs.items()}

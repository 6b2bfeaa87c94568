"""Demonstrations of rows with pictures as a batch: prompts become ids where pictures are opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from prefix_rft.data.demonstrations import ASKED, asked_again
from prefix_rft.data.render import Renderer
from prefix_rft.engines.pictures import prompt_inputs, together
from prefix_rft.engines.trl.pictures import COUNT


class PictureCollator:
    """Makes TRL's tensors of rows from ``data.demonstrations``, padded on the right.

    Args:
        renderer: gives what renders prompts now.
    """

    def __init__(self, renderer: Callable[[], Renderer]) -> None:
        self.renderer = renderer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Ids, mask and labels of shape (B, T), and what a forward is given of the pictures.

        Raises:
            DataError: a picture cannot be opened.
        """
        render = self.renderer()
        with_prompts = any(name.startswith(ASKED) for name in rows[0])
        ids, labels, pictures, counts = [], [], [], []
        for row in rows:
            start, shown = [], {}
            if with_prompts:
                prompt = asked_again(row)
                start, shown = prompt_inputs(render, prompt)
                counts.append(_pictures_in(prompt))
            demonstration = row["input_ids"]
            ids.append(torch.tensor([*start, *demonstration]))
            labels.append(torch.tensor([*[-100] * len(start), *row["labels"]]))
            pictures.append(shown)
        width = max(map(len, ids))
        mask = [torch.ones_like(x) for x in ids]
        fill = render.tokenizer.pad_token_id
        batch: dict[str, Any] = {
            name: torch.stack([pad(x, (0, width - len(x)), value=value) for x in some])
            for name, some, value in (
                ("input_ids", ids, fill),
                ("attention_mask", mask, 0),
                ("labels", labels, -100),
            )
        }
        behind = [len(row["input_ids"]) for row in rows]
        batch |= together(pictures, behind, left=False)
        return batch | ({COUNT: counts} if sum(counts) else {})


def _pictures_in(prompt: Any) -> int:
    if isinstance(prompt, str):
        return 0
    blocks = [b for m in prompt if not isinstance(m["content"], str) for b in m["content"]]
    return sum(block.get("image") is not None for block in blocks)

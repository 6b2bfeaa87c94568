"""A grid of pictures as PNG: what a model draws, or what it is trained on."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prefix_rft.support.errors import UserError
from prefix_rft.support.writing import PART, naming

CELL = 48
"""The least pixels along a picture's longer side: smaller ones are enlarged by a whole number."""
GAP = 2


@dataclass(frozen=True)
class Shades:
    """The values that are shown black and white: those of the data, for all grids of a run."""

    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor) -> Shades:
        """From the least to the greatest value."""
        low, high = float(x.min()), float(x.max())
        return cls(low, high if high > low else low + 1.0)


def as_bytes(x: Tensor, values: Shades) -> Tensor:
    """Pictures as bytes (N, H, W, 1 or 3), with values outside the range at its ends.

    Args:
        x: pictures (N, C, H, W) or videos (N, C, F, H, W), of which the frame in the middle is
            shown; of C channels the first three, or the first where there are fewer.
        values: what is black and what is white.
    """
    if x.dim() == 5:
        x = x[:, :, x.shape[2] // 2]
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1]
    share = (x.float() - values.low) / (values.high - values.low)
    return (share.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


def tiled(pictures: Tensor) -> Tensor:
    """Pictures (N, H, W, C) side by side in a square, as one (H', W', C); gaps are grey."""
    count, height, width, channels = pictures.shape
    times = max(1, math.ceil(CELL / max(height, width)))
    large = pictures.repeat_interleave(times, 1).repeat_interleave(times, 2)
    columns = math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    down, across = height * times + GAP, width * times + GAP
    page = torch.full((lines * down - GAP, columns * across - GAP, channels), 128).byte()
    for i, picture in enumerate(large):
        y, x = i // columns * down, i % columns * across
        page[y : y + height * times, x : x + width * times] = picture
    return page


def write_grid(path: Path, x: Tensor, values: Shades) -> None:
    """Write pictures as one PNG, as a whole.

    Raises:
        UserError: it cannot be written, or pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(
            "grids of pictures need the package pillow: pip install 'prefix-rft[diffusion]', or "
            "pictures: 0"
        ) from error
    page = tiled(as_bytes(x, values)).numpy()
    file = io.BytesIO()
    Image.fromarray(page[:, :, 0] if page.shape[2] == 1 else page).save(file, "PNG")
    part = path.with_name(path.name + PART)
    with naming(path):
        path.parent.mkdir(exist_ok=True)
        part.write_bytes(file.getvalue())
        os.replace(part, path)

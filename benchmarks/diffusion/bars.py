"""Pictures of two modes, 8 by 8 in grey: a vertical or a horizontal bar, two pixels wide.

Which mode a sample is of, is measured by the nearest of the 14 clean pictures, and only where it is
near: a blur between two bars counts as neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SIZE, WIDTH = 8, 2
BRIGHT, DARK, NOISE = 0.8, -0.8, 0.1
PLACES = SIZE - WIDTH + 1
NEAR = 0.15
"""Mean squared distance to a clean picture below which a sample is of its mode."""


def clean() -> Tensor:
    """The 14 pictures without noise (14, 1, 8, 8), first the seven vertical ones."""
    pictures = torch.full((2 * PLACES, 1, SIZE, SIZE), DARK)
    for place in range(PLACES):
        pictures[place, 0, :, place : place + WIDTH] = BRIGHT
        pictures[PLACES + place, 0, place : place + WIDTH, :] = BRIGHT
    return pictures


def drawn(count: int, modes: Sequence[int], seed: int) -> Tensor:
    """Noisy pictures (count, 1, 8, 8), in [-1, 1], of modes 0 (vertical) and 1 by turns."""
    source = torch.Generator().manual_seed(seed)
    places = torch.randint(PLACES, (count,), generator=source)
    of_mode = torch.tensor([modes[i % len(modes)] * PLACES for i in range(count)])
    pictures = clean()[places + of_mode]
    return (pictures + NOISE * torch.randn(pictures.shape, generator=source)).clamp(-1, 1)


def write_rows(folder: Path, columns: dict[str, Tensor]) -> Path:
    """Pictures as PNG and their rows, ``image`` and perhaps ``loser``; returns the file of rows."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for key, pictures in columns.items():
        names[key] = [f"{key}-{i}.png" for i in range(len(pictures))]
        for name, picture in zip(names[key], pictures, strict=True):
            values = ((picture[0] + 1) * 127.5).round().byte().numpy()
            Image.fromarray(values).save(folder / name)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*names.values(), strict=True)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def measured(samples: Tensor) -> dict[str, float]:
    """What samples (N, 1, 8, 8) are.

    Returns:
        The shares ``vertical``, ``horizontal`` and ``neither``; ``places``, the number of places
        that the vertical ones use alike, exp(entropy), at most 7.
    """
    distance = (samples[:, None] - clean()[None]).square().flatten(2).mean(2)
    least, nearest = distance.min(1)
    near = least < NEAR
    vertical, horizontal = near & (nearest < PLACES), near & (nearest >= PLACES)
    counts = torch.bincount(nearest[vertical], minlength=PLACES).double()
    shares = counts / counts.sum().clamp(min=1)
    entropy = -sum(float(p) * math.log(float(p)) for p in shares if p > 0)
    return {
        "vertical": vertical.double().mean().item(),
        "horizontal": horizontal.double().mean().item(),
        "neither": (~near).double().mean().item(),
        "places": math.exp(entropy) if counts.sum() else 0.0,
    }

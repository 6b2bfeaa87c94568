"""Winners, and losers where pairs are trained on: lines of jsonl that name files beside them.

    {"image": "pictures/0.png", "condition": 3}

``image`` and ``loser`` are PNG (grey or RGB; scaled to [-1, 1]), or .npy or .safetensors with one
tensor of floats, (C, H, W) of a picture or (C, F, H, W) of a video, as the model takes it: latents,
for most. ``condition`` is the number of a class, or a file with an embedding (L, D). Files are
opened when their batch comes; nothing in them is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefix_rft.diffusion.pool import stream
from prefix_rft.support.errors import UserError, one_line


@dataclass(frozen=True)
class RowTensors:
    """Some rows as tensors.

    Attributes:
        winner: (B, ...).
        loser: (B, ...); None where rows have none.
        condition: labels (B,) or embeddings (B, L, D); None where rows have none.
    """

    winner: Tensor
    loser: Tensor | None
    condition: Tensor | None


@dataclass(frozen=True)
class Rows:
    """A file of rows.

    Attributes:
        path: the file.
        image: the file of each winner, seen from the rows' folder.
        loser: the file of each loser; empty where they are not used.
        condition: the label or the file of each row; empty where there are none.
        sha256: hash of the file of rows.
    """

    path: Path
    image: Sequence[str]
    loser: Sequence[str]
    condition: Sequence[int | str]
    sha256: str

    @property
    def labels(self) -> bool:
        """Whether conditions are labels of classes."""
        return bool(self.condition) and isinstance(self.condition[0], int)

    def batch(self, indices: Sequence[int]) -> RowTensors:
        """The rows at ``indices``.

        Raises:
            UserError: a file cannot be used, or has another shape than the first of the batch.
        """
        condition = None
        if self.labels:
            condition = torch.tensor([self.condition[i] for i in indices])
        elif self.condition:
            condition = self._stacked("condition", self.condition, indices)
        return RowTensors(
            self._stacked("image", self.image, indices),
            self._stacked("loser", self.loser, indices) if self.loser else None,
            condition,
        )

    def _stacked(self, key: str, names: Sequence[Any], indices: Sequence[int]) -> Tensor:
        tensors: list[Tensor] = []
        for index in indices:
            where = f"'{self.path}', row {index + 1}, {key} '{names[index]}'"
            tensor = read_tensor(self.path.parent / names[index], where)
            if tensors and tensor.shape != tensors[0].shape:
                raise UserError(
                    f"{where} has the shape {tuple(tensor.shape)}, that of row {indices[0] + 1} "
                    f"{tuple(tensors[0].shape)}: all rows must have one"
                )
            tensors.append(tensor)
        return torch.stack(tensors)

    def check_labels(self, classes: int | None) -> None:
        """Look whether every label is one of the model's ``classes``.

        Raises:
            UserError: one is not.
        """
        for index, label in enumerate(self.condition if self.labels else ()):
            if isinstance(label, int) and (label < 0 or (classes is not None and label >= classes)):
                raise UserError(
                    f"'{self.path}', row {index + 1}: condition {label} is no class of the model, "
                    f"which has {'0 and above' if classes is None else f'0 to {classes - 1}'}"
                )


def read_rows(path: Path, losers: bool) -> Rows:
    """Read the rows, and look whether their files are there.

    Args:
        path: the jsonl file.
        losers: each row must have a ``loser``.

    Raises:
        UserError: no such file, no rows, a line that is no row, or a file that is not there.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"train_data '{path}' does not exist: give a file of jsonl rows") from None
    columns: dict[str, list[Any]] = {"image": [], "loser": [], "condition": []}
    lines = [line for line in text.split(b"\n") if line.strip()]
    if not lines:
        raise UserError(f"train_data '{path}' has no rows")
    for number, line in enumerate(lines, 1):
        for key, value in _row(line, f"'{path}', row {number}", losers, path.parent).items():
            columns[key].append(value)
    kinds = {type(value) for value in columns["condition"]}
    if columns["condition"] and (len(kinds) > 1 or len(columns["condition"]) < len(lines)):
        raise UserError(
            f"'{path}': some rows have a label as 'condition', some a file or none: give all the "
            "same"
        )
    return Rows(path, **columns, sha256=hashlib.sha256(text).hexdigest())


def _row(line: bytes, where: str, losers: bool, folder: Path) -> dict[str, Any]:
    """The keys of a row that are used, checked."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is no mapping")
    found = {}
    for key in ("image", "loser") if losers else ("image",):
        if not isinstance(row.get(key), str):
            needs = "method dpo needs pairs, and it" if key == "loser" else "it"
            raise UserError(f"{where}: {needs} has no '{key}': give the path of a file")
        found[key] = row[key]
    condition = row.get("condition")
    if condition is not None:
        if isinstance(condition, bool) or not isinstance(condition, (int, str)):
            raise UserError(
                f"{where}: 'condition' is {condition!r}: give the number of a class, or the path "
                "of a file with an embedding"
            )
        found["condition"] = condition
    for key, name in found.items():
        if isinstance(name, str):
            _look(folder / name, f"{where}, {key} '{name}'")
    return found


def _look(path: Path, where: str) -> None:
    if path.suffix.lower() not in READERS:
        raise UserError(f"{where} must end in {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{where} does not exist; paths are seen from the folder of the rows")


def order(seed: int, count: int, start: int, batch: int) -> list[int]:
    """The rows of an update: every epoch goes through all of them once, in an order of its own.

    Args:
        seed: the run's seed.
        count: how many rows there are.
        start: how many were taken before, in all epochs.
        batch: how many are wanted.
    """
    first, last = start // count, (start + batch - 1) // count
    orders: Iterator[list[int]] = (
        torch.randperm(count, generator=stream(seed, "order", epoch)).tolist()
        for epoch in range(first, last + 1)
    )
    shift = start - first * count
    return [row for epoch in orders for row in epoch][shift : shift + batch]


def read_tensor(path: Path, where: str) -> Tensor:
    """The tensor in a file, in float32.

    Args:
        path: the file.
        where: it is named, for messages.

    Raises:
        UserError: it cannot be read, or has something else than finite floats.
    """
    try:
        tensor = READERS[path.suffix.lower()](path)
    except UserError as error:
        raise UserError(f"{where} {error}") from error
    except Exception as error:  # of three other packages, on files that may hold anything
        raise UserError(f"{where} cannot be read: {one_line(error)}") from error
    if not tensor.is_floating_point():
        raise UserError(f"{where} has {tensor.dtype}: save it as floats, scaled as the model's")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{where} has a number that is not finite")
    return tensor.float()


def _png(path: Path) -> Tensor:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("needs the package pillow: pip install 'prefix-rft[diffusion]'") from error
    import numpy as np

    with Image.open(path, formats=["PNG"]) as picture:
        if picture.mode not in ("L", "RGB"):
            raise UserError(f"is a picture of mode {picture.mode}: save it as grey (L) or RGB")
        values = torch.from_numpy(np.array(picture))
    values = values[None] if values.dim() == 2 else values.permute(2, 0, 1)
    return values.float() / 127.5 - 1


def _npy(path: Path) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.load(path, allow_pickle=False))


def _safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    tensors = list(load_file(path).values())
    if len(tensors) != 1:
        raise UserError(f"has {len(tensors)} tensors: save one alone")
    return tensors[0]


READERS: dict[str, Callable[[Path], Tensor]] = {
    ".png": _png,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
"""What reads a file, by its ending."""

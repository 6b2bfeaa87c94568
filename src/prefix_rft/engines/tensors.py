"""Tensors on disk, as safetensors; errors name the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefix_rft.support.errors import UserError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"'{path}' is damaged: {error}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, none of which may share memory with another.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        save_file(dict(tensors), path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' cannot be written: {error}") from error

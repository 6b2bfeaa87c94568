"""``prefix-rft merge``: an adapter and its base as one model of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.models import load_configs, load_model, quiet
from prefix_rft.support.errors import UserError, choose, one_line
from prefix_rft.support.writing import check_folder, naming

DTYPES = ("float32", "bfloat16", "float16")


def merge(source: str, output: Path, dtype: str | None = None) -> int:
    """Write the model that an adapter makes of its base, with its tokenizer; returns its weights.

    The sum is taken in float32 and rounded once.

    Args:
        source: folder or Hub name of an adapter, or a run folder whose model is one.
        output: the new model's folder, which must not exist.
        dtype: the type of the weights that are written; by default that of the base.

    Raises:
        UserError: there is no adapter, or it cannot be merged, or the folder cannot be written.
    """
    quiet()
    if dtype is not None:
        choose("dtype", dtype, DTYPES)
    if output.exists():
        raise UserError(f"'{output}' exists already: give another name")
    check_folder(output, "the model's folder")
    if (Path(source) / "recipe.yaml").is_file() and (Path(source) / "model").is_dir():
        source = str(Path(source) / "model")
    adapter = find_adapter(source)
    if adapter is None:
        raise UserError(f"'{source}' is no adapter: there is nothing to merge")
    stored = load_configs(source)[0].dtype or torch.float32
    model, tokenizer = load_model(source)
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise UserError(f"adapter '{source}' cannot be merged: {one_line(error)}") from error
    merged.to(getattr(torch, dtype) if dtype else stored)
    output.parent.mkdir(parents=True, exist_ok=True)
    with naming(output):
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            merged.save_pretrained(beside / "model")
            tokenizer.save_pretrained(beside / "model")
            (beside / "model").rename(output)
        finally:
            shutil.rmtree(beside)
    return sum(p.numel() for p in merged.parameters())

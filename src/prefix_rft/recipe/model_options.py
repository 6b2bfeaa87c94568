"""A model as a recipe names it: a folder or a Hub name, and how it is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from prefix_rft.support.errors import UserError, check_types

DTYPE = "dtype"


def find_model(name: str, folder: Path = Path()) -> str:
    """The path of a model's folder as ``name`` is seen from ``folder``, or a Hub name as it stands.

    Raises:
        UserError: it can only be a folder, and there is none; or it is a GGUF file.
    """
    path = folder / name
    if name.strip() and is_gguf(path):
        raise UserError(
            f"model '{name}' is GGUF, weights made small for inference: give the folder or Hub "
            "name of the model that it was made of"
        )
    if name.strip() and path.is_dir():
        return str(path)
    written_as_path = name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name
    if written_as_path or name.count("/") > 1 or not name.strip() or (folder / name).is_file():
        what = "is a file, no folder" if (folder / name).is_file() else "is no folder"
        raise UserError(f"model '{name}' {what}{near(name, folder)}: give a folder or a Hub name")
    return name


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file, or a folder of these that no config makes a model."""
    if path.is_dir():
        return any(path.glob("*.gguf")) and not any(path.glob("*config.json"))
    return path.is_file() and path.suffix == ".gguf"


def near(name: str, folder: Path) -> str:
    """`` (did you mean 'x'?)`` for the folder with the name most like it, where one is like it."""
    path = folder / name
    there = path.parent
    if not there.is_dir():
        return ""
    names = [p.name for p in there.iterdir() if p.is_dir()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f" (did you mean '{Path(name).parent / close[0]}'?)" if close else ""


def model_options(kwargs: Any) -> dict[str, Any]:
    """A recipe's ``model_init_kwargs``, with ``dtype`` under its present name.

    Raises:
        UserError: they are no mapping, or one of them has no effect or cannot be used.
    """
    check_types("recipe key", {"model_init_kwargs": kwargs}, {"model_init_kwargs": "dict | None"})
    options = dict(kwargs or {})
    if "torch_dtype" in options:  # its name before transformers 5
        if DTYPE in options:
            raise UserError("model_init_kwargs has dtype and torch_dtype, which are one: leave one")
        options[DTYPE] = options.pop("torch_dtype")
    kind = str(options.get(DTYPE, "auto")).removeprefix("torch.")
    if kind != "auto" and not isinstance(getattr(torch, kind, None), torch.dtype):
        raise UserError(f"model_init_kwargs: unknown dtype '{kind}': give float32 or bfloat16")
    for key, fixed in FIXED.items():
        if options.get(key, fixed) != fixed:
            raise UserError(f"model_init_kwargs: '{key}' cannot be {options[key]!r}: {WHY[key]}")
    return options


FIXED = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": False}
WHY = {
    "trust_remote_code": "code that comes with a model is never run",
    "use_safetensors": "weights are read from safetensors alone",
    "output_loading_info": "the model alone is of use",
}

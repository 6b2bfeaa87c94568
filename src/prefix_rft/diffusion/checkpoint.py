"""A checkpoint of a diffusion run: weights, scheduler and the moments of AdamW, in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefix_rft.diffusion.models import Model
from prefix_rft.runs.checkpoints import (
    PREFIX,
    WRITING,
    checkpoints,
    fault,
    place,
    seal,
)
from prefix_rft.support.errors import RunError, UserError
from prefix_rft.support.writing import naming, write_json

MOMENTS, STATE = "optimizer.safetensors", "state.json"


def moments(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimizer's state as tensors, each called ``PARAMETER/WHAT``.

    Args:
        optimizer: an optimizer whose state is tensors, with one group of parameters.
        names: the names of its parameters, in their order.
    """
    state = optimizer.state_dict()["state"]
    return {f"{names[i]}/{k}": v for i, own in state.items() for k, v in own.items()}


def restore(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: dict[str, Tensor]
) -> None:
    """Give an optimizer the state that :func:`moments` made of another one of its kind."""
    places = {name: i for i, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        state.setdefault(places[name], {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def write(
    folder: Path,
    step: int,
    model: Model,
    optimizer: torch.optim.Optimizer,
    about: dict[str, Any],
    kept: set[int],
) -> None:
    """Write the checkpoint of a step as a whole, then delete those that no one needs any more.

    Args:
        folder: the run's folder.
        step: the updates before it.
        model: the model.
        optimizer: its optimizer.
        about: what else to remember.
        kept: the steps of the checkpoints that are needed.

    Raises:
        UserError: it cannot be written; the older ones are as they were.
    """
    new, final = folder / WRITING, folder / f"{PREFIX}{step}"
    with naming(final):
        shutil.rmtree(new, ignore_errors=True)
        new = new / final.name
        new.mkdir(parents=True)
        model.save(new)
        names = [name for name, _ in model.network.named_parameters()]
        save_file(moments(optimizer, names), new / MOMENTS)
        write_json(new / STATE, {"step": step, **about})
        seal(new)
        place(new, final)
    for other, path in checkpoints(folder).items():
        if other not in kept:
            shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint remembers beside its tensors."""
    return dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def load_optimizer(checkpoint: Path, model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the moments of a checkpoint."""
    names = [name for name, _ in model.network.named_parameters()]
    restore(optimizer, names, load_file(checkpoint / MOMENTS))


def reference_at(folder: Path, step: int) -> Path:
    """The checkpoint that is a reference.

    Raises:
        RunError: it is gone or damaged.
    """
    path = folder / f"{PREFIX}{step}"
    if why := fault(path):
        raise RunError(
            f"the checkpoint '{path}' is the reference of this stage, and {why}: the run cannot go "
            "on without it; begin a new one"
        )
    return path


def refuse_other_rows(checkpoint: Path, sha256: str, path: Path) -> None:
    """Refuse to go on with other rows than a checkpoint was made with.

    Raises:
        UserError: the file of rows has changed.
    """
    if read_state(checkpoint).get("rows") != sha256:
        raise UserError(
            f"train_data '{path}' has changed since '{checkpoint}' was written: resume with the "
            "rows that the run began with, or leave out --resume for a new one"
        )

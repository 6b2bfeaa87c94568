"""The weights of a model that a mask chooses from, by the names of its modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prefix_rft.engines.trl.update.mask_options import ALL, LINEAR
from prefix_rft.support.errors import UserError, nearest

LAYERS = (nn.Linear, Conv1D)


def targets(model: nn.Module, modules: str | Sequence[str]) -> dict[str, nn.Parameter]:
    """The trained weights that a mask chooses from, by name.

    Args:
        model: the policy, neither sharded nor wrapped.
        modules: ``linear`` (the matrices of linear layers, without the output head), ``all`` (every
            trained weight), or one or several regular expressions, each for the whole name of a
            module or for its end behind a dot: the matrices in all that match, shared ones too.

    Raises:
        UserError: a pattern fits no module or is none, or no trained weight is left.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if modules == ALL:
        return trained
    if modules == LINEAR:
        matrices = {id(layer.weight) for layer in _linear(model)}
    else:
        patterns = [modules] if isinstance(modules, str) else modules
        chosen = [m for pattern in patterns for m in _matching(model, pattern)]
        matrices = {id(p) for m in chosen for p in m.parameters() if p.dim() >= 2}
    found = {n: p for n, p in trained.items() if id(p) in matrices}
    if not found:
        raise UserError(
            f"parameter_mask: modules {modules!r} have no matrix that is trained: name others, or "
            f"give modules: {ALL}"
        )
    return found


def _linear(model: nn.Module) -> Iterator[torch.nn.Module]:
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    return (m for m in model.modules() if isinstance(m, LAYERS) and m is not outputs)


def _matching(model: nn.Module, pattern: str) -> list[nn.Module]:
    try:
        fits = re.compile(rf"(?:.*\.)?(?:{pattern})").fullmatch
    except re.error as error:
        raise UserError(
            f"parameter_mask: modules: '{pattern}' is no regular expression: {error}"
        ) from error
    named = dict(model.named_modules())
    found = [m for name, m in named.items() if fits(name)]
    if not found:
        weighed = {n.rpartition(".")[2] for n, m in named.items() if any(_own_matrices(m))}
        raise UserError(
            f"parameter_mask: modules: the model has no module '{pattern}': "
            f"{nearest(pattern, weighed)}"
        )
    return found


def _own_matrices(module: nn.Module) -> Iterator[bool]:
    return (p.dim() >= 2 for p in module.parameters(recurse=False))

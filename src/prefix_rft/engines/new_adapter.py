"""``peft`` of a recipe: an adapter (PEFT) that is put on the model and trained in its place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from prefix_rft.core.saliency import SCORES
from prefix_rft.engines.adapters import SPARSE, Adapter
from prefix_rft.engines.models import UncountedError, without_weights
from prefix_rft.support.errors import UserError, check_types, choose, nearest, one_line

KEY = "peft"
"""The recipe's key."""
KIND = "peft_type"
DEFAULT_KIND = "LORA"
FIXED = {
    "auto_mapping": "the model is known",
    "base_model_name_or_path": "the recipe's 'model' is adapted",
    "inference_mode": "the adapter is trained",
    "peft_version": "the installed one is written",
    "revision": "give it under model_init_kwargs",
    "task_type": "a causal language model is trained",
}
"""Keys of a configuration that are no choice here, and why."""
MASK, OWN_MASK = "mask_type", "random"
"""How the places of a sparse adapter are chosen, and the way that peft has."""


def adapter_config(options: Mapping[str, Any]) -> Any:
    """The ``peft.PeftConfig`` of a new adapter.

    Args:
        options: the fields of the configuration; ``peft_type`` names its kind, LoRA unless given.

    Raises:
        UserError: peft is missing, or a kind, a field or a value that it does not have.

    ``mask_type`` of the sparse adapter (SHiRA) may also be a salience score; see
    ``engines.trl.update.sparse_adapter``, which then chooses the places.
    """
    if find_spec("peft") is None:
        raise UserError(f"recipe key '{KEY}' needs peft: pip install prefix-rft[peft]")
    from peft import TaskType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {str(kind.value): made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    name = str(options.get(KIND, DEFAULT_KIND)).upper()
    choose(f"{KEY}.{KIND}", name, kinds)
    own = {key: value for key, value in options.items() if key != KIND}
    for key in own:
        if key in FIXED:
            raise UserError(f"recipe key '{KEY}.{key}' cannot be set: {FIXED[key]}")
    annotated = {f.name: str(f.type) for f in fields(kinds[name]) if f.init and f.name not in FIXED}
    for key in own:
        if key not in annotated:
            raise UserError(f"unknown option of {KEY} '{key}' ({name}): {nearest(key, annotated)}")
    check_types("recipe key", {f"{KEY}.{k}": v for k, v in own.items()},
                {f"{KEY}.{k}": kind for k, kind in annotated.items()})  # fmt: skip
    mask = own.pop(MASK, OWN_MASK) if name == SPARSE else OWN_MASK
    choose(f"{KEY}.{MASK}", mask, (OWN_MASK, *(score for score in SCORES if score != OWN_MASK)))
    try:
        config: Any = kinds[name](task_type=TaskType.CAUSAL_LM, **own)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise UserError(f"recipe key '{KEY}': {one_line(error)}") from error
    if mask != OWN_MASK:
        config.mask_type, config.mask_fn = mask, None
    return config


def to_put_on(model: Any, options: Mapping[str, Any] | None) -> Any:
    """What a trainer is to put on the model; None where nothing is to be.

    A model that has an adapter already goes on with it, as the later stages of a recipe do.

    Args:
        model: the model as it was loaded.
        options: what the recipe says under ``peft``; None where it says nothing.

    Raises:
        UserError: the model has no module of a name, or has an adapter of other options.
    """
    if options is None:
        return None
    config = adapter_config(options)
    present = getattr(model, "peft_config", None)
    if present is None:
        refuse_unknown_targets(model.named_modules(), config)
        if Path(model.name_or_path).is_dir():  # where the adapter that is saved finds its base
            model.name_or_path = os.path.abspath(model.name_or_path)
        return config
    refuse_other_options(present["default"], options)
    return None


def refuse_other_options(there: Any, options: Mapping[str, Any]) -> None:
    """Refuse options for an adapter that a model has already, and that was made with others.

    Args:
        there: its ``peft.PeftConfig``.
        options: what the recipe says under ``peft``.

    Raises:
        UserError: one differs.
    """
    config = adapter_config(options)
    for key in (KIND, *options):
        has, asked = (_plain(getattr(c, key, None)) for c in (there, config))
        if asked != "all-linear" and has != asked:  # which stands for a list that peft writes
            raise UserError(
                f"the model has an adapter with {key}={has}, and recipe key '{KEY}' asks for "
                f"{asked}: leave out '{KEY}' to train it on, or merge it first (prefix-rft merge)"
            )


def _plain(value: Any) -> Any:
    """A field that compares: names in no order, a kind by its name."""
    value = getattr(value, "value", value)
    return sorted(value) if isinstance(value, (set, list, tuple)) else value


def refuse_unknown_targets(modules: Iterable[tuple[str, Any]], config: Any) -> None:
    """Refuse an adapter for modules that are not there; peft leaves out those of several.

    Args:
        modules: the model's modules, by name.
        config: the adapter's ``peft.PeftConfig``.

    Raises:
        UserError: there is no module of a name in ``target_modules``.
    """
    wanted = getattr(config, "target_modules", None)
    if not isinstance(wanted, (set, list, tuple)):  # a pattern, all of a kind, or peft's own choice
        return
    modules = list(modules)
    names = [name for name, _ in modules]
    weighed = {n.rpartition(".")[2] for n, m in modules if list(m.parameters(recurse=False))}
    for one in sorted(wanted):
        if not any(name == one or name.endswith(f".{one}") for name in names):
            raise UserError(
                f"recipe key '{KEY}.target_modules': the model has no module '{one}': "
                f"{nearest(one, weighed)}"
            )


def count_trained(config: Any, adapter: Any, on_disk: Adapter | None = None) -> tuple[int, int]:
    """Weights of the model with an adapter, and how many of them are trained.

    Args:
        config: the model's transformers config.
        adapter: the adapter's ``peft.PeftConfig``.
        on_disk: where its weights are, if it has some already.

    Raises:
        UserError: the adapter does not fit the model.
        UncountedError: transformers has no such model, or the adapter cannot be put on one without
            weights.
    """
    from peft import get_peft_model

    model = without_weights(config)
    with torch.device("meta"):
        refuse_unknown_targets(model.named_modules(), adapter)
        try:
            model = get_peft_model(model, adapter)
        except (ValueError, TypeError) as error:
            raise UserError(f"recipe key '{KEY}': {one_line(error)}") from error
        except (NotImplementedError, RuntimeError) as error:
            raise UncountedError(
                f"the adapter needs the model's weights: {one_line(error)}"
            ) from error
    if on_disk is not None:
        refuse_other_shapes(model, on_disk)
    weights = list(model.parameters())
    return sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)


def refuse_other_shapes(model: Any, adapter: Adapter) -> None:
    """Refuse an adapter of another base by the shapes of its weights, of which none is read.

    Args:
        model: the ``peft.PeftModel`` that it is to be, without weights.
        adapter: where its weights are.

    Raises:
        UserError: a weight of it has another shape than its place.
    """
    from peft import get_peft_model_state_dict

    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    for path in sorted(adapter.folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                shape = tuple(file.get_slice(name).get_shape())
                if name in places and shape != tuple(places[name].shape):
                    raise UserError(
                        f"adapter '{adapter.source}' is of another model than '{adapter.base}': "
                        f"its weight '{name}' is {by(shape)}, and here it would be "
                        f"{by(places[name].shape)}"
                    )


def by(shape: Iterable[int]) -> str:
    """A shape in words, such as ``4 x 32``."""
    return " x ".join(map(str, shape))


def config_of(adapter: Adapter) -> Any:
    """The ``peft.PeftConfig`` that an adapter on disk was made with, to be trained on."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter.folder))
    config.inference_mode = False
    return config

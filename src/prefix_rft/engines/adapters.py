"""Adapters (PEFT) as models: which model a folder adapts, and the two together."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file

from prefix_rft.support.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SPARSE = "SHIRA"
"""The kind of adapter that is a difference at some places of a matrix."""
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class Adapter:
    """An adapter, and what it adapts.

    Attributes:
        source: the adapter's name as it was asked for, a folder or a Hub name.
        folder: its folder on this machine.
        base: folder or Hub name of the model that it adapts.
        revision: the revision of the base on the Hub, where the adapter names one.
    """

    source: str
    folder: Path
    base: str
    revision: str | None = None

    @property
    def words(self) -> str:
        """How to call the base in a message."""
        return f"model '{self.base}', which adapter '{self.source}' adapts,"

    @property
    def where(self) -> dict[str, Any]:
        """Options of the Hub with which the base is loaded."""
        return {} if self.revision is None else {"revision": self.revision}

    @property
    def has_tokenizer(self) -> bool:
        """Whether it comes with a tokenizer of its own, which then goes before the base's."""
        return any((self.folder / name).is_file() for name in TOKENIZER_FILES)


def find_adapter(source: str) -> Adapter | None:
    """The adapter at ``source``, or None for anything else.

    Raises:
        UserError: an adapter that cannot be used: a broken ``adapter_config.json``, weights that
            are no safetensors, a base that is not there, or peft is not installed.
    """
    folder = _folder(source)
    if folder is None:
        return None
    if any((folder / name).is_file() for name in MODEL_WEIGHTS):
        raise UserError(
            f"'{source}' holds both a model and an adapter ({CONFIG}): keep one of them in a "
            "folder of its own"
        )
    if find_spec("peft") is None:
        raise UserError(f"'{source}' is an adapter, which needs peft: pip install prefix-rft[peft]")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        named, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError, OSError) as error:
        raise UserError(f"adapter '{source}': its {CONFIG} is damaged: {error}") from error
    if not isinstance(named, str) or not named:
        raise UserError(
            f"adapter '{source}': its {CONFIG} names no model to adapt: write the base's folder or "
            "name as base_model_name_or_path"
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"adapter '{source}' has no {WEIGHTS}: save it as safetensors, no other format is read"
        )
    return Adapter(source, folder, _base(source, folder, named), revision)


def _folder(source: str) -> Path | None:
    """The folder of an adapter on this machine; one on the Hub is brought here."""
    local = Path(source)
    if local.is_dir():
        return local if (local / CONFIG).is_file() else None
    return _from_hub(source)


@cache
def _from_hub(source: str) -> Path | None:
    quiet: dict[str, Any] = {
        f"_raise_exceptions_for_{what}": False
        for what in ("missing_entries", "connection_errors", "gated_repo")
    }
    try:
        config_file = cached_file(source, CONFIG, **quiet)
        if config_file is not None:
            for name in (WEIGHTS, *TOKENIZER_FILES):
                cached_file(source, name, **quiet)
    except OSError:  # no name of the Hub either: who loads it says so
        return None
    return None if config_file is None else Path(config_file).parent


def _base(source: str, folder: Path, named: str) -> str:
    """The base as it is found from here: a path is looked for as it stands, then beside it."""
    for place in (Path(named), folder / named, folder.parent / named):
        if place.is_dir():
            return os.path.abspath(place)
    if Path(named).is_absolute() or named.startswith((".", "~")) or named.count("/") > 1:
        raise UserError(
            f"adapter '{source}' adapts the model '{named}', which is not there: write where it is "
            f"as base_model_name_or_path in its {CONFIG}"
        )
    return named


def adapt(adapter: Adapter, model: Any, trainable: bool) -> Any:
    """The model with the adapter's weights, a ``peft.PeftModel``.

    Args:
        adapter: what to put on.
        model: its base.
        trainable: go on training the adapter's weights; else nothing of the model can be trained.

    Raises:
        UserError: the adapter does not fit the model, or is of a kind that cannot be trained on.
    """
    from peft import PeftModel

    what = f"adapter '{adapter.source}' cannot be put on the model '{adapter.base}'"
    folder = str(adapter.folder)
    try:
        with warnings.catch_warnings():  # of missing weights, which are refused below
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        # Once more, for what the first call does not say: weights that found no place.
        loaded = adapted.load_adapter(folder, "default", is_trainable=trainable)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{what}: {' '.join(words[:2])}") from error
    missing = [name for name in loaded.missing_keys if "vector_bank" not in name]  # VB-LoRA's own
    if adapted.peft_config["default"].is_prompt_learning:
        loaded.unexpected_keys.clear()  # its one weight has its place outside the model
    lost = [*missing, *loaded.unexpected_keys]
    if lost:
        raise UserError(
            f"{what}: {len(missing)} of its weights are missing and {len(loaded.unexpected_keys)} "
            f"have no place there, such as '{lost[0]}'"
        )
    config: Any = adapted.peft_config["default"]
    if config.peft_type == SPARSE:
        config.mask_fn = _places_of(adapted)  # for a copy beside it
    # Where it was found, so that the adapter that is saved finds it too.
    config.base_model_name_or_path = adapter.base
    return adapted


def _places_of(model: Any) -> Callable[..., torch.Tensor]:
    """A mask function of peft's that gives the places of the sparse adapter that is there."""
    layers = {id(m.base_layer): m for m in model.modules() if hasattr(m, "shira_indices")}

    def mask_fn(layer: Any, r: int, **kwargs: Any) -> torch.Tensor:
        rows, columns = layers[id(layer)].shira_indices["default"].long()
        mask = torch.zeros(layer.weight.shape, dtype=torch.bool, device=rows.device)
        mask[rows, columns] = True
        return mask

    return mask_fn


def copy_to_reference(model: Any) -> None:
    """Give the copy of an adapter that TRL compares with the weights that TRL does not copy.

    TRL copies weights in whose name the adapter's name stands within, such as
    ``lora_A.default.weight``; those of kinds that have it at the end, such as
    ``shira_weight.default``, are left at their initial values.

    Args:
        model: the policy, perhaps with adapters ``default`` and ``ref``.
    """
    if "ref" not in getattr(model, "peft_config", {}):
        return
    named = dict(model.named_parameters())
    for name, p in named.items():
        if name.endswith(".default"):
            named[f"{name.removesuffix('default')}ref"].data.copy_(p.data)

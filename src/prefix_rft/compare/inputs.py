"""What a record of a comparison was made from, and whether it is that of today."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from prefix_rft.engines.fingerprint import fingerprint
from prefix_rft.recipe.recipe import Recipe

HASHED = (
    *("model", "train_data", "eval_data", "columns", "system_prompt", "reward", "method", "rif"),
    *("max_demonstrations", "demonstration_fraction", "only_correct_demonstrations"),
    *("prompts_per_step", "micro_batch_size", "trainer"),
    *("eval_samples", "eval_temperature", "eval_problems"),
)
"""Keys of a recipe that are in the hash of every record. A key that came later is in it only where
it is not at its default: records from before it are of the same recipe."""
NOT_HASHED = ("folder", "runs", "name", "engine_settings")
"""Keys that decide no number; an engine's settings, where there are any, are hashed by its name."""


def defaults_of(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass that have a default, and what it is."""
    values = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    factories = {
        f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING
    }
    return {**values, **factories}


def same_inputs(
    recorded: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, Any]],
    defaults: Mapping[str, Any],
) -> bool:
    """Whether the sets of a record are those of today.

    What a record does not say, because it is older than that setting, was at the default; and a
    hash that is not kept in it cannot be compared.

    Args:
        recorded: settings by set, from a record.
        now: the settings by set as they would be written today.
        defaults: the defaults of the settings that a set can have.
    """
    return recorded.keys() == now.keys() and all(
        settings.get(k, defaults.get(k, now[name].get(k))) == now[name].get(k)
        for name, settings in recorded.items()
        for k in {**settings, **now[name]}
    )


def deciding(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data, without what does not decide a number."""
    defaults = {**defaults_of(type(recipe)), **{key: {} for key in recipe.engine_settings}}
    shown = {
        k: v
        for k, v in {**vars(recipe), **recipe.engine_settings}.items()
        if k not in NOT_HASHED and (k in HASHED or v != defaults.get(k, MISSING))
    }
    return json.loads(json.dumps(shown, sort_keys=True, default=str))


def recipes_hash(recipes: Sequence[Recipe]) -> str:
    """Of one recipe as :func:`recipe_hash`; of several, of all in their order."""
    hashes = [recipe_hash(recipe) for recipe in recipes]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(",".join(hashes).encode()).hexdigest()[:16]


def recipe_hash(recipe: Recipe) -> str:
    """Of a recipe, its files of rows, and the base model."""
    digest = hashlib.sha256(repr(deciding(recipe)).encode())
    for data in (recipe.train_data, recipe.eval_data):
        path = recipe.folder / str(data)
        if path.is_file():
            digest.update(path.read_bytes())
    model = fingerprint(recipe.model_source())
    digest.update(str(model.get("sha256", model["source"])).encode())
    return digest.hexdigest()[:16]

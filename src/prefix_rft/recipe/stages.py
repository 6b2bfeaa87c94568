"""The stages of a recipe: keys that differ from one run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefix_rft.support.errors import UserError

STAGES = "stages"
DEFAULT_METHOD = "prefix_rft"


def stages_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe's mapping; one without any key of its own where it names none.

    Raises:
        UserError: they are not a list of mappings, or name a key that they may not.
    """
    stages = data.get(STAGES, [{}])
    if not isinstance(stages, list) or not stages:
        raise UserError("recipe key 'stages' must be a list of mappings, one for each stage")
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, dict):
            raise UserError(f"stage {number} of the recipe must be a mapping, got {stage!r}")
        for key in (STAGES, "model", "runs", "engine", "resume_from_checkpoint"):
            if key in stage:
                raise UserError(f"stage {number} of the recipe cannot have a '{key}' of its own")
    adapter = None
    for number, stage in enumerate(stages, 1):
        own = stage.get("peft", data.get("peft"))
        before, adapter = adapter, adapter if own is None else own
        if before is not None and adapter != before:
            raise UserError(
                f"stage {number} of the recipe goes on with the adapter of a stage before: its "
                "'peft' cannot be another one"
            )
    return stages


def stage_names(data: Mapping[str, Any]) -> list[str]:
    """The name of each stage's run: the recipe's, with number and method where there are several.

    Raises:
        UserError: see :func:`stages_of`.
    """
    name, stages = data.get("name", "run"), stages_of(data)
    if STAGES not in data:
        return [name]

    def method(stage: Mapping[str, Any]) -> str:
        given = stage.get("method", data.get("method", DEFAULT_METHOD))
        named = given.get("name", DEFAULT_METHOD) if isinstance(given, dict) else given
        return str(named).replace(":", ".").rpartition(".")[2]

    return [f"{name}-{i}-{s.get('name', method(s))}" for i, s in enumerate(stages, 1)]

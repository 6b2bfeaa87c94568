"""The stages of a recipe: keys that differ from one run to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefix_rft.recipe.reward_options import KEY, RewardLearning
from prefix_rft.support.errors import UserError

STAGES = "stages"
DEFAULT_METHOD = "prefix_rft"


class Stage(NamedTuple):
    """One of the runs of a recipe.

    Attributes:
        keys: the recipe's keys that are others in it.
        number: which of the recipe's ``stages`` it is, from 1.
        turn: how many stages of reward learning are before it.
    """

    keys: dict[str, Any]
    number: int
    turn: int


def stages_of(data: Mapping[str, Any]) -> list[Stage]:
    """The runs that a recipe's mapping asks for, in their order.

    One where it names no stages; one that learns a reward is as many as it has stages of that.

    Raises:
        UserError: see :func:`own_keys`, or options of reward learning that cannot be used.
    """
    runs = []
    for number, keys in enumerate(own_keys(data), 1):
        learns = keys.get(KEY, data.get(KEY))
        turns = 1 if learns is None else RewardLearning.read(learns).stages
        runs += [Stage(keys, number, turn) for turn in range(turns)]
    return runs


def own_keys(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys of each of a recipe's stages; one without any where it names none.

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
    if STAGES not in data and len(stages) == 1:
        return [name]

    def method(stage: Mapping[str, Any]) -> str:
        given = stage.get("method", data.get("method", DEFAULT_METHOD))
        named = given.get("name", DEFAULT_METHOD) if isinstance(given, dict) else given
        return str(named).replace(":", ".").rpartition(".")[2]

    return [f"{name}-{i}-{s.get('name', method(s))}" for i, (s, _, _) in enumerate(stages, 1)]

"""What decides a run's prompts and rewards, as hashes that its checkpoints keep."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from prefix_rft.data.moment import template_of
from prefix_rft.data.render import tokenizer_in
from prefix_rft.engines.state import hash_of_columns
from prefix_rft.rewards.checked import name_of
from prefix_rft.rewards.completions import visible
from prefix_rft.rewards.graded import Graded
from prefix_rft.rewards.source import decided_by
from prefix_rft.support.errors import UserError

FEW = 64
"""Numbers of each weight that are looked at."""

NEVER_READ = ("prompt", "completion", "completion_ids")
"""Columns that TRL hands to no reward function under their name."""


def made_of(
    model: torch.nn.Module,
    tokenizer: Any,
    rows: Any,
    rewards: Iterable[Any],
    demonstration_column: str,
    reference: torch.nn.Module | None = None,
    teachers: Mapping[str, torch.nn.Module] | None = None,
) -> dict[str, str]:
    """A hash for each thing that decides prompts or rewards and is no setting, by what it is.

    Args:
        model: the model that is trained.
        tokenizer: the tokenizer, or the processor, that prompts are rendered with.
        rows: the dataset as ids.
        rewards: the reward functions.
        demonstration_column: the column in which the demonstrations are in the rows.
        reference: a second model that is compared with; None where there is none, or where it is
            sharded.
        teachers: models that score the policy's rows, by name.
    """
    rewards = list(rewards)
    hashes = {"another vocabulary": _hash(sorted(tokenizer_in(tokenizer).get_vocab().items()))}
    first: Any = next(iter(rows.select(range(1))), {}) if isinstance(rows, Dataset) else {}
    if not isinstance(first.get("prompt"), str):
        hashes["another chat template"] = _hash(template_of(tokenizer))
    weights = [(n, list(p.shape)) for n, p in model.named_parameters() if p.requires_grad]
    hashes["other trainable weights"] = _hash(sorted(weights))
    frozen = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    hashes["other frozen weights"] = _hash(_glimpse(frozen))
    if reference is not None:
        hashes["another reference model"] = _hash(_glimpse(reference.named_parameters()))
    for name, teacher in (teachers or {}).items():
        hashes[f"another model as teacher '{name}'"] = _hash(_glimpse(teacher.named_parameters()))
    adapters: Any = getattr(model, "peft_config", None)
    if adapters is not None:
        hashes["another adapter"] = _hash({k: v.to_dict() for k, v in adapters.items()})
    for reward in rewards:
        name = f"another reward '{_name(reward)}' (its source or its options)"
        hashes[name] = _hash(_decided_by(reward))
    read = read_by(rewards, rows, demonstration_column)
    for column, digest in hash_of_columns(rows, read).items():
        hashes[f"other values in column '{column}', which the rewards are given"] = digest
    return hashes


def _decided_by(reward: Any) -> Any:
    """All that is known to decide what a reward function or model says."""
    if isinstance(reward, torch.nn.Module):
        config: Any = getattr(reward, "config", None)
        return [type(reward).__qualname__, getattr(config, "_name_or_path", None)]
    return decided_by(reward)


def read_by(rewards: Iterable[Any], rows: Any, demonstration_column: str) -> list[str]:
    """The columns that reward functions are given.

    Demonstrations count as ids already, unless a reward asks for them.
    """
    named: set[str] = set()
    everything = False
    for reward in rewards:
        if isinstance(reward, torch.nn.Module):
            continue
        if isinstance(reward, Graded):
            named.update(reward.parameters)
            everything |= reward.keywords
            continue
        parameters = inspect.signature(reward).parameters.values()
        named.update(p.name for p in parameters)
        everything |= any(p.kind is p.VAR_KEYWORD for p in parameters)
    present = [] if not isinstance(rows, Dataset) else rows.column_names
    columns = [n for n in visible(present) if n not in NEVER_READ]
    return [n for n in columns if n in named or (everything and n != demonstration_column)]


def refuse_others(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse a run that goes on with prompts or rewards of another kind.

    Args:
        folder: the checkpoint's folder.
        before: what the run that wrote it was made of.
        now: what this one is made of.

    Raises:
        UserError: something differs; the message says what.
    """
    for what in (*now, *before):
        if before.get(what) != now.get(what):
            raise UserError(
                f"checkpoint '{folder}' was made with {what}: resume with what the run began with, "
                "or begin a new run from its model"
            )


def _name(reward: Any) -> str:
    if isinstance(reward, torch.nn.Module):
        return str(_decided_by(reward)[1] or type(reward).__name__)
    return reward.__name__ if isinstance(reward, Graded) else name_of(reward)


def _glimpse(weights: Iterable[tuple[str, torch.Tensor]]) -> list[Any]:
    """Enough of weights that are in no checkpoint to tell one model from another."""
    return [
        (name, list(w.shape), str(w.dtype), w.detach().flatten()[:FEW].float().tolist())
        for name, w in weights
        if not w.is_meta
    ]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)

"""The model that a trainer is given: an adapter with its base, and something to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.models import hub, load_configs, load_model, load_tokenizer
from prefix_rft.engines.trl.plain_rows import plain_rows
from prefix_rft.rewards import checked
from prefix_rft.support.errors import UserError


def open_adapter(model: Any, args: Any) -> tuple[Any, Any]:
    """What the name of an adapter stands for: its base with it on, ready to train, and a tokenizer.

    Anything else that a trainer may be given is returned as it is, with None.

    Raises:
        UserError: the adapter cannot be used.
    """
    if not isinstance(model, str) or find_adapter(model) is None:
        return model, None
    return load_model(model, trainable=True, **dict(args.model_init_kwargs or {}))


def prepared(arguments: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """TRL's arguments for a trainer, with an adapter opened and datasets as plain rows.

    Reward functions in Python are checked at every call.

    Raises:
        UserError: the adapter or a dataset cannot be used.
        ValueError: an argument asks for several turns.
    """
    kwargs = dict(arguments)
    for name in ("tools", "rollout_func", "environment_factory"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} is not supported: a prefix belongs to a single turn")
    funcs = kwargs["reward_funcs"]
    if not funcs and not args.resolve_method().reads_rewards:
        funcs = no_reward
    if funcs is not None:
        several = funcs if isinstance(funcs, (list, tuple)) else [funcs]
        kwargs["reward_funcs"] = [
            f if isinstance(f, (str, torch.nn.Module)) else checked(f) for f in several
        ]
    kwargs["model"], tokenizer = open_adapter(kwargs["model"], args)
    if kwargs.get("processing_class") is None:
        kwargs["processing_class"] = tokenizer
    for name in ("train_dataset", "eval_dataset"):
        kwargs[name] = plain_rows(kwargs.get(name), name)
    return kwargs


def no_reward(completions: list[Any], **_: Any) -> list[float]:
    """0 for every completion: what a method that reads no rewards is given where there are none."""
    return [0.0] * len(completions)


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        UserError: there is none, or the model does not say where it is from.
    """
    source = model if isinstance(model, str) else model.config._name_or_path
    if not source:
        raise UserError("the model does not say where its tokenizer is: give processing_class")
    return load_tokenizer(source)


def generation_config_of(model: Any, args: Any) -> Any:
    """The generation config that a model has, or will have once its name has been loaded."""
    if not isinstance(model, str):
        return model.generation_config
    return load_configs(model, **hub(args.model_init_kwargs or {}))[1]


def trainable(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The weights that training can change: those of adapters that are not in use are none."""
    idle: set[str] = set()
    if hasattr(model, "peft_config"):
        named: Any = model.active_adapters  # peft has it as a property, transformers as a method
        active: Any = named() if callable(named) else named
        idle = set(model.peft_config) - set(active)
    for name, p in model.named_parameters():
        if p.requires_grad and not any(f".{one}." in f"{name}." for one in idle):
            yield name, p


def refuse_frozen(model: Any) -> None:
    """Refuse a model in which nothing can be trained.

    Raises:
        UserError: no weight that the policy uses takes a gradient.
    """
    if next(trainable(model), None) is not None:
        return
    fix = "set requires_grad on those that are to be trained"
    if hasattr(model, "peft_config"):
        fix = "load the adapter with is_trainable=True"
    raise UserError(f"the model has no weight that can be trained: {fix}")


def trained_weights(model: Any) -> str:
    """How many weights are trained, in words."""
    trained = sum(p.numel() for _, p in trainable(model))
    of_all = sum(p.numel() for p in model.parameters())
    if trained == of_all:
        return f"training all {of_all:,} weights"
    return f"training {trained:,} of {of_all:,} weights ({trained / of_all:.2%})"

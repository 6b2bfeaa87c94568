"""The models of teachers that are other models than the policy, and what cannot be made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from prefix_rft.core import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.engines.cached_model import base_of
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.models import load_model
from prefix_rft.engines.teachers import check_vocabulary
from prefix_rft.support.errors import UserError


def teacher_models(method: Method, processing: Any, args: Any) -> Mapping[str, torch.nn.Module]:
    """The models of a method's teachers, by the teachers' names, ready to score.

    Args:
        method: the method with its teachers.
        processing: the policy's tokenizer, or its processor.
        args: the trainer's configuration.

    Raises:
        UserError: see :func:`teacher_model`.
    """
    models: dict[str, torch.nn.Module] = {}
    for teacher in method.teachers:
        if teacher.weights != "model":
            continue
        model = teacher_model(teacher, processing)
        head = {"temperature": args.temperature, "cast_lm_head_to_fp32": args.cast_lm_head_to_fp32}
        add_fused_lm_head(base_of(model), outputs=("log_probs", "entropy"), **head)
        models[teacher.name] = model.to(args.device)
    return models


def teacher_model(teacher: Teacher, processing: Any) -> Any:
    """The model of a teacher that is another one, ready to be asked.

    Args:
        teacher: the teacher, of weights ``model``.
        processing: the policy's tokenizer, or its processor.

    Raises:
        UserError: it has no path, there is no model, or it has another vocabulary.
    """
    model, tokenizer = load_model(teacher.model)
    check_vocabulary(teacher, processing, tokenizer)
    turn_off_dropout(model)
    return model.eval().requires_grad_(False)


def refuse_divergences(method: Method, args: Any, sharded: bool) -> None:
    """Refuse what a divergence over the vocabulary cannot be made of.

    Args:
        method: the method with its divergences.
        args: the trainer's configuration.
        sharded: the weights are spread over processes.

    Raises:
        UserError: the weights are sharded, or the forward is compiled.
    """
    why = None
    if sharded:
        why = "with sharded weights (FSDP, DeepSpeed) yet: use opd, rlsd or sdar, which read tokens"
    elif args.torch_compile:
        why = "with torch_compile: leave it out"
    if why is not None:
        raise UserError(f"method '{method.name}' needs whole distributions, which cannot be {why}")

"""What teachers need before the first step: models of their own, room, columns of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset, Value
from trl.trainer.utils import add_fused_lm_head

from prefix_rft.core import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.data.render import tokenizer_in
from prefix_rft.engines.cached_model import base_of
from prefix_rft.engines.dropout import turn_off_dropout
from prefix_rft.engines.models import load_model
from prefix_rft.support.errors import UserError


def teacher_models(method: Method, processing: Any, args: Any) -> Mapping[str, torch.nn.Module]:
    """The models of a method's teachers, by the teachers' names, ready to score.

    Args:
        method: the method with its teachers.
        processing: the policy's tokenizer, or its processor.
        args: the trainer's configuration.

    Raises:
        UserError: a teacher has no path, there is no model, or it has another vocabulary: its
            log-probs would be those of other words.
    """
    models: dict[str, torch.nn.Module] = {}
    for teacher in method.teachers:
        if teacher.weights != "model":
            continue
        model, tokenizer = load_model(teacher.model)
        own, theirs = (tokenizer_in(x).get_vocab() for x in (processing, tokenizer))
        if own != theirs:
            raise UserError(
                f"teacher '{teacher.path}' has another vocabulary than the policy, so it cannot "
                "score the policy's tokens: use a model of the same family"
            )
        turn_off_dropout(model)
        head = {"temperature": args.temperature, "cast_lm_head_to_fp32": args.cast_lm_head_to_fp32}
        add_fused_lm_head(base_of(model), outputs=("log_probs", "entropy"), **head)
        models[teacher.name] = model.to(args.device).eval().requires_grad_(False)
    return models


def room_for(teacher: Teacher, model: Any, budget: int) -> int | None:
    """The most tokens of a teacher's prompt; None where any number will do.

    Args:
        teacher: the teacher.
        model: the model whose weights it has.
        budget: the longest completion.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    room = None if positions is None else positions - budget
    most = teacher.max_length
    return room if most is None else most if room is None else min(room, most)


def check_columns(method: Method, rows: Any) -> None:
    """Look whether the rows have the columns that teachers read, and something to write in them.

    Raises:
        UserError: one is missing, or what a prompt is to show is no text and no number.
    """
    if not isinstance(rows, Dataset):
        raise UserError(
            f"method '{method.name}' has teachers, which need a dataset of known length"
        )
    for teacher in method.teachers:
        wanted = [*teacher.only, *([teacher.column] if teacher.column else [])]
        for column in wanted:
            if column not in rows.column_names:
                raise UserError(
                    f"teacher '{teacher.name}' reads column '{column}', which the rows do not "
                    f"have: they have {', '.join(rows.column_names)}"
                )
        kind = rows.features[teacher.column] if teacher.column else None
        if kind is not None and not isinstance(kind, Value):
            raise UserError(
                f"teacher '{teacher.name}' shows column '{teacher.column}', whose cells are lists "
                "or mappings: name one of texts or numbers, or use context: demonstration"
            )


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

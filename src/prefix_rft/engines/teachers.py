"""What teachers need before the first step: a path, the policy's words, room, columns of rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Value

from prefix_rft.core import Method
from prefix_rft.core.teacher import Teacher
from prefix_rft.data.render import tokenizer_in
from prefix_rft.recipe.model_options import find_model
from prefix_rft.support.errors import UserError


def with_paths(method: Method, folder: Path) -> Method:
    """The method, whose teachers' folders may be named from a folder.

    Args:
        method: the method.
        folder: the recipe's.

    Raises:
        UserError: a teacher is not named, or can only be a folder, and there is none.
    """
    teachers = [
        replace(t, path=find_model(t.model, folder)) if t.weights == "model" else t
        for t in method.teachers
    ]
    return replace(method, teachers=tuple(teachers)) if teachers else method


def check_vocabulary(teacher: Teacher, processing: Any, theirs: Any) -> None:
    """Refuse a teacher of another vocabulary: its log-probs would be those of other words.

    Args:
        teacher: the teacher.
        processing: the policy's tokenizer, or its processor.
        theirs: the teacher's.

    Raises:
        UserError: the vocabularies differ.
    """
    own, other = (tokenizer_in(x).get_vocab() for x in (processing, theirs))
    if own != other:
        raise UserError(
            f"teacher '{teacher.path}' has another vocabulary than the policy, so it cannot "
            "score the policy's tokens: use a model of the same family"
        )


def room_for(teacher: Teacher, config: Any, budget: int) -> int | None:
    """The most tokens of a teacher's prompt; None where any number will do.

    Args:
        teacher: the teacher.
        config: the config of the model whose weights it has.
        budget: the longest completion.
    """
    positions = getattr(config, "max_position_embeddings", None)
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

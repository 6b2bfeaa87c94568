"""A trainer's chat template tells one moment: that of the start, whenever the run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from prefix_rft.data.moment import now, pinned, read_moment, tells_time
from prefix_rft.support.errors import UserError

HELP = (
    "The moment that a chat template tells which asks for the date (strftime_now), as 2026-07-26 "
    "or 2026-07-26T09:30:00; by default that of the start, also after resuming."
)


def stop_clock(args: Any, tokenizer: Any) -> bool:
    """Settle the moment that the chat template tells, the same on all processes, if it tells one.

    Args:
        args: the trainer's configuration; ``chat_template_date`` is set.
        tokenizer: the tokenizer with the template.

    Returns:
        Whether the moment was given.

    Raises:
        UserError: the moment that was given is none, or the template does not ask for one.
    """
    told = tells_time(tokenizer, getattr(args, "chat_template_kwargs", None))
    if args.chat_template_date is not None:
        read_moment(args.chat_template_date)
        if not told:
            raise UserError(
                "chat_template_date has no effect: the chat template does not ask for the date"
            )
        return True
    if told:
        args.chat_template_date = gather_object([now()])[0]
    return False


def template_kwargs(args: Any, tokenizer: Any) -> dict[str, Any]:
    """Arguments for the chat template, with the moment that it tells."""
    given = getattr(args, "chat_template_kwargs", None)
    return pinned(tokenizer, given, args.chat_template_date)


def refuse_date(folder: Path, before: str | None, args: Any) -> None:
    """Raise UserError where prompts would tell another moment than those of a checkpoint's run."""
    if before is not None and args.chat_template_date not in (None, before):
        raise UserError(
            f"checkpoint '{folder}' was made with chat_template_date {before}, and this run has "
            f"{args.chat_template_date}: resume with what the run began with"
        )


def date_in(checkpoint: Path) -> str | None:
    """The moment that the chat template told in the run that a checkpoint is of, if it told one."""
    path = checkpoint / "run_state_0.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["settings"].get("chat_template_date")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {type(error).__name__}: {error}") from error

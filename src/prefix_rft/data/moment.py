"""The one moment that a chat template tells in a run, however long it takes or often goes on.

Some templates write today's date into every prompt (``strftime_now``). transformers gives them the
clock; here they are given a moment, as a macro of that name in front of the template itself, so
that every renderer tells the same, whatever it is.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from prefix_rft.support.errors import UserError

CLOCK = "strftime_now"
FLAGGED = re.compile(r"%([-_0^#EO:][A-Za-z])")
MACRO = (
    "{% macro strftime_now(format) %}{% set told = TOLD %}"
    "{% filter replace('\\x00', '%') %}"
    "{% for part in format.replace('%%', '\\x00').split('%') %}"
    "{% if loop.first %}{{ part }}"
    "{% elif part[:2] in told %}{{ told[part[:2]] + part[2:] }}"
    "{% elif part[:1] in told %}{{ told[part[:1]] + part[1:] }}"
    "{% else %}{{ '%' + part }}{% endif %}"
    "{% endfor %}{% endfilter %}{% endmacro %}\n"  # trim_blocks takes the line's end
)


def now() -> str:
    """The moment that a template would tell now, as ISO 8601 without a time zone."""
    template = "{{ strftime_now('%Y-%m-%dT%H:%M:%S.%f') }}"
    texts, _ = render_jinja_template([[]], chat_template=template)
    return str(texts[0])


def read_moment(text: Any) -> datetime:
    """A moment from ISO 8601, with or without a time.

    Raises:
        UserError: it is none.
    """
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        raise UserError(
            f"chat_template_date must be a date like 2026-07-26, or with a time like "
            f"2026-07-26T09:30:00, got {text!r}"
        ) from None


def template_of(tokenizer: Any) -> str | None:
    """The chat template that a tokenizer renders conversations with; None where it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    if isinstance(tokenizer, ProcessorMixin):
        return str(template["default"] if isinstance(template, dict) else template)
    return str(tokenizer.get_chat_template())


def tells_time(tokenizer: Any, kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether what the chat template writes depends on when it is asked."""
    template = (kwargs or {}).get("chat_template") or template_of(tokenizer)
    return template is not None and CLOCK in template


def telling(template: str, moment: datetime) -> str:
    """The template with the clock stopped at a moment."""
    keys = [*string.ascii_letters, *dict.fromkeys(FLAGGED.findall(template))]
    told = {key: moment.strftime(f"%{key}") for key in keys}
    return MACRO.replace("TOLD", json.dumps(told)) + template


def pinned(tokenizer: Any, kwargs: Mapping[str, Any] | None, moment: Any) -> dict[str, Any]:
    """Arguments for ``apply_chat_template`` with which a template tells the given moment.

    Args:
        tokenizer: the tokenizer with the template.
        kwargs: arguments for the template, such as ``enable_thinking``.
        moment: ISO 8601; None leaves the clock running.

    Raises:
        UserError: the moment is none.
    """
    arguments = dict(kwargs or {})
    if moment is None or not tells_time(tokenizer, arguments):
        return arguments
    template = arguments.get("chat_template") or template_of(tokenizer)
    return {**arguments, "chat_template": telling(str(template), read_moment(moment))}

"""Everything that decided a run, as plain data for its folder; without secrets."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from prefix_rft.core import Method
from prefix_rft.recipe.recipe import Recipe


def resolved(recipe: Recipe, method: Method, args: Any) -> dict[str, Any]:
    """Everything that decided the run, as plain data."""
    apart = ("engine_settings", "trainer", "folder", "method", "turn")
    ours = {k: v for k, v in asdict(recipe).items() if k not in apart} | dict(
        recipe.engine_settings
    )
    options = {k: asdict(v) if hasattr(v, "kind") else v for k, v in method.about.options.items()}
    init = dict(recipe.trainer.get("model_init_kwargs") or {})
    trainer = {k: v for k, v in args.to_dict().items() if v is not None}
    named = {"name": recipe.method_name, **options}
    return resolved_value({**ours, "method": named, "model_init_kwargs": init, "trainer": trainer})


SECRET = re.compile(
    r"(^|[_-])(token|(api|access|private|secret|openai|hf|wandb)[_-]?key|secret|passw(or)?d|"
    r"credentials?|authorization|auth|bearer|pat)$",
    re.I,
)
NO_SECRET = ("eos_token", "pad_token", "bos_token", "unk_token", "image_token")
LOGIN = re.compile(
    r"(?<=://)[^/@\s]+@|(?<=bearer )\S+|(?<=[?&])[^=&\s]*(key|token|secret|password)=[^&\s]+", re.I
)
"""What lets one in, within a text: user and password of an address, bearer tokens, queries."""


def resolved_value(value: Any) -> Any:
    """A setting as plain data, without secrets."""
    if isinstance(value, dict):
        return {str(k): resolved_value(v) for k, v in value.items() if not _is_secret(str(k))}
    if isinstance(value, (list, tuple)):
        return [resolved_value(v) for v in value]
    plain = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
    return LOGIN.sub("", plain) if isinstance(plain, str) else plain


def _is_secret(key: str) -> bool:
    """Whether what a key holds must not reach the run folder."""
    return key not in NO_SECRET and SECRET.search(key) is not None

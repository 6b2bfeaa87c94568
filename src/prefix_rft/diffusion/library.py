"""The package diffusers, imported where it is needed: it takes seconds."""

from __future__ import annotations

from typing import Any

from prefix_rft.support.errors import UserError


def library() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"diffusion needs the package diffusers: pip install 'prefix-rft[diffusion]' ({error})"
        ) from error
    return diffusers

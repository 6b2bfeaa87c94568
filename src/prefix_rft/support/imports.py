"""Functions named by import path, in a recipe or in code: the one place that imports them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError


def load_function(
    path: str, folder: Path | None = None, what: str = "reward"
) -> Callable[..., Any]:
    """The function at ``package.module:function``.

    Args:
        path: the import path.
        folder: modules in it can be named too, as those beside a recipe; None for no such folder.
        what: the function is, for messages.

    Raises:
        UserError: it cannot be imported or is not callable.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UserError(f"{what} '{path}' must be of the form package.module:function")
    beside = None if folder is None else str(folder.resolve())
    if beside is not None and beside not in sys.path:
        sys.path.append(beside)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} '{path}' cannot be imported: {error}") from error
    except Exception as error:  # a stranger's module may raise anything
        raise UserError(
            f"{what} '{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise UserError(f"{what} '{path}' is not a function")
    return function


def need(module: str, words: str) -> Any:
    """A module of a package that not every installation has.

    Args:
        module: its import path.
        words: what needs it and how to have it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{words} ({error})") from error

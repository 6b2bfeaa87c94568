"""Functions named in a recipe by import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefix_rft.support.errors import UserError


def load_function(path: str, folder: Path, what: str = "reward") -> Callable[..., Any]:
    """The function at ``package.module:function``; modules beside the recipe can be named too.

    Raises:
        UserError: it cannot be imported or is not callable.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise UserError(f"{what} '{path}' must be of the form package.module:function")
    beside = str(folder.resolve())
    if beside not in sys.path:
        sys.path.append(beside)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} '{path}' cannot be imported: {error}") from error
    except Exception as error:  # a stranger's module may raise anything
        raise UserError(
            f"{what} '{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise UserError(f"{what} '{path}' is not a function")
    return found

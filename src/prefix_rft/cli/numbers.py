"""Numbers on the command line."""

from __future__ import annotations

import argparse

from prefix_rft.support.errors import UserError


def refuse_below_one(args: argparse.Namespace, *names: str) -> None:
    """Look whether options that count something are at least 1, where they are given.

    Args:
        args: the options.
        names: the names of those.

    Raises:
        UserError: one is not.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")

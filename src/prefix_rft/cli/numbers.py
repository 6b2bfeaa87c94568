"""Numbers on the command line, and those of the commands that sample train_data."""

from __future__ import annotations

import argparse

from prefix_rft.support.errors import UserError


def sampling_options(p: argparse.ArgumentParser, samples: int) -> None:
    """Options of a command that samples train_data and keeps what is right.

    Args:
        p: the command's parser.
        samples: the usual number of samples of a row.
    """
    p.add_argument(
        "--samples",
        type=int,
        default=samples,
        metavar="K",
        help=f"of each row (default: {samples})",
    )
    p.add_argument(
        "--keep", type=int, default=1, metavar="N", help="answers of a row at most (default: 1)"
    )
    p.add_argument("--limit", type=int, metavar="ROWS", help="the first rows only")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--batch-size", type=int, default=64, help="rows sampled at once")


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

"""The command ``prefix-rft``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence

from prefix_rft.cli.parser import parse

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How OpenMP's threads wait for one another: the standard's, GNU's and Intel's variable."""


def have_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Have torch's threads sleep while they wait, unless a user has said how they are to wait.

    They spin by default. Where other processes want the cores, each then burns the time that the
    one it waits for would need: on two busy cores a step of the quickstart took 7 s, not 0.4.
    OpenMP reads the variable once, when torch is imported.
    """
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 if a check or a run failed, 2 for unusable input."""
    # Nothing about a run leaves the machine unless a recipe asks for a tracker or a Hub name.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    have_threads_sleep(os.environ)
    from prefix_rft.support.untrusted import show_what_it_can, visible

    for stream in (sys.stdout, sys.stderr):
        show_what_it_can(stream)
    args = parse(argv)

    from prefix_rft.cli import commands
    from prefix_rft.support.errors import Interrupted, RunError, UserError

    try:
        return getattr(commands, args.command)(args) or 0
    except (UserError, RunError) as error:
        line = visible(" ".join(str(error).split("\n")))
        print(f"prefix-rft: error: {line}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        line = visible(f"'{error.filename}' cannot be used: {error.strerror}")
        print(f"prefix-rft: error: {line}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"prefix-rft: {visible(str(stopped))}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("prefix-rft: interrupted", file=sys.stderr)
        return 130

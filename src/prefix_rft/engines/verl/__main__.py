"""``python -m prefix_rft.engines.verl``: verl's trainer with our block in its configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefix_rft.engines.verl import require_verl
from prefix_rft.support.errors import RunError, UserError
from prefix_rft.support.untrusted import visible


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Exits with 2 for unusable input, and with 1 where a run had to stop."""
    try:
        yield
    except (UserError, RunError) as error:
        print(f"prefix-rft: error: {visible(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


with in_one_sentence():
    require_verl()

import hydra  # noqa: E402

from prefix_rft.engines.verl.launch import check_rewards, launch  # noqa: E402


@hydra.main(config_path="config", config_name="prefix_rft", version_base=None)
def main(config: Any) -> None:
    """Start a run from verl's overrides."""
    with in_one_sentence():
        check_rewards(config)
        launch(config)


if __name__ == "__main__":
    main()

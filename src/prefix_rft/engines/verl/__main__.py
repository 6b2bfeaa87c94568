"""``python -m prefix_rft.engines.verl``: verl's trainer with our block in its configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefix_rft.engines.verl import require_verl
from prefix_rft.errors import UserError
from prefix_rft.untrusted import visible


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Exits with 2 where a setting cannot be used."""
    try:
        yield
    except UserError as error:
        print(f"prefix-rft: error: {visible(str(error))}", file=sys.stderr)
        sys.exit(2)


with in_one_sentence():
    require_verl()

import hydra  # noqa: E402

from prefix_rft.engines.verl.launch import launch  # noqa: E402


@hydra.main(config_path="config", config_name="prefix_rft", version_base=None)
def main(config: Any) -> None:
    """Start a run from verl's overrides."""
    with in_one_sentence():
        launch(config)


if __name__ == "__main__":
    main()

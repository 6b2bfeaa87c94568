"""``python -m prefix_rft.engines.verl``: verl's trainer with our block in its configuration."""

from __future__ import annotations

from typing import Any

import hydra

from prefix_rft.engines.verl import require_verl

require_verl()

from prefix_rft.engines.verl.launch import launch  # noqa: E402


@hydra.main(config_path="config", config_name="prefix_rft", version_base=None)
def main(config: Any) -> None:
    """Start a run from verl's overrides."""
    launch(config)


if __name__ == "__main__":
    main()

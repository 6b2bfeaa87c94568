"""Prefix-RFT: post-train language models on demonstrations and verifiable rewards in one run."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prefix_rft.engines.trl import (
        DemonstrationConfig,
        DemonstrationTrainer,
        PrefixRFTConfig,
        PrefixRFTTrainer,
    )

__all__ = [
    "DemonstrationConfig",
    "DemonstrationTrainer",
    "PrefixRFTConfig",
    "PrefixRFTTrainer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the trainers on first use: they bring torch, transformers and TRL with them."""
    if name in __all__:
        from prefix_rft.engines import trl

        return getattr(trl, name)
    raise AttributeError(f"module 'prefix_rft' has no attribute '{name}'")

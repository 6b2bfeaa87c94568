"""For verl's own command: ``VERL_USE_EXTERNAL_MODULES=prefix_rft.engines.verl.plugin``.

verl imports this module as it is imported itself, in every process where the variable is set, and
our trainers are then known to ``trainer.v1.trainer_mode``. Our own command needs none of it.
"""

from __future__ import annotations

from prefix_rft.engines.verl import trainer

__all__ = ["trainer"]

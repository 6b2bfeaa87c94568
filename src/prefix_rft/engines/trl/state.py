"""What of a trainer has a state of its own, beside the weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefix_rft.engines.state import MethodState, hash_of_rows
from prefix_rft.engines.trl.made_of import made_of
from prefix_rft.engines.trl.parameter_mask import MaskOptions, ParameterMask
from prefix_rft.engines.trl.policy import refuse_frozen
from prefix_rft.engines.trl.reference import ReferencePolicy


def keep_state(trainer: Any) -> None:
    """Give a trainer the state of its method, its reference policy and its parameter mask.

    Raises:
        UserError: the method or the mask cannot be used with this trainer, or nothing of its model
            can be trained.
    """
    refuse_frozen(trainer)
    method, mask = trainer.method, trainer.args.parameter_mask
    options = asdict(MaskOptions.read(mask)) if mask else None
    rows = hash_of_rows(trainer.train_dataset)
    trainer.method_state = MethodState(method.name, options, rows)
    trainer.reference = ReferencePolicy(trainer) if method.needs_own_reference else None
    trainer.parameter_mask = ParameterMask.of(trainer)
    trainer.made_of = made_of(trainer, getattr(trainer, "reward_funcs", ()))


def parts(trainer: Any) -> list[Any]:
    """What of the trainer has a state of its own."""
    found = [trainer.method_state, trainer.reference, trainer.parameter_mask]
    return [p for p in found if p is not None]

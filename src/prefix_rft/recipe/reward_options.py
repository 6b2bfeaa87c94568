"""A recipe's ``reward_learning``: a reward model learnt from demonstrations, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from prefix_rft.core.pairs import LOSSES
from prefix_rft.support.errors import UserError, check_types, choose, refuse_unknown

KEY = "reward_learning"
"""The recipe's key."""
LEVELS = ("last", "tokens")


@dataclass(frozen=True)
class RewardLearning:
    """Algorithm 1 of arXiv 2405.17888: in each stage a reward, then a policy for it.

    Attributes:
        stages: how often the reward is learnt anew and the policy trained on it (authors: 5).
        prompts_per_stage: rows that a stage samples, pairs and trains on, the next ones in each;
            by default all of them in every stage.
        samples: own samples of each row with a demonstration, each a pair with it.
        steps: optimizer steps of the reward model in a stage; by default one pass over its pairs.
        batch_size: pairs in such a step.
        loss: ``logistic`` or ``difference``; see ``core.pairs``.
        level: the reward is compared at the ``last`` token, or at all ``tokens`` from the first on
            that differs, as in the authors' code.
        model: what the reward model starts from in the first stage: a folder or a Hub name with
            the policy's own vocabulary; by default the model that the policy starts from.
        learning_rate: constant, AdamW (authors: 1e-6).
        regulariser: see ``core.pairs.pair_loss``.
    """

    stages: int = 5
    prompts_per_stage: int | None = None
    samples: int = 1
    steps: int | None = None
    batch_size: int = 16
    loss: str = "logistic"
    level: str = "last"
    model: str | None = None
    learning_rate: float = 1e-6
    regulariser: float = 0.0

    @classmethod
    def read(cls, settings: Any) -> RewardLearning:
        """Check the options of a recipe.

        Raises:
            UserError: one is unknown or cannot be used.
        """
        if not isinstance(settings, Mapping):
            raise UserError(f"recipe key '{KEY}' must be a mapping of options, got {settings!r}")
        kinds = {f.name: str(f.type) for f in fields(cls)}
        refuse_unknown(f"option of {KEY}", settings, kinds)
        check_types(f"option of {KEY}", settings, kinds)
        options = cls(**settings)
        choose(f"{KEY}.loss", options.loss, LOSSES)
        choose(f"{KEY}.level", options.level, LEVELS)
        for name in ("stages", "prompts_per_stage", "samples", "steps", "batch_size"):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise UserError(f"{KEY}: {name} must be at least 1, got {value}")
        if options.learning_rate <= 0 or options.regulariser < 0:
            raise UserError(
                f"{KEY}: learning_rate must be positive and regulariser at least 0, got "
                f"{options.learning_rate} and {options.regulariser}"
            )
        return options

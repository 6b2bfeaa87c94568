"""A reward that is learnt from pairs of token ids, and what it says of completions.

The reward model is one of transformers' token classifiers with one label: a number at each token,
of which the one at the last token is the reward. So padding decides nothing, even where a
tokenizer pads with its EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification

from prefix_rft.core.pairs import held
from prefix_rft.data.render import Renderer
from prefix_rft.engines.adapters import find_adapter
from prefix_rft.engines.models import UNUSABLE, cannot_load, hub, load_tokenizer
from prefix_rft.recipe.reward_options import KEY
from prefix_rft.support.errors import UserError


def load_reward_model(source: str, tokenizer: Any, beside: Path, **options: Any) -> Any:
    """A reward model that reads the ids of a tokenizer; its head is new unless it was saved.

    Args:
        source: a folder or a Hub name, of a reward model or of a language model.
        tokenizer: the policy's own.
        beside: the folder in which to look for one of a like name, where there is none.
        options: arguments for ``from_pretrained``.

    Raises:
        UserError: there is none, it is an adapter, or it has another vocabulary.
    """
    if find_adapter(source) is not None:
        raise UserError(
            f"'{source}' is an adapter, of which no reward model can be made: name its base, or a "
            f"model that it was merged into (prefix-rft merge), as {KEY}.model"
        )
    own = load_tokenizer(source, beside, **hub(options))
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{KEY}.model '{source}' has another vocabulary than the policy, whose token ids it "
            "is to judge: use one of the same family"
        )
    options = {"dtype": "float32", **options, "trust_remote_code": False, "use_safetensors": True}
    try:
        model: Any = AutoModelForTokenClassification.from_pretrained(
            source, num_labels=1, **options
        )
    except UNUSABLE as error:
        raise cannot_load(source, f"reward model '{source}'", error, beside) from error
    return model


class LearntReward:
    """What a reward model says of completions, with the signature of TRL's reward functions.

    It reads the very ids that were sampled, behind those of the prompt, as it read them when it
    was trained.

    Args:
        options: the recipe's ``reward_learning``, by which a checkpoint knows it.
    """

    __name__ = "learnt"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.decided_by = dict(options)
        self.model: Any = None
        self.render: Renderer | None = None
        self.batch_size = 1
        self.precision: Callable[[], AbstractContextManager[Any]] = nullcontext

    def become(
        self,
        model: Any,
        render: Renderer,
        batch_size: int,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Say from now on what this model says.

        Args:
            model: the reward model, where it is to run.
            render: how prompts become ids.
            batch_size: rows in one forward.
            precision: the context of a forward.
        """
        self.model, self.render = model.eval().requires_grad_(False), render
        self.batch_size, self.precision = batch_size, precision

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        """The rewards of some completions.

        Args:
            prompts: texts or conversations.
            completions: their texts, which are not read.
            completion_ids: the ids that were sampled, EOS included.

        Raises:
            RuntimeError: nothing has been learnt yet.
        """
        if self.model is None or self.render is None:
            raise RuntimeError("the reward has not been learnt yet: call become() first")
        asked = self.render.prompts(prompts)
        rows = [[*p, *c] for p, c in zip(asked, completion_ids, strict=True)]
        parts = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        return [x for part in parts for x in self._last(part)]

    @torch.no_grad()
    def _last(self, rows: list[list[int]]) -> list[float]:
        """The rewards at the last tokens of some sequences."""
        device = self.model.device
        ids = [torch.tensor(row) for row in rows]
        padded, mask = (
            torch.nn.utils.rnn.pad_sequence(xs, batch_first=True).to(device)
            for xs in (ids, [torch.ones_like(x) for x in ids])
        )
        with self.precision():
            values: Tensor = self.model(input_ids=padded, attention_mask=mask).logits.squeeze(-1)
        return held(values.float(), mask)[:, -1].tolist()
